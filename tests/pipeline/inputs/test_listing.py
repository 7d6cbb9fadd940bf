"""Which shards a pattern names, here and in object stores, and what listing them costs."""

import functools
import http.server
import logging
import threading

import fsspec
import pytest
from conftest import write_tar

from ltrp_core.errors import RequestError
from pipeline.inputs import find_shards
from pipeline.inputs.shards import FolderShard


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "a.tar"
    write_tar(path, [("a.jpg", b"a" * 3000), ("b.jpg", b"b" * 3000)])
    return path.read_bytes()


@pytest.fixture
def store(whole):
    fs = fsspec.filesystem("memory")
    names = ("/in/train/a.tar", "/in/train/b.tar", "/in/val/c.tar", "/in/photos/x/p.jpg")
    for name in names:
        fs.pipe(name, whole)
    yield fs
    fs.rm("/in", recursive=True)


def paths(*patterns):
    return [shard.path.removeprefix("memory:///in/") for shard in find_shards(patterns)]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("train", ["train/a.tar", "train/b.tar"]),
        ("train/", ["train/a.tar", "train/b.tar"]),
        ("train/*.tar", ["train/a.tar", "train/b.tar"]),
        ("train/{a,b}.tar", ["train/a.tar", "train/b.tar"]),
        ("val/c.tar", ["val/c.tar"]),
        ("{train,val}", ["train/a.tar", "train/b.tar", "val/c.tar"]),
        ("{train,val}/*.tar", ["train/a.tar", "train/b.tar", "val/c.tar"]),
        ("{train/a,val/c}.tar", ["train/a.tar", "val/c.tar"]),
        ("[tv]*", ["train/a.tar", "train/b.tar", "val/c.tar"]),
    ],
)
def test_an_object_store_takes_the_patterns_of_a_folder(store, pattern, names):
    assert paths(f"memory://in/{pattern}") == names


def test_the_scheme_may_be_in_capitals(store):
    assert paths("MEMORY://in/val") == ["val/c.tar"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("train/{a,zz}.tar", r"no file memory:///in/train/zz\.tar"),
        ("train/zz.tar", r"no file memory:///in/train/zz\.tar"),
        ("gone/{0..3}.tar", r"no file memory:///in/gone/0\.tar"),
        ("gone/*.tar", "matches nothing"),
        ("gone", "no file memory:///in/gone"),
    ],
)
def test_a_name_that_an_object_store_lacks_is_named(store, pattern, message):
    with pytest.raises(RequestError, match=message):
        find_shards([f"memory://in/{pattern}"])


def test_many_shards_cost_one_listing(store, whole, monkeypatch):
    for number in range(40):
        store.pipe(f"/in/many/{number:04d}.tar", whole)
    calls = []
    for name in ("ls", "info", "find"):
        real = getattr(type(store), name)

        def counted(self, *args, _name=name, _real=real, **kwargs):
            calls.append(_name)
            return _real(self, *args, **kwargs)

        monkeypatch.setattr(type(store), name, counted)
    monkeypatch.setattr("pipeline.inputs.listing.starts_as_tar", lambda _: True)
    assert len(find_shards(["memory://in/many/{0000..0039}.tar"])) == 40
    assert calls == ["ls"]


def test_images_in_an_object_store_become_units(store):
    (unit,) = find_shards(["memory://in/photos"])
    assert isinstance(unit, FolderShard)
    assert [member.key for member in unit.open()] == ["x/p"]


def test_a_store_that_cannot_be_reached_is_one_line(monkeypatch):
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match=r"cannot be listed: .*connect") as caught:
        find_shards(["s3://bucket/a.tar"])
    assert "\n" not in str(caught.value)


def test_shards_are_listed_and_read_from_a_real_s3_server(whole, monkeypatch):
    s3fs = pytest.importorskip("s3fs")
    moto_server = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        import boto3

        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        for name in ("t/0.tar", "t/1.tar", "v/2.tar"):
            client.put_object(Bucket="bucket", Key=name, Body=whole)
        found = find_shards(["s3://bucket/{t,v}/*.tar"])
        assert [shard.path for shard in found] == [
            f"s3://bucket/{name}" for name in ("t/0.tar", "t/1.tar", "v/2.tar")
        ]
        assert all(shard.size == len(whole) and shard.stamp for shard in found)
        assert [shard.path for shard in find_shards(["s3://bucket/t/{0..1}.tar"])] == [
            shard.path for shard in find_shards(["s3://bucket/t"])
        ]
        assert [member.key for member in found[2].open()] == ["a", "b"]
        with pytest.raises(RequestError, match=r"no file s3://bucket/t/2\.tar"):
            find_shards(["s3://bucket/t/{0..2}.tar"])
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def web(tmp_path, whole):
    """URL of a web server with one tar, and what was asked of it."""
    pytest.importorskip("aiohttp")
    (tmp_path / "a.tar").write_bytes(whole)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            asked.append("HEAD")
            super().do_HEAD()

        def do_GET(self):
            asked.append("GET")
            super().do_GET()

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.tar", asked
    server.shutdown()
    server.server_close()


def test_a_signed_address_names_one_file_and_listing_does_not_fetch_it(web, monkeypatch):
    url, asked = web
    monkeypatch.setattr("pipeline.inputs.listing.starts_as_tar", lambda _: True)
    (shard,) = find_shards([f"{url}?token=1*"])
    assert "GET" not in asked
    assert shard.name == "a.tar"
    assert [member.key for member in shard.open()] == ["a", "b"]


def test_a_list_in_braces_may_be_longer_than_a_path(tmp_path, whole):
    names = [f"a-rather-long-name-of-a-shard-{number:04d}" for number in range(40)]
    for name in names:
        (tmp_path / f"{name}.tar").write_bytes(whole)
    assert len(find_shards([f"{tmp_path}/{{{','.join(names)}}}.tar"])) == 40


def test_a_few_bad_shards_at_the_start_do_not_condemn_the_others(tmp_path, whole):
    for number in range(9):
        (tmp_path / f"{number}.tar").write_bytes(b"<html>" * 500 if number < 3 else whole)
    assert len(find_shards([str(tmp_path)])) == 9


def test_of_many_shards_that_are_none_only_a_few_beginnings_are_read(tmp_path, monkeypatch):
    import pipeline.inputs.listing as listing

    for number in range(50):
        (tmp_path / f"{number:02d}.tar").write_bytes(b"<html>" * 500)
    looked_at, real = [], listing.starts_as_tar
    monkeypatch.setattr(listing, "starts_as_tar", lambda s: looked_at.append(s) or real(s))
    with pytest.raises(RequestError, match="is not a tar nor are others"):
        find_shards([str(tmp_path)])
    assert len(looked_at) == 3


def test_a_folder_with_tars_is_not_searched_below(tmp_path, whole):
    (tmp_path / "a.tar").write_bytes(whole)
    (tmp_path / "._a.tar").write_bytes(b"of the system")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "below" / "b.tar").write_bytes(whole)
    assert [shard.name for shard in find_shards([str(tmp_path)])] == ["a.tar"]


def test_a_directory_or_dangling_link_named_as_a_tar_fails_alone(tmp_path, whole):
    (tmp_path / "a.tar").write_bytes(whole)
    (tmp_path / "b.tar").mkdir()
    (tmp_path / "c.tar").symlink_to(tmp_path / "nowhere")
    for pattern in (str(tmp_path), f"{tmp_path}/*.tar"):
        good, folder, dangling = find_shards([pattern])
        assert len(list(good.open())) == 2
        with pytest.raises(IsADirectoryError, match=r"b\.tar"):
            list(folder.open())
        with pytest.raises(FileNotFoundError, match=r"c\.tar"):
            list(dangling.open())
