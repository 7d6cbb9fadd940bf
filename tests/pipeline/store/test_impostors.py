"""A unit in another's place is whole by itself: receipt, folder, shard and manifest must agree."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import one_line_error, run
from faults.driver import fingerprint
from scored_caches import QUIET, scored, staged, write_tars
from selected_caches import write_selections

from pipeline.inspection.status import format_status, read_status
from pipeline.store import open_cache
from pipeline.store.convert import convert
from pipeline.store.errors import DamagedUnitError
from pipeline.store.replay import match_shards
from pipeline.store.storage import open_storage
from pipeline.store.units import unit_name
from pipeline.store.verify import problems
from pipeline.training.folder import DiskTrainingFolder
from pipeline.units.run import run_append_views
from pipeline.units.selection_table import write_selection_table
from pipeline.workers import InProcessPool

A, B, C = (unit_name(f"part-{number}.tar") for number in range(3))


@pytest.fixture(scope="module")
def tars(photographs, tmp_path_factory):
    return write_tars(tmp_path_factory.mktemp("tars"), photographs)


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def whole(request, tars, small_mae, tmp_path_factory):
    """A finished cache of three units, with a view appended to each."""
    out = tmp_path_factory.mktemp("whole") / "cache"
    scored(out, tars, small_mae, store=request.param, append=1, pixels=True)
    return out


@pytest.fixture
def cache(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "cache")


def overwrite(folder, unit=B, by=A):
    """What `rm -r B; cp -r A B` does."""
    shutil.rmtree(folder / unit)
    shutil.copytree(folder / by, folder / unit)


def swap(folder):
    (folder / A).rename(folder / "aside")
    (folder / B).rename(folder / A)
    (folder / "aside").rename(folder / B)


def faults(cache, deep=False):
    return [(fault.what, fault.unit) for fault in problems(open_cache(cache), deep=deep)]


def score_again(cache, tars, small_mae):
    identity = open_cache(cache).identity
    scored(cache, tars, small_mae, store=str(identity["store"]), pixels=True)


@pytest.mark.parametrize("deep", [False, True])
def test_verify_says_which_unit_is_a_copy_of_which(cache, deep):
    overwrite(cache / "units")
    ((what, unit),) = faults(cache, deep)
    assert unit == B
    assert what.startswith(f"{B}: it holds unit {A}")


def test_verify_says_that_two_units_are_swapped_without_reading_them(cache):
    swap(cache / "units")
    found = faults(cache)
    assert [unit for _, unit in found] == [A, B]
    said = dict(zip((A, B), (what for what, _ in found), strict=True))
    assert f"{A}: it holds unit {B}" in said[A]
    assert f"{B}: it holds unit {A}" in said[B]


def test_scoring_again_makes_what_was_overwritten_and_leaves_the_others(cache, tars, small_mae):
    before = fingerprint(cache)
    stamp = (cache / "units" / A / "receipt.json").stat().st_mtime_ns
    overwrite(cache / "units")
    score_again(cache, tars, small_mae)
    assert (cache / "units" / A / "receipt.json").stat().st_mtime_ns == stamp
    (left,) = (cache / "quarantine").iterdir()
    assert left.name.startswith(B)
    assert json.loads((left / "receipt.json").read_text())["unit"] == A
    shutil.rmtree(cache / "quarantine")
    assert fingerprint(cache) == before
    swap(cache / "units")
    score_again(cache, tars, small_mae)
    shutil.rmtree(cache / "quarantine")
    assert fingerprint(cache) == before


READS = {
    "units": lambda cache, tars, _: cache.units,
    "read": lambda cache, tars, _: cache.read(B),
    "training": staged,
    "stored pixels": lambda cache, tars, folder: staged(cache, [], folder),
    "convert": lambda cache, tars, folder: convert(
        cache, str(folder), {"zarr": "webdataset", "webdataset": "zarr"}[cache.run["store"]], QUIET
    ),
    "replay": lambda cache, tars, _: match_shards(cache, tars),
}


@pytest.mark.parametrize("read", READS)
def test_every_reader_refuses_a_cache_with_a_unit_in_anothers_place(read, cache, tars, tmp_path):
    overwrite(cache / "units")
    with pytest.raises(DamagedUnitError, match=f"{B}.*it holds unit {A}"):
        READS[read](open_cache(cache), tars, tmp_path / "out")


def test_status_counts_a_copy_as_no_unit_and_names_it(cache):
    overwrite(cache / "units")
    status = read_status(open_cache(cache))
    assert {shard.shard: shard.state for shard in status.shards} == {
        "part-0.tar": "done", "part-1.tar": "pending", "part-2.tar": "done"}  # fmt: skip
    assert status.n_ok == 8
    assert f"problem  {B}: it holds unit {A}" in format_status(status)


def test_a_receipt_of_another_shard_under_a_changed_name_is_refused(cache):
    path = cache / "units" / B / "receipt.json"
    overwrite(cache / "units")
    path.write_text(json.dumps({**json.loads(path.read_text()), "unit": B}))
    ((what, unit),) = faults(cache)
    assert (unit, f"made of shard part-0.tar, whose unit is {A}" in what) == (B, True)


def rewritten(cache, unit, **changes):
    path = cache / "units" / unit / "receipt.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


WRONG_RECEIPTS = {
    "bad samples without errors.parquet": (
        {"n_in": 5, "n_bad": 1, "reasons": {"truncated": 1}}, "names no errors.parquet"),
    "bad samples without a reason": ({"n_in": 5, "n_bad": 1}, "0 have a reason"),
    "more samples than arrays": ({"n_in": 5, "n_ok": 5}, "5 records, there are 4"),
    "a file outside": ({"files": {"../../run.json": {"size": 1, "sha256": "0" * 64}}},
                       "unreadable: not a receipt: files"),
    "no records": ({"files": {}}, "names no records"),
    "a count that is a text": ({"n_ok": "4"}, "n_ok is '4'"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_RECEIPTS)
def test_a_receipt_that_does_not_agree_with_its_unit_is_named(wrong, cache):
    changes, says = WRONG_RECEIPTS[wrong]
    rewritten(cache, B, **changes)
    found = [what for what, unit in faults(cache) if unit == B]
    assert len(found) == 1
    assert says in found[0]
    with pytest.raises(DamagedUnitError, match=B):
        open_cache(cache).read(B)


def test_the_advice_after_a_repair_hides_nothing(cache, tars, small_mae):
    overwrite(cache / "units")
    out, _ = run("verify", cache, "--repair", expect=1)
    assert "1 unit(s) moved to quarantine" in out
    assert "2 complete units, 8 samples" in out
    out, _ = run("verify", cache, expect=1)
    assert f"no good unit {B} has taken its place yet: run the same command again" in out
    assert f"{B}: manifest.parquet lists it, and it is not there" in out
    assert "delete it" not in out
    with pytest.raises(DamagedUnitError, match=f"{B}: manifest.parquet lists it"):
        open_cache(cache).units  # noqa: B018
    score_again(cache, tars, small_mae)
    assert "a good unit has taken its place, delete it" in run("verify", cache, expect=1)[0]


def test_a_manifest_that_lists_a_unit_twice_or_otherwise_is_named(cache):
    path = cache / "manifest.parquet"
    table = pq.read_table(path)
    twice = pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2, 1)])
    pq.write_table(twice, path)
    said = " | ".join(what for what, _ in faults(cache))
    assert f"lists {A} 2 times" in said
    assert f"lacks 1 unit(s), e.g. {B}" in said
    rows = [{**row, "n_ok": 3} if row["unit"] == B else row for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    ((what, _),) = faults(cache)
    assert what.startswith(f"{B}: manifest.parquet and its receipt do not agree: n_ok 3 there, 4")


def test_units_of_appended_views_are_checked_and_repaired_too(cache, tars, small_mae):
    part = cache / "appended" / "views-00002"
    before = fingerprint(part)
    overwrite(part / "units")
    assert [what for what, _ in faults(cache)] == [
        f"appended/views-00002: {B}: it holds unit {A}: receipt.json says so (copied here, or the "
        f"two swapped); what belongs to {B} is not here",
        f"appended/views-00002: 1 unit(s) not appended yet, e.g. {B}; these views are not read "
        "until the same --append-views has finished",
    ]  # fmt: skip
    with pytest.raises(DamagedUnitError, match=f"views-00002: unit {B}"):
        open_cache(cache).units  # noqa: B018
    run("verify", cache, "--repair", expect=1)
    assert not (part / "units" / B).exists()
    run_append_views({"mae": str(small_mae)}, 1, tars, cache, InProcessPool(), QUIET)
    shutil.rmtree(part / "quarantine")
    assert fingerprint(part) == before


def test_appended_views_that_were_copied_are_not_read_as_further_ones(cache):
    shutil.copytree(cache / "appended" / "views-00002", cache / "appended" / "views-00003")
    with pytest.raises(DamagedUnitError, match="views-00003: it holds the views from 2 on"):
        open_cache(cache).read(A)
    assert any("views-00003: it holds the views from 2 on" in what for what, _ in faults(cache))


def test_views_are_not_appended_to_a_cache_with_a_damaged_unit(cache, tars, small_mae):
    overwrite(cache / "units")
    folder = str(tars[0].path).rsplit("/", 1)[0]
    message = one_line_error("score", "--shards", folder, "--mae", small_mae, "--out", cache,
                             "--append-views", 1)  # fmt: skip
    assert f"{B}: it holds unit {A}" in message
    assert not (cache / "appended" / "views-00003").exists()


def test_a_unit_in_anothers_place_is_refused_in_an_object_store_too(cache, tars, small_mae):
    url = f"memory://impostors-{cache.parent.name}"
    place = open_storage(url)
    scored(url, tars, small_mae)
    before = {name: place.read(name) for name in place.sizes("") if not name.startswith("log")}
    place.remove(f"units/{B}")
    for name in place.sizes(f"units/{A}"):
        place.replace(f"units/{B}/{name}", place.read(f"units/{A}/{name}"))
    ((what, unit),) = faults(url, deep=True)
    assert (unit, f"it holds unit {A}" in what) == (B, True)
    with pytest.raises(DamagedUnitError, match=B):
        open_cache(url).units  # noqa: B018
    scored(url, tars, small_mae)
    names = [name for name in before if name.startswith("units")]
    assert {name: place.read(name) for name in names} == {name: before[name] for name in names}
    place.remove("")


def test_a_checkpoint_of_another_run_is_not_gone_on_from(tmp_path):
    said = []
    folders = [DiskTrainingFolder(tmp_path / name, "train-ranker", on_note=said.append)
               for name in ("ours", "theirs")]  # fmt: skip
    for seed, folder in enumerate(folders):
        folder.open({"seed": seed})
        folder.checkpoint({"seed": seed, "history": []})
        folder.checkpoint({"seed": seed, "history": []})
    for suffix in (".pt", ".json"):
        name = f"checkpoints/000002{suffix}"
        shutil.copyfile(tmp_path / "theirs" / name, tmp_path / "ours" / name)
    (tmp_path / "ours" / "checkpoints" / "notes.json").write_text("{}")
    again = DiskTrainingFolder(tmp_path / "ours", "train-ranker", on_note=said.append)
    again.open({"seed": 0})
    assert again.resume()["seed"] == 0
    assert "000002.pt is damaged (it is of run" in said[0]


def test_a_table_of_selections_that_is_not_of_the_units_is_named(tmp_path):
    cache = write_selections(tmp_path / "cache", {"one": ["a", "b"], "two": ["c"]})
    cache.write_manifest()
    write_selection_table(cache)
    assert faults(tmp_path / "cache", deep=True) == []
    path = tmp_path / "cache" / "selections.parquet"
    file = pq.ParquetFile(path)
    table = file.read()
    heights = pa.array([31] * len(table), pa.int32())
    pq.write_table(table.set_column(2, "height", heights), path)
    ((what, unit),) = faults(tmp_path / "cache", deep=True)
    assert unit is None
    assert what.startswith("selections.parquet is not what the units say")
    raw = path.read_bytes()
    path.write_bytes(raw[:-20])
    ((what, _),) = faults(tmp_path / "cache")
    assert what.startswith("selections.parquet is damaged")
