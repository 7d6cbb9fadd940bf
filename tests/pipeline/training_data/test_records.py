"""Records of a staged cache are those of the cache, whatever form it has and wherever it lies."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from s3_server import s3_bucket
from scored_caches import (
    assert_same_records,
    every_record,
    scored,
    staged,
    truth,
    write_images,
    write_tars,
)

from ltrp_core.errors import RequestError
from pipeline.inputs import find_shards
from pipeline.store import open_cache
from pipeline.store.errors import DamagedUnitError
from pipeline.store.records import zarr_records
from pipeline.store.storage import open_storage
from pipeline.training_data import StagedRecords

OPTIONS = {
    "two views": {},
    "appended views": {"views": 1, "append": 2},
    "covering views": {"views": 1, "sampler": "cover", "partitions": 12},
}
RENDERED, REPLAYED = 2 << 30, 0


@pytest.fixture(scope="module")
def inputs(photographs, tmp_path_factory):
    """The photographs as tars and as a folder; numbers of units and rows in them differ."""
    folder = tmp_path_factory.mktemp("inputs")
    tars = write_tars(folder / "tars", photographs)
    return {"tars": tars, "folder": write_images(folder / "photos", photographs)}


@pytest.fixture(scope="module")
def caches(inputs, small_mae, tmp_path_factory):
    """Returns a cache by (input, options, store, pixels), made once."""
    folder, made = tmp_path_factory.mktemp("caches"), {}

    def cache(source="tars", views="two views", store="zarr", pixels=True):
        name = "-".join(map(str, (source, views, store, pixels)))
        if name not in made:
            options = {**OPTIONS[views], "store": store, "pixels": pixels}
            made[name] = scored(folder / name, inputs[source], small_mae, **options)
        return made[name]

    return cache


@pytest.mark.parametrize("store", ["zarr", "webdataset"])
@pytest.mark.parametrize(
    ("source", "views"),
    [("tars", "two views"), ("folder", "appended views"), ("tars", "covering views")],
)
def test_stored_pixels_are_those_of_the_cache(caches, source, store, views, tmp_path):
    cache = caches(source, views, store)
    records = staged(cache, [], tmp_path / "s")
    assert records.is_decoded
    assert records.has_whole_views == (views == "covering views")
    assert_same_records(records, truth(cache))


@pytest.mark.parametrize("views_bytes", [RENDERED, REPLAYED])
@pytest.mark.parametrize(("source", "views"), [("tars", "two views"), ("folder", "appended views")])
def test_pixels_of_images_are_those_that_were_scored(
    caches, inputs, source, views_bytes, views, tmp_path
):
    cache = caches(source, views, pixels=False)
    records = staged(cache, inputs[source], tmp_path / "s", views_bytes=views_bytes)
    assert records.is_decoded == (views_bytes == RENDERED)
    assert_same_records(records, truth(caches(source, views)))


def test_pixels_in_several_files_a_unit(caches, inputs, small_mae, monkeypatch, tmp_path):
    """Two rows a chunk, four a file, a last chunk that is not full."""
    monkeypatch.setattr(zarr_records, "_CHUNK_BYTES", 8000)
    monkeypatch.setattr(zarr_records, "_SHARD_CHUNKS", 2)
    cache = scored(tmp_path / "c", inputs["folder"], small_mae, pixels=True)
    files = [file.name for file in (tmp_path / "c").glob("units/*/records.zarr/pixels/c/*")]
    assert sorted(files) == ["0", "0", "0", "1", "1"]
    assert_same_records(staged(cache, [], tmp_path / "s"), truth(caches("folder")))


def test_pixels_are_taken_before_images_and_whole_views_from_images(caches, inputs, tmp_path):
    records = staged(caches(), inputs["tars"], tmp_path / "s", views_bytes=REPLAYED)
    assert records.is_decoded
    assert records.has_whole_views
    assert_same_records(records, truth(caches()))
    assert_whole(records, truth(caches()))


@pytest.mark.parametrize("views_bytes", [RENDERED, REPLAYED])
def test_whole_views_hold_every_visible_patch_in_its_place(caches, inputs, views_bytes, tmp_path):
    cache = caches(pixels=False)
    records = staged(cache, inputs["tars"], tmp_path / "s", views_bytes=views_bytes)
    assert_whole(records, truth(caches()))


def test_whole_views_come_from_stored_patches_that_cover_them(caches, inputs, tmp_path):
    stored = staged(caches(views="covering views"), [], tmp_path / "pixels")
    assert stored.has_whole_views
    assert_whole(stored, truth(caches(views="covering views")))
    cache = caches(views="covering views", pixels=False)
    replayed = staged(cache, inputs["tars"], tmp_path / "images", views_bytes=REPLAYED)
    rows, view = np.arange(len(stored)), np.zeros(len(stored), np.int64)
    np.testing.assert_array_equal(stored.whole_views(rows, view), replayed.whole_views(rows, view))


def assert_whole(records, expected):
    sample, record = every_record(records)
    view = record // records.run.partitions
    whole = records.whole_views(sample, view)
    assert whole.shape == (len(sample), 36, 192)
    for row, number, patches in zip(sample.tolist(), record.tolist(), whole, strict=True):
        visible, _, pixels = expected[records.keys[row], number]
        np.testing.assert_array_equal(patches[visible], pixels)


def test_whole_views_that_are_not_known_are_refused(caches, tmp_path):
    records = staged(caches(), [], tmp_path / "s")
    with pytest.raises(RequestError, match=r"only the visible patches.*--shards"):
        records.whole_views(np.array([0]), np.array([0]))


def test_records_may_be_asked_for_several_times_and_none_at_all(caches, tmp_path):
    records = staged(caches(), [], tmp_path / "s")
    rows, record = np.array([3, 3, 0, 3]), np.array([5, 5, 0, 1])
    patches = records.visible_patches(rows, record)
    np.testing.assert_array_equal(patches[0], patches[1])
    nothing = np.zeros(0, np.int64)
    assert records.visible_patches(nothing, nothing).shape == (0, 3, 192)
    assert records.lists(nothing, nothing)[0].shape == (0, 3)


def test_units_and_rows_are_those_of_the_cache(caches, tmp_path):
    cache = caches("folder")
    records = staged(cache, [], tmp_path / "s")
    assert list(records.units) == list(cache.units)
    assert records.starts.tolist() == [0, 5, 10, 12]
    assert len(records) == 12
    for unit, start, stop in zip(records.units, records.starts, records.starts[1:], strict=False):
        assert records.keys[start:stop] == cache.read(unit)["key"].tolist()
    assert dict(records.identity) == dict(cache.run)


def test_a_pickled_copy_is_small_and_reads_the_same(caches, tmp_path):
    records = staged(caches(), [], tmp_path / "s")
    sample, record = every_record(records)
    before = records.visible_patches(sample, record)
    text = pickle.dumps(records)
    assert len(text) < 500
    copy = pickle.loads(text)
    records.close()
    np.testing.assert_array_equal(copy.visible_patches(sample, record), before)
    assert copy.keys == records.keys
    # What was closed opens again.
    np.testing.assert_array_equal(records.visible_patches(sample, record), before)


def test_records_that_were_staged_are_read_by_the_folders_name_alone(caches, tmp_path):
    cache = caches()
    staged(cache, [], tmp_path / "s")
    assert_same_records(StagedRecords(tmp_path / "s"), truth(cache))


@pytest.mark.parametrize("store", ["zarr", "webdataset"])
def test_pixels_that_are_cut_or_gone_are_named(inputs, small_mae, store, tmp_path):
    cache = scored(tmp_path / "c", inputs["tars"], small_mae, store=store, pixels=True)
    records = staged(cache, [], tmp_path / "s")
    unit = cache.units[1]
    name = "records.zarr/pixels/c/0" if store == "zarr" else "records.tar"
    (file,) = (tmp_path / "c" / "units" / unit).rglob(name + ("/0" * 6 if store == "zarr" else ""))
    whole = records.visible_patches(*every_record(records))
    content = file.read_bytes()
    last = np.array([records.starts[2] - 1]), np.array([5])
    with file.open("r+b") as opened:
        opened.truncate(1000)
    with pytest.raises(DamagedUnitError) as raised:
        records.visible_patches(*last)
    message = str(raised.value)
    assert "\n" not in message
    for part in (unit, repr(records.keys[int(last[0][0])]), str(file), "ends before byte",
                 f"verify {tmp_path / 'c'} --deep"):  # fmt: skip
        assert part in message
    file.unlink()
    with pytest.raises(DamagedUnitError, match="No such file"):
        StagedRecords(tmp_path / "s").visible_patches(*last)
    file.write_bytes(content)
    again = StagedRecords(tmp_path / "s")
    np.testing.assert_array_equal(again.visible_patches(*every_record(again)), whole)


def test_an_image_that_changes_after_staging_is_named(photographs, small_mae, tmp_path):
    shards = write_tars(tmp_path / "tars", photographs)
    cache = scored(tmp_path / "c", shards, small_mae)
    records = staged(cache, shards, tmp_path / "s", views_bytes=REPLAYED)
    path = tmp_path / "tars" / "part-1.tar"
    row = int(records.starts[2]) - 1

    def complaint():
        fresh = StagedRecords(tmp_path / "s")
        fresh.visible_patches(np.array([0]), np.array([0]))  # of another tar: still there
        with pytest.raises(RequestError) as raised:
            fresh.visible_patches(np.array([row]), np.array([0]))
        message = str(raised.value)
        assert "\n" not in message
        for part in (repr(records.keys[row]), records.units[1], str(path)):
            assert part in message
        return message

    whole = path.read_bytes()
    path.write_bytes(whole[:2000])
    assert "ends before byte" in complaint()
    name = records.keys[row]
    place = whole.index(photographs[name])
    garbage = bytearray(whole)
    garbage[place : place + 600] = bytes(600)
    path.write_bytes(garbage)
    assert "no image" in complaint()
    path.unlink()
    assert "No such file" in complaint()


@pytest.fixture(scope="module")
def s3():
    """URL of an empty bucket."""
    with s3_bucket() as url:
        yield url


@pytest.mark.parametrize("store", ["zarr", "webdataset"])
def test_pixels_of_an_object_store_are_brought_near(caches, s3, store, tmp_path):
    cache = caches(views="appended views", store=store)
    open_storage(f"{s3}/{store}").upload(cache.storage.path, "")
    remote = open_cache(f"{s3}/{store}")
    records = staged(remote, [], tmp_path / "s")
    remote.storage.remove("units")
    assert_same_records(records, truth(cache))


@pytest.mark.parametrize("views_bytes", [RENDERED, REPLAYED])
def test_images_of_an_object_store_are_brought_near(caches, inputs, s3, views_bytes, tmp_path):
    folder = Path(inputs["tars"][0].path).parent
    url = f"{s3}/shards-{views_bytes}"
    open_storage(url).upload(folder, "")
    cache = caches(pixels=False)
    records = staged(cache, find_shards([url]), tmp_path / "s", views_bytes=views_bytes)
    open_storage(url).remove("part-0.tar")
    assert_same_records(records, truth(caches()))
