"""What is staged is what was scored: joined by key, once, and wrong input is named."""

import json
import multiprocessing
import os
import signal
import tarfile
from contextlib import contextmanager

import pytest
from conftest import jpeg, write_tar
from PIL import Image
from scored_caches import (
    QUIET,
    assert_same_records,
    scored,
    staged,
    truth,
    write_images,
    write_tars,
)
from skimage import data

from ltrp_core.errors import RequestError
from pipeline.inputs import find_shards
from pipeline.store import open_cache
from pipeline.store.cache import create_cache
from pipeline.store.errors import DamagedUnitError
from pipeline.training_data import StagedRecords, check_cache, stage_records
from pipeline.training_data.extents import ExtentReader
from pipeline.training_data.image_places import image_places

FORK = multiprocessing.get_context("fork")


class Watched:
    """Progress that writes down what it sees, and may end the process at some point of it."""

    def __init__(self, log, kill_at=None):
        self.log, self.kill_at, self.seen = log, kill_at, 0

    @contextmanager
    def task(self, name, total, unit):
        with self.log.open("a") as log:
            log.write(f"{name}\n")
        yield self

    def advance(self, amount=1, **facts):
        self.seen += 1
        if self.seen == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def tars(photographs, tmp_path_factory):
    return write_tars(tmp_path_factory.mktemp("tars"), photographs)


@pytest.fixture(scope="module")
def with_pixels(tars, small_mae, tmp_path_factory):
    return scored(tmp_path_factory.mktemp("cache") / "pixels", tars, small_mae, pixels=True)


@pytest.fixture(scope="module")
def plain(tars, small_mae, tmp_path_factory):
    return scored(tmp_path_factory.mktemp("cache") / "plain", tars, small_mae)


@pytest.fixture
def copies(photographs, tmp_path):
    """Tars of the photographs that a test may change."""
    return write_tars(tmp_path / "copies", photographs)


def log_of(tmp_path):
    log = tmp_path / "log"
    return log.read_text().splitlines() if log.exists() else []


def stage(cache, shards, tmp_path, **options):
    progress = Watched(tmp_path / "log")
    return stage_records(cache, shards, tmp_path / "s", progress=progress, **options)


def refusal(cache, shards, folder):
    """The one line that both the check and the staging complain with."""
    with pytest.raises(RequestError) as of_check:
        check_cache(cache, shards)
    with pytest.raises(RequestError) as of_stage:
        stage_records(cache, shards, folder, progress=QUIET)
    assert str(of_check.value) == str(of_stage.value)
    assert "\n" not in str(of_check.value)
    return str(of_check.value)


def test_a_second_call_finds_everything_ready(plain, tars, tmp_path):
    stage(plain, tars, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}
    assert log_of(tmp_path) == ["stage records", "read images"]
    stage(open_cache(plain.url), tars, tmp_path)
    assert log_of(tmp_path) == ["stage records", "read images"]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}


def test_other_inputs_are_staged_anew(plain, with_pixels, tars, copies, tmp_path):
    calls = [
        lambda: stage(plain, tars, tmp_path),
        lambda: stage(plain, copies, tmp_path),
        lambda: stage(plain, copies, tmp_path, views_bytes=0),
        lambda: stage(with_pixels, copies, tmp_path, views_bytes=0),
        lambda: stage(with_pixels, [], tmp_path, views_bytes=0),
    ]
    for number, call in enumerate(calls, 1):
        call()
        call()
        assert log_of(tmp_path).count("stage records") == number
        assert_same_records(StagedRecords(tmp_path / "s"), truth(with_pixels))
    assert not (tmp_path / "s" / "images.npy").exists()


def test_a_shard_that_was_written_again_is_read_again(plain, copies, tmp_path):
    stage(plain, copies, tmp_path)
    path = tmp_path / "copies" / "part-2.tar"
    content = bytearray(path.read_bytes())
    content[content.rindex(b"\xff\xd9") - 1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(RequestError, match=r"part-2\.tar changed since.*in other bytes"):
        stage(plain, find_shards([str(tmp_path / "copies")]), tmp_path)


def test_views_that_were_appended_since_are_staged(tars, small_mae, tmp_path):
    first = scored(tmp_path / "c", tars, small_mae, views=1, pixels=True)
    assert staged(first, [], tmp_path / "s").run.views == 1
    more = scored(tmp_path / "c", tars, small_mae, views=1, append=1, pixels=True)
    records = staged(more, [], tmp_path / "s")
    assert records.run.views == 2
    assert_same_records(records, truth(more))


@pytest.mark.parametrize("kill_at", [1, 3, 5, 7, 9])
def test_killed_half_way_leaves_nothing_that_is_trusted(with_pixels, tars, kill_at, tmp_path):
    """One process is killed in the arrays, the pixels or the images, the next one does all."""

    def work():
        progress = Watched(tmp_path / "log", kill_at)
        stage_records(with_pixels, tars, tmp_path / "s", progress=progress)

    process = FORK.Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(FileNotFoundError):
        StagedRecords(tmp_path / "s")
    stage(with_pixels, tars, tmp_path)
    assert log_of(tmp_path)[-3:] == ["stage records", "stage pixels", "read images"]
    assert_same_records(StagedRecords(tmp_path / "s"), truth(with_pixels))


def test_a_marker_that_is_cut_is_not_trusted(with_pixels, tmp_path):
    stage(with_pixels, [], tmp_path)
    marker = tmp_path / "s" / "staged.json"
    marker.write_bytes(marker.read_bytes()[:100])
    stage(with_pixels, [], tmp_path)
    assert log_of(tmp_path).count("stage records") == 2


def test_processes_that_start_at_once_stage_once(with_pixels, tars, tmp_path):
    barrier = FORK.Barrier(3)

    def work():
        barrier.wait()
        progress = Watched(tmp_path / "log")
        folder = stage_records(with_pixels, tars, tmp_path / "s", progress=progress)
        assert_same_records(StagedRecords(folder), truth(with_pixels))

    processes = [FORK.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log_of(tmp_path) == ["stage records", "stage pixels", "read images"]


def test_shards_may_be_named_in_any_order_and_more_than_were_scored(
    plain, with_pixels, copies, photographs, tmp_path
):
    write_tar(tmp_path / "copies" / "other.tar", [("x.jpg", photographs["cat_1"])])
    shards = find_shards([str(tmp_path / "copies")])[::-1]
    assert_same_records(staged(plain, shards, tmp_path / "s"), truth(with_pixels))


def test_members_join_by_key_not_by_their_place_in_the_shard(plain, tars, tmp_path):
    """The rows of the cache in another order than the members of the tar."""
    unit = plain.units[0]
    keys = plain.read(unit)["key"].tolist()
    rows = {key: 10 + place for place, key in enumerate(reversed(keys))}
    rendered = []
    places = image_places(
        tars[0], plain.rows[unit], rows, plain.read(unit)["size"][::-1], tmp_path,
        render=lambda sample: rendered.append(sample.key),
    )  # fmt: skip
    with tarfile.open(tars[0].path) as tar:
        for place, key in enumerate(reversed(keys)):
            content = tar.extractfile(f"{key}.jpg").read()
            assert ExtentReader(places).read(place) == content
    assert sorted(rendered) == keys


def test_members_in_another_order_are_another_shard(plain, photographs, copies, tmp_path):
    names = sorted(photographs)[:4]
    members = [(f"{name}.jpg", photographs[name]) for name in reversed(names)]
    write_tar(tmp_path / "copies" / "part-0.tar", members)
    with pytest.raises(RequestError, match=r"part-0\.tar changed since.*in other bytes"):
        staged(plain, copies, tmp_path / "s")


def test_keys_that_changed_places_are_another_shard(plain, photographs, copies, tmp_path):
    """Two images under each other's name: joined by key they would be taken for one another."""
    first, second, *others = sorted(photographs)[:4]
    swapped = {first: second, second: first, **{name: name for name in others}}
    members = [(f"{name}.jpg", photographs[of]) for name, of in swapped.items()]
    write_tar(tmp_path / "copies" / "part-0.tar", members)
    with pytest.raises(RequestError, match=r"part-0\.tar changed since"):
        staged(plain, find_shards([str(tmp_path / "copies")]), tmp_path / "s")


@pytest.mark.parametrize("same_size", [True, False])
def test_a_missing_image_is_named(plain, photographs, copies, same_size, tmp_path):
    """In a tar of as many bytes as before only reading it shows; in another its size does."""
    names = sorted(photographs)[4:8]
    gone = names[1]
    members = [(f"{name}.jpg", photographs[name]) for name in names]
    if same_size:
        members[1] = ("renamed.jpg", members[1][1])
    else:
        del members[1]
    write_tar(tmp_path / "copies" / "part-1.tar", members)
    shards = find_shards([str(tmp_path / "copies")])
    if same_size:
        with pytest.raises(RequestError) as raised:
            staged(plain, shards, tmp_path / "s")
        message = str(raised.value)
    else:
        message = refusal(plain, shards, tmp_path / "s")
    for part in (repr(gone), "is not in it", str(tmp_path / "copies" / "part-1.tar")):
        assert part in message
    assert names[0] not in message


@pytest.mark.parametrize("views_bytes", [0, 2 << 30])
def test_a_changed_image_of_another_size_is_named(
    plain, photographs, copies, views_bytes, tmp_path
):
    """As many bytes as before, so that nothing shows before the shard is read."""
    names = sorted(photographs)[:4]
    small = jpeg(data.astronaut()[:60, :70])
    small += bytes(len(photographs[names[2]]) - len(small))
    members = [(f"{name}.jpg", photographs[name]) for name in names]
    members[2] = (f"{names[2]}.jpg", small)
    write_tar(tmp_path / "copies" / "part-0.tar", members)
    with pytest.raises(RequestError) as raised:
        staged(plain, copies, tmp_path / "s", views_bytes=views_bytes)
    message = str(raised.value)
    for part in (repr(names[2]), "180 x 150 px", "70 x 60 px", copies[0].path):
        assert part in message


def test_an_image_that_is_none_any_more_is_named(plain, photographs, copies, tmp_path):
    names = sorted(photographs)[:4]
    members = [(f"{name}.jpg", photographs[name]) for name in names]
    members[3] = (members[3][0], bytes(len(members[3][1])))
    write_tar(tmp_path / "copies" / "part-0.tar", members)
    with pytest.raises(RequestError, match=f"'{names[3]}' was scored with 180 x 150 px and is no"):
        staged(plain, copies, tmp_path / "s")


@pytest.mark.parametrize("change", ["removed", "resized", "rewritten"])
def test_a_changed_image_of_a_folder_is_named(photographs, small_mae, change, tmp_path):
    cache = scored(tmp_path / "c", write_images(tmp_path / "photos", photographs), small_mae)
    path = tmp_path / "photos" / "cat_2.jpg"
    if change == "removed":
        path.unlink()
    elif change == "resized":
        Image.fromarray(data.astronaut()[:60, :70]).save(path)
    else:
        path.write_bytes(path.read_bytes()[:-2] + b"\0\0")
    shards = find_shards([str(tmp_path / "photos")], unit_size=5)
    with pytest.raises(RequestError) as raised:
        staged(cache, shards, tmp_path / "s")
    assert str(tmp_path / "photos") in str(raised.value)
    assert ("'cat_2'" in str(raised.value)) == (change != "rewritten")


def test_a_shard_that_is_not_given_is_named(plain, tars, tmp_path):
    message = refusal(plain, tars[:2], tmp_path / "s")
    assert "part-2.tar" in message
    assert "--shards" in message


@pytest.fixture
def committed_empty(monkeypatch):
    """Units without one image are committed, as earlier versions did."""
    monkeypatch.setattr("pipeline.units.work.check_any_good", lambda shard, bad: None)


@pytest.mark.usefixtures("committed_empty")
def test_images_that_could_not_be_scored_are_left_out(photographs, small_mae, tmp_path):
    """A member without a row: rows and members have other numbers."""
    folder = tmp_path / "tars"
    folder.mkdir()
    names = sorted(photographs)[:3]
    members = [(f"{name}.jpg", photographs[name]) for name in names]
    write_tar(folder / "part.tar", [("a.jpg", b"no image"), members[0], ("b.jpg", b""),
                                    *members[1:], ("notes.txt", b"x")])  # fmt: skip
    write_tar(folder / "void.tar", [("none.jpg", b"no image")])
    shards = find_shards([str(folder)])
    cache = scored(tmp_path / "c", shards, small_mae)
    expected = truth(scored(tmp_path / "p", shards, small_mae, pixels=True))
    for views_bytes in (0, 2 << 30):
        records = staged(cache, shards, tmp_path / f"s{views_bytes}", views_bytes=views_bytes)
        assert records.starts.tolist() == [0, 3, 3]
        assert_same_records(records, expected)


def test_one_key_in_two_units_is_refused(photographs, small_mae, tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    for number, names in enumerate((("cat_0", "cat_1"), ("cat_1", "cat_2"))):
        members = [(f"{name}.jpg", photographs[name]) for name in names]
        write_tar(folder / f"{number}.tar", members)
    cache = scored(tmp_path / "c", find_shards([str(folder)]), small_mae, pixels=True)
    with pytest.raises(RequestError, match="key 'cat_1' stands in two units"):
        staged(cache, [], tmp_path / "s")
    with pytest.raises(FileNotFoundError):
        StagedRecords(tmp_path / "s")


def test_no_images_and_no_pixels_are_refused(plain, tmp_path):
    message = refusal(plain, [], tmp_path / "s")
    assert "--shards" in message
    assert "--pixels" in message
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("committed_empty")
def test_a_cache_without_images_is_refused(small_mae, tmp_path):
    write_tar(tmp_path / "void.tar", [("none.jpg", b"no image")])
    shards = find_shards([str(tmp_path / "void.tar")])
    cache = scored(tmp_path / "c", shards, small_mae)
    assert "holds no scored image" in refusal(cache, shards, tmp_path / "s")


def test_another_kind_of_cache_is_refused(plain, tmp_path):
    other = create_cache(tmp_path / "c", "select", {"store": "zarr"})
    message = refusal(other, [], tmp_path / "s")
    assert "'select' cache" in message
    assert "ltrp-pipeline score" in message


@pytest.mark.parametrize("store", ["zarr", "webdataset"])
def test_pixels_that_are_damaged_are_named(tars, small_mae, store, tmp_path):
    """Of the size they had, so that only reading them shows it."""
    cache = scored(tmp_path / "c", tars, small_mae, store=store, pixels=True)
    name = "records.zarr/pixels/c/0" + "/0" * 6 if store == "zarr" else "records.tar"
    path = tmp_path / "c" / "units" / cache.units[1] / name
    content = bytearray(path.read_bytes())
    content[-12 if store == "zarr" else 1030] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedUnitError) as raised:
        staged(cache, [], tmp_path / "s")
    assert cache.units[1] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_pixels_of_fewer_rows_than_the_unit_has_are_named(tars, small_mae, tmp_path):
    """They would shift the pixels of all units behind it."""
    cache = scored(tmp_path / "c", tars, small_mae, pixels=True)
    path = tmp_path / "c" / "units" / cache.units[0] / "records.zarr/pixels/zarr.json"
    described = json.loads(path.read_text())
    described["shape"][0] -= 1
    path.write_text(json.dumps(described))
    with pytest.raises(DamagedUnitError, match=f"{cache.units[0]}: .*pixels/zarr.json has another"):
        staged(cache, [], tmp_path / "s")
