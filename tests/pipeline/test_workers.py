import os
import time
from functools import partial
from pathlib import Path

import pytest

from ltrp_core.errors import RequestError
from pipeline.workers import ATTEMPTS, InProcessPool, open_pool


class Work:
    """Squares numbers; does what the item says otherwise. Leaves a file a call in `folder`."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def __call__(self, item):
        (self.folder / f"{item}.{os.getpid()}.{time.monotonic_ns()}").touch()
        if item == "poison":
            os._exit(1)
        if item == "once" and len(list(self.folder.glob("once.*"))) == 1:
            os._exit(1)
        if item == "bad":
            raise RequestError("shard bad.tar is cut")
        if item == "full":
            raise OSError(28, "No space left on device")
        return item if isinstance(item, str) else item * item


def outcomes(pool, items, folder):
    return {outcome.item: outcome for outcome in pool.map(partial(Work, str(folder)), items)}


def test_in_process_an_error_fails_one_item_and_names_the_cause(tmp_path):
    found = outcomes(InProcessPool(), [1, "bad", "full", 3], tmp_path)
    assert found[1].result == 1
    assert found[3].result == 9
    assert found["bad"].error == "shard bad.tar is cut"
    assert "No space left" in found["full"].error


def test_nothing_is_made_for_no_items(tmp_path):
    assert list(InProcessPool().map(partial(Work, "/nowhere"), [])) == []


@pytest.mark.ray
def test_ray_retries_a_dead_worker_and_gives_a_poison_item_up(tmp_path):
    with open_pool("2") as pool:
        found = outcomes(pool, [*range(20), "once", "bad", "poison"], tmp_path)
    assert [found[i].result for i in range(20)] == [i * i for i in range(20)]
    assert found["once"].result == "once"
    assert found["once"].attempts == 2
    assert found["bad"].error == "shard bad.tar is cut"
    assert found["bad"].attempts == 1
    assert "worker died" in found["poison"].error
    assert len(list(tmp_path.glob("poison.*"))) == ATTEMPTS


@pytest.mark.ray
def test_more_workers_than_slots_are_capped_not_waited_for(tmp_path):
    with open_pool("500") as pool:
        assert outcomes(pool, [2, 3], tmp_path)[3].result == 9
        assert 1 <= pool.num_workers <= (os.cpu_count() or 1)


@pytest.mark.ray
def test_without_work_ray_is_not_started(tmp_path):
    import ray

    with open_pool("2") as pool:
        assert outcomes(pool, [], tmp_path) == {}
        assert not ray.is_initialized()


def test_workers_must_be_a_number_or_auto():
    with (
        pytest.raises(RequestError, match="--workers 'many': pass a number or auto"),
        open_pool("many"),
    ):
        pass
