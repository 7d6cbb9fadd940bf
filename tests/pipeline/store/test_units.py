import json
import os
import threading

import numpy as np
import pytest
import zarr

from pipeline.store import open_cache
from pipeline.store.cache import create_cache
from pipeline.store.errors import DamagedUnitError, LockedError, RunMismatchError
from pipeline.store.manifest import UnitRow
from pipeline.store.records.checks import RowDigests, check_records
from pipeline.store.records.forms import FORMS
from pipeline.store.storage import UNITS
from pipeline.store.storage.lock import folder_lock
from pipeline.store.units import publish, seal, unit_name, write_errors
from pipeline.store.verify import problems
from stages.protocols import ArrayField, BadSample

FIELDS = {
    "key": ArrayField(dtype="string", shape=(), fill=""),
    "visible": ArrayField(
        dtype="uint8", shape=(2, 3), fill=255, delta=True, high=196, ascending=True
    ),
    "score": ArrayField(dtype="float16", shape=(2, 3), fill=float("nan")),
}


def arrays(count=10, seed=0):
    rng = np.random.default_rng(seed)
    visible = [[rng.choice(196, 3, replace=False) for _ in range(2)] for _ in range(count)]
    return {
        "key": np.array([f"k{i}" for i in range(count)], dtype=object),
        "visible": np.sort(np.array(visible).reshape(count, 2, 3)).astype(np.uint8),
        "score": rng.random((count, 2, 3)).astype(np.float16),
    }


UNIT = unit_name("unit-a.tar")


def commit(cache, shard="unit-a.tar", values=None, bad=()):
    """What a worker does with the rows of one shard."""
    name = unit_name(shard)
    values = values if values is not None else arrays()
    form = FORMS[cache.identity["store"]]
    digests = RowDigests(FIELDS)
    with cache.storage.staging(name) as staged:
        with form.writer(staged / form.file, FIELDS) as writer:
            digests.update(values)
            writer.append(values)
        check_records(staged / form.file, FIELDS, digests)
        write_errors(staged, list(bad))
        receipt = seal(
            staged,
            unit=name,
            run_id=cache.run_id,
            n_ok=len(values["key"]),
            bad=list(bad),
            input={"name": shard, "size": 1, "sha256": "0" * 64},
            damage=None,
        )
        receipt = publish(cache.storage, staged, receipt)
    cache.refresh()
    cache.write_manifest()
    return receipt


@pytest.fixture(params=["zarr", "webdataset"])
def store(request):
    return request.param


@pytest.fixture
def cache(tmp_path, store):
    identity = {"seed": 0, "mask_ratio": 0.9, "views": 2, "first_view": 0, "store": store}
    return create_cache(tmp_path / "cache", "score", identity)


def folder(cache):
    return cache.storage.path


def test_a_committed_unit_reads_back_and_obeys_the_conservation_law(cache):
    bad = [BadSample("k99", 512, "truncated", "OSError: cut")]
    receipt = commit(cache, bad=bad)
    assert (receipt.n_in, receipt.n_ok, receipt.n_bad) == (11, 10, 1)
    assert receipt.reasons == {"truncated": 1}
    opened = open_cache(cache.url)
    assert opened.units == [UNIT]
    stored = opened.read(UNIT)
    for name, values in arrays().items():
        assert np.array_equal(stored[name], values)
    assert not list((folder(cache) / ".attempt").iterdir())
    assert list(problems(opened, deep=True)) == []


@pytest.mark.parametrize("store", ["zarr"], indirect=True)
def test_any_zarr_reader_sees_plain_indices(cache):
    commit(cache)
    group = zarr.open_group(folder(cache) / UNITS / UNIT / "records.zarr", mode="r")
    assert np.array_equal(group["visible"][:], arrays()["visible"])


def test_a_unit_without_a_good_sample_commits_and_reads(cache):
    bad = [BadSample("k", 0, "empty", "no bytes")]
    assert commit(cache, values=arrays(0), bad=bad).n_ok == 0
    assert open_cache(cache.url).read(UNIT)["score"].shape == (0, 2, 3)


def test_writing_twice_gives_the_same_bytes_and_keeps_the_first(cache):
    first = commit(cache)
    stamp = (folder(cache) / UNITS / UNIT / "receipt.json").stat().st_mtime_ns
    second = commit(cache)
    assert first.files == second.files
    assert (folder(cache) / UNITS / UNIT / "receipt.json").stat().st_mtime_ns == stamp


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
    file = next(name for name in receipt.files if "score/c/" in name or name.endswith(".tar"))
    DAMAGES[damage](folder(cache) / UNITS / UNIT / file)
    opened = open_cache(cache.url)
    (fault,) = problems(opened, deep=True)
    assert fault.unit == UNIT
    with pytest.raises(DamagedUnitError, match=UNIT):
        opened.read(UNIT)
    commit(cache)
    whole = open_cache(cache.url)
    assert np.array_equal(whole.read(UNIT)["score"], arrays()["score"])
    (left,) = problems(whole, deep=True)
    assert "in quarantine" in left.what


def test_what_does_not_belong_is_reported_and_never_read(cache):
    commit(cache)
    (folder(cache) / "notes.txt").write_text("mine")
    (folder(cache) / UNITS / UNIT / "score.c.0.partial").write_bytes(b"half")
    (folder(cache) / UNITS / "loose.txt").write_text("?")
    (folder(cache) / ".attempt" / "unit-b.123").mkdir(parents=True)
    found = [fault.what for fault in problems(open_cache(cache.url))]
    assert len(found) == 4
    assert "loose.txt: receipt.json is missing" in found
    assert f"{UNIT}: stray file score.c.0.partial, delete it" in found
    assert any(line.startswith("notes.txt: stray") for line in found)
    assert any(line.startswith(".attempt/unit-b.123") for line in found)
    assert open_cache(cache.url).units == [UNIT]


def test_a_unit_that_was_done_and_is_not_whole_is_refused_and_not_left_out(cache):
    commit(cache)
    path = folder(cache) / UNITS / UNIT / "receipt.json"
    receipt = json.loads(path.read_text())
    for spoil, says in (
        (lambda: path.write_text(json.dumps({**receipt, "run_id": "other"})), "by run other"),
        (lambda: path.write_text("{}"), "receipt.json is unreadable"),
        (path.unlink, "manifest.parquet lists it"),
    ):
        spoil()
        opened = open_cache(cache.url)
        assert opened.rows == {}
        with pytest.raises(DamagedUnitError, match=f"{UNIT}: .*{says}"):
            opened.units  # noqa: B018
    (folder(cache) / "manifest.parquet").unlink()
    assert open_cache(cache.url).units == []  # one that never was done


def test_two_commits_of_one_unit_at_once_leave_one(cache):
    barrier, receipts, errors = threading.Barrier(4), [], []

    def work():
        barrier.wait()
        try:
            receipts.append(commit(open_cache(cache.url)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert all(receipt == receipts[0] for receipt in receipts)
    assert open_cache(cache.url).units == [UNIT]
    assert list(problems(open_cache(cache.url), deep=True)) == []


def test_another_run_is_refused_with_the_difference(cache):
    options = {name: cache.identity[name] for name in reversed(cache.identity)}
    options.pop("schema"), options.pop("stage")
    with pytest.raises(RunMismatchError, match=r"mask_ratio: 0\.9 there, 0\.8 asked"):
        create_cache(cache.url, "score", {**options, "mask_ratio": 0.8})
    assert create_cache(cache.url, "score", options).run_id == cache.run_id


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
    commit(cache, "unit-b.tar")
    commit(cache)
    cache.write_manifest()
    first = (folder(cache) / "manifest.parquet").read_bytes()
    open_cache(cache.url).write_manifest()
    assert (folder(cache) / "manifest.parquet").read_bytes() == first


def test_the_manifest_is_a_table_of_the_receipts(cache):
    commit(cache, bad=[BadSample("k99", 512, "truncated", "OSError: cut")])
    (row,) = open_cache(cache.url).manifest.to_pylist()
    assert (row["unit"], row["shard"], row["n_in"]) == (UNIT, "unit-a.tar", 11)
    assert json.loads(row["reasons"]) == {"truncated": 1}
    assert UnitRow(**row) == open_cache(cache.url).rows[UNIT]


def test_unit_names_hold_no_path_and_differ_where_shards_do():
    assert "/" not in unit_name("../../etc/passwd")
    assert unit_name("..").startswith("shard-")
    assert unit_name("train-0001.tar").startswith("train-0001-")
    assert unit_name("a b.tar") != unit_name("a_b.tar")
    assert unit_name("train.tar") != unit_name("train")
    assert len(unit_name("x" * 400)) < 100
