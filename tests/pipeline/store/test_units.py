import json
import os
import threading

import numpy as np
import pytest
import zarr

from pipeline.store import open_cache
from pipeline.store.cache import create_cache
from pipeline.store.errors import DamagedUnitError, LockedError, RunMismatchError
from pipeline.store.lock import folder_lock
from pipeline.store.units import UNITS, commit_unit, unit_name
from pipeline.store.verify import problems
from stages.protocols import ArrayField, BadSample

FIELDS = {
    "key": ArrayField(dtype="string", shape=(), fill=""),
    "visible": ArrayField(dtype="uint8", shape=(2, 3), fill=255, delta=True),
    "score": ArrayField(dtype="float16", shape=(2, 3), fill=float("nan")),
}


def arrays(count=10, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "key": np.array([f"k{i}" for i in range(count)], dtype=object),
        "visible": rng.integers(0, 196, (count, 2, 3)).astype(np.uint8),
        "score": rng.random((count, 2, 3)).astype(np.float16),
    }


def commit(cache, name="unit-a", values=None, bad=()):
    facts = {
        "run_id": cache.run_id,
        "input": {"name": f"{name}.tar", "size": 1, "sha256": "0" * 64},
        "seconds": 1.0,
    }
    values = values if values is not None else arrays()
    return commit_unit(cache.path, name, arrays=values, fields=FIELDS, bad=list(bad), facts=facts)


@pytest.fixture
def cache(tmp_path):
    return create_cache(tmp_path / "cache", "score", {"seed": 0, "mask_ratio": 0.9})


def test_a_committed_unit_reads_back_and_obeys_the_conservation_law(cache):
    bad = [BadSample("k99", 512, "truncated", "OSError: cut")]
    receipt = commit(cache, bad=bad)
    assert (receipt.n_in, receipt.n_ok, receipt.n_bad) == (11, 10, 1)
    assert receipt.reasons == {"truncated": 1}
    opened = open_cache(cache.path)
    assert opened.units == ["unit-a"]
    stored = opened.read("unit-a")
    for name, values in arrays().items():
        assert np.array_equal(stored[name], values)
    assert not list((cache.path / ".attempt").iterdir())
    assert list(problems(opened, deep=True)) == []


def test_any_zarr_reader_sees_plain_indices(cache):
    commit(cache)
    group = zarr.open_group(cache.path / UNITS / "unit-a" / "records.zarr", mode="r")
    assert np.array_equal(group["visible"][:], arrays()["visible"])


def test_a_unit_without_a_good_sample_commits_and_reads(cache):
    bad = [BadSample("k", 0, "empty", "no bytes")]
    assert commit(cache, values=arrays(0), bad=bad).n_ok == 0
    assert open_cache(cache.path).read("unit-a")["score"].shape == (0, 2, 3)


def test_writing_twice_gives_the_same_bytes_and_keeps_the_first(cache):
    first = commit(cache)
    stamp = (cache.path / UNITS / "unit-a" / "receipt.json").stat().st_mtime_ns
    second = commit(cache)
    assert first.files == second.files
    assert (cache.path / UNITS / "unit-a" / "receipt.json").stat().st_mtime_ns == stamp


DAMAGES = {
    "empty shard": lambda f: f.write_bytes(b""),
    "missing shard": lambda f: f.unlink(),
    "one byte short": lambda f: f.write_bytes(f.read_bytes()[:-1]),
    "flipped bit": lambda f: f.write_bytes(flip(f.read_bytes(), 10)),
    "flipped bit in the index": lambda f: f.write_bytes(flip(f.read_bytes(), -10)),
}


def flip(raw, at):
    raw = bytearray(raw)
    raw[at] ^= 1
    return bytes(raw)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_the_next_commit_puts_it_right(cache, damage):
    receipt = commit(cache)
    shard = next(name for name in receipt.files if name.startswith("records.zarr/score/c/"))
    DAMAGES[damage](cache.path / UNITS / "unit-a" / shard)
    opened = open_cache(cache.path)
    faults = list(problems(opened, deep=True))
    assert len(faults) == 1
    assert faults[0].startswith("unit-a: ")
    if opened.units:
        with pytest.raises(DamagedUnitError):
            opened.read("unit-a")
    else:
        commit(cache)
        assert open_cache(cache.path).units == ["unit-a"]
        assert "quarantine" in next(iter(problems(open_cache(cache.path))))


def test_a_unit_without_receipt_or_of_another_run_is_not_there(cache):
    commit(cache)
    path = cache.path / UNITS / "unit-a" / "receipt.json"
    receipt = json.loads(path.read_text())
    path.write_text(json.dumps({**receipt, "run_id": "other"}))
    assert open_cache(cache.path).units == []
    path.write_text("{}")
    assert open_cache(cache.path).units == []
    path.unlink()
    assert open_cache(cache.path).units == []


def test_two_commits_of_one_unit_at_once_leave_one(cache):
    barrier, receipts, errors = threading.Barrier(4), [], []

    def work():
        barrier.wait()
        try:
            receipts.append(commit(cache))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len({json.dumps(sorted(r.files)) for r in receipts}) == 1
    assert open_cache(cache.path).units == ["unit-a"]
    assert list(problems(open_cache(cache.path), deep=True)) == []


def test_another_run_is_refused_with_the_difference(cache):
    with pytest.raises(RunMismatchError, match=r"mask_ratio: 0\.9 there, 0\.8 asked"):
        create_cache(cache.path, "score", {"seed": 0, "mask_ratio": 0.8})
    assert create_cache(cache.path, "score", {"mask_ratio": 0.9, "seed": 0}).run_id == cache.run_id


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunMismatchError, match="holds no run"):
        create_cache(tmp_path, "score", {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_second_writer_is_refused_and_a_dead_one_taken_over(tmp_path):
    with (
        folder_lock(tmp_path),
        pytest.raises(LockedError, match=str(os.getpid())),
        folder_lock(tmp_path),
    ):
        pass
    with folder_lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_the_manifest_is_a_function_of_the_receipts(cache):
    commit(cache, "unit-b")
    commit(cache, "unit-a")
    cache.write_manifest()
    first = (cache.path / "manifest.parquet").read_bytes()
    open_cache(cache.path).write_manifest()
    assert (cache.path / "manifest.parquet").read_bytes() == first


def test_unit_names_hold_no_path():
    assert "/" not in unit_name("../../etc/passwd", "ab" * 32)
    assert unit_name("..", "ab" * 32) == "shard-abababababab"
    assert unit_name("train-0001", "ab" * 32) == "train-0001-abababababab"
