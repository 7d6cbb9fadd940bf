"""Actors on one machine: every way to fail, and what is left of a run that ends early."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from ltrp_core.errors import RequestError
from pipeline.workers import ATTEMPTS, RunStoppedError, Slot, open_pool
from pipeline.workers.local_ray import start_local, stop_local
from pipeline.workers.ray_start import import_ray

pytestmark = pytest.mark.ray

QUICK = (0.05, 0.1)


class Deeds:
    """Does what the item says; leaves a file a call in `folder`, named by item and process."""

    def __init__(self, folder, slot):
        self.folder, self.slot = Path(folder), slot

    def count(self, item):
        (self.folder / f"{item}.{os.getpid()}.{time.monotonic_ns()}").touch()
        return len(list(self.folder.glob(f"{item}.*")))

    def __call__(self, item):
        times = self.count(item)
        match item:
            case "poison":
                os._exit(1)
            case "dies once" if times == 1:
                os._exit(1)
            case "hangs once" if times == 1:
                time.sleep(600)
            case "flaky" if times < ATTEMPTS:
                raise ConnectionResetError("reset")
            case "breaks the gpu" if times == 1:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            case "bad":
                raise RequestError("bad.tar is cut")
            case "unpicklable":
                return threading.Lock()
            case "full":
                raise OSError(28, "No space left on device")
            case "slow":
                time.sleep(600)
        return item


def threads():
    import torch

    return torch.get_num_threads()


class Preparing(Deeds):
    """Fails while it is being made, as `how` says."""

    def __init__(self, folder, how, slot):
        super().__init__(folder, slot)
        times = self.count("made")
        if how == "refuses":
            raise RequestError("weights are cut")
        if how == "dies" or (how == "dies once" and times == 1):
            os._exit(1)
        if how == "fails":
            raise FileNotFoundError(2, "No such file or directory", "mae.safetensors")


class Says:
    """Returns its slot and how many threads torch has, which was imported while it was made."""

    def __init__(self, slot):
        self.slot = slot
        threads()

    def __call__(self, item):
        time.sleep(0.02)
        return self.slot, threads()


@pytest.fixture(scope="module", autouse=True)
def ray():
    """Three slots and a GPU, on paper."""
    ray = import_ray()
    start_local(
        ray,
        num_cpus=3,
        num_gpus=1,
        include_dashboard=False,
        object_store_memory=80 << 20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield ray
    stop_local(ray)


def run(items, make, workers="cpu=2", **options):
    with open_pool(workers, delays_s=QUICK, **options) as pool:
        return {outcome.item: outcome for outcome in pool.map(make, items)}


def pids(folder):
    return {int(path.name.split(".")[1]) for path in folder.iterdir()}


def assert_gone(pids):
    """Processes end soon after they were killed."""
    end = time.monotonic() + 10
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """One run of everything that fails an attempt: (outcomes, folder)."""
    folder = tmp_path_factory.mktemp("mixed")
    odd = ["poison", "dies once", "breaks the gpu", "flaky", "bad", "unpicklable"]
    items = [*odd, *range(20)]
    return run(items, partial(Deeds, str(folder))), folder


def test_a_poison_item_has_exactly_three_attempts_and_the_others_are_done(mixed):
    found, folder = mixed
    assert "worker died" in found["poison"].error
    assert found["poison"].attempts == len(list(folder.glob("poison.*"))) == ATTEMPTS
    assert [found[number].result for number in range(20)] == list(range(20))
    assert [len(list(folder.glob(f"{number}.*"))) for number in range(20)] == [1] * 20


def test_an_item_whose_worker_died_once_is_done_by_another(mixed):
    outcome = mixed[0]["dies once"]
    assert (outcome.result, outcome.error, outcome.attempts) == ("dies once", None, 2)


def test_after_an_error_of_the_gpu_another_process_goes_on(mixed):
    found, folder = mixed
    assert found["breaks the gpu"].result == "breaks the gpu"
    broken, other = sorted(
        folder.glob("breaks the gpu.*"), key=lambda path: int(path.name.split(".")[2])
    )
    assert broken.name.split(".")[1] != other.name.split(".")[1]
    later = {path for path in folder.iterdir() if path.stat().st_mtime > other.stat().st_mtime}
    assert not [path for path in later if path.name.split(".")[1] == broken.name.split(".")[1]]


def test_a_transient_error_is_tried_again_on_ray(mixed):
    assert (mixed[0]["flaky"].result, mixed[0]["flaky"].attempts) == ("flaky", ATTEMPTS)


def test_an_error_of_the_item_or_of_its_result_is_not_tried_again(mixed):
    found, _ = mixed
    assert (found["bad"].error, found["bad"].attempts) == ("bad.tar is cut", 1)
    assert "cannot pickle" in found["unpicklable"].error
    assert found["unpicklable"].attempts == 1


def test_an_outcome_names_its_worker(mixed):
    assert {outcome.worker for outcome in mixed[0].values()} == {f"{os.uname().nodename}:cpu"}


def test_a_worker_that_outlasts_the_limit_is_killed_and_it_counts_as_an_attempt(tmp_path):
    make = partial(Deeds, str(tmp_path))
    found = run(["hangs once", 1], make, item_timeout_s=2.0)
    assert (found["hangs once"].result, found["hangs once"].attempts) == ("hangs once", 2)
    assert found[1].attempts == 1


def test_a_refusal_while_the_work_is_made_fails_the_run_at_once(tmp_path):
    with pytest.raises(RequestError, match="weights are cut"):
        run(range(9), partial(Preparing, str(tmp_path), "refuses"))
    assert len(pids(tmp_path)) <= 2


@pytest.mark.parametrize(
    ("how", "reason"), [("dies", "worker died"), ("fails", "FileNotFoundError.*mae.safetensors")]
)
def test_workers_that_are_never_ready_fail_the_run_after_three(how, reason, tmp_path):
    with pytest.raises(RunStoppedError, match=f"no worker could be made ready.*{reason}"):
        run(range(9), partial(Preparing, str(tmp_path), how))
    assert ATTEMPTS <= len(pids(tmp_path)) <= ATTEMPTS + 1


def test_a_death_while_the_work_is_made_is_charged_to_no_item(tmp_path):
    found = run(range(9), partial(Preparing, str(tmp_path), "dies once"))
    assert [found[number].attempts for number in range(9)] == [1] * 9


def test_a_full_disk_stops_the_run_and_the_other_workers(tmp_path):
    make = partial(Deeds, str(tmp_path))
    with open_pool("cpu=2", delays_s=QUICK) as pool:
        found = list(pool.map(make, ["slow", "full", *range(50)]))
        assert_gone(pids(tmp_path))
    assert found[-1].stop
    assert "No space left on device" in found[-1].error
    assert len(found) < 50


def test_workers_of_both_kinds_know_what_they_have():
    found = {}
    with open_pool("gpu=1,cpu=1", delays_s=QUICK) as pool:
        for outcome in pool.map(Says, range(5000)):
            found[outcome.worker.split(":")[1]] = outcome.result
            if len(found) == 2:
                break
    assert found == {"cuda": (Slot("cuda", 2), 2), "cpu": (Slot("cpu", 1), 1)}


@pytest.mark.parametrize(
    ("workers", "slots"),
    [("auto", {"cuda"}), ("2", {"cuda"}), ("cpu=2", {"cpu"}), ("gpu=1,cpu=1", {"cuda", "cpu"})],
)
def test_what_workers_would_have_is_known_before_there_is_work(workers, slots):
    with open_pool(workers) as pool:
        assert pool.slots() == slots


def test_work_for_gpus_alone_is_given_to_gpus_alone_or_refused():
    with open_pool("auto") as pool:
        found = [outcome.result[0].device for outcome in pool.map(Says, range(20), gpu_only=True)]
    assert found == ["cuda"] * 20
    for workers in ("gpu=1,cpu=1", "cpu=2"):
        with (
            open_pool(workers) as pool,
            pytest.raises(RequestError, match=f"--workers {workers}: --precision asks for"),
        ):
            next(pool.map(Says, [0], gpu_only=True))


def test_a_single_worker_has_all_threads():
    assert run([0], Says, workers="cpu=1")[0].result == (Slot("cpu", 3), 3)


def test_more_workers_than_slots_are_capped_and_said(tmp_path):
    said = []
    with open_pool("cpu=500", on_note=said.append) as pool:
        assert len(list(pool.map(partial(Deeds, str(tmp_path)), range(5)))) == 5
        assert pool.notes == said == ["--workers gpu=0,cpu=3, not cpu=500: no more slots"]
        assert pool.start_up_s > 0


def test_items_are_taken_one_a_worker(tmp_path):
    class Numbers(list):
        taken = 0

        def __iter__(self):
            for number in super().__iter__():
                self.taken += 1
                yield number

    numbers = Numbers(range(300))
    with open_pool("cpu=2") as pool:
        for done, _ in enumerate(pool.map(partial(Deeds, str(tmp_path)), numbers)):
            assert numbers.taken <= done + 5


def test_ctrl_c_in_the_loop_leaves_no_worker(tmp_path):
    def interrupt():
        while not list(tmp_path.glob("slow.*")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), open_pool("cpu=2") as pool:
        list(pool.map(partial(Deeds, str(tmp_path)), [1, "slow", "slow"]))
    assert time.monotonic() - started < 20
    assert_gone(pids(tmp_path))


def test_leaving_the_loop_leaves_no_worker(tmp_path):
    with open_pool("cpu=2") as pool:
        outcomes = pool.map(partial(Deeds, str(tmp_path)), [1, "slow", *range(9)])
        next(outcomes)
        outcomes.close()
        assert_gone(pids(tmp_path))
