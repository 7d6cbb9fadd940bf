"""Names that a store or a receipt brings are data: none leads out of where it belongs."""

import pytest
from command_line import run
from s3_server import s3_bucket

from pipeline.store import open_cache
from pipeline.store.storage import UnsafeNameError, open_storage
from pipeline.store.storage.local import LocalStorage

UNSAFE = ("../x", "a/../../x", "/x", "a//x", "a/./x", "..", "a\0b")


@pytest.fixture(scope="module")
def bucket():
    with s3_bucket() as url:
        yield url


@pytest.fixture
def cache(bucket, shards, small_mae, request):
    url = f"{bucket}/{request.node.name[:40]}"
    run("score", "--shards", shards / "part-0.tar", "--mae", small_mae, "--out", url,
        "--partitions", 1)  # fmt: skip
    return url


def plant(url: str, name: str) -> str:
    """Puts an object whose key leads out of the records below which it lies."""
    place = open_storage(url)
    unit = open_cache(url).units[0]
    records, _ = open_cache(url).receipt(unit).records
    key = f"{place.root}/units/{unit}/{records}/{name}"
    place.fs.pipe_file(key, b"planted")
    return key


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_an_object_that_no_receipt_lists_is_not_fetched(cache, command, tmp_path, monkeypatch):
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(fetched))
    plant(cache, "../../escaped")
    plant(cache, "stray")
    if command == "verify":
        out, _ = run("verify", cache, "--deep", expect=1)
        assert "stray file" in out
    else:
        run("inspect", cache, open_cache(cache).units[0])
    assert list(fetched.iterdir()) == []


def test_what_is_copied_whole_is_looked_at_before_anything_is_written(cache, tmp_path):
    place = open_storage(cache)
    unit = open_cache(cache).units[0]
    records, _ = open_cache(cache).receipt(unit).records
    plant(cache, "../../../../escaped")
    with (
        pytest.raises(UnsafeNameError, match="leads out of it"),
        place.local_copy(f"units/{unit}/{records}"),
    ):
        pass


@pytest.mark.parametrize("name", UNSAFE)
def test_no_operation_of_a_place_takes_a_name_that_leads_out(bucket, name, tmp_path):
    for place in (LocalStorage(tmp_path / "cache"), open_storage(f"{bucket}/cache")):
        for operation in (
            lambda place: place.read(name),
            lambda place: place.read_many([name]),
            lambda place: place.replace(name, b"x"),
            lambda place: place.create(name, b"x"),
            lambda place: place.remove(name),
            lambda place: place.sizes(name),
            lambda place: place.names(name),
            lambda place: place.local_copy(name).__enter__(),
        ):
            with pytest.raises(UnsafeNameError):
                operation(place)
    assert list(tmp_path.rglob("*")) == []
