"""Caches and shards in an object store: a real S3 server on loopback, over HTTP."""

import json
import socket
import subprocess
import sys
import threading
import time

import pytest
from command_line import PROGRAM, one_line_error, run
from s3_server import s3_bucket

from pipeline.store import open_cache
from pipeline.store.errors import LockedError
from pipeline.store.storage import lock, open_storage
from pipeline.store.storage.local import LocalStorage
from pipeline.store.verify import problems


@pytest.fixture(scope="module")
def s3():
    """URL of an empty bucket."""
    with s3_bucket() as url:
        yield url


@pytest.fixture
def bucket(s3, request):
    return f"{s3}/{request.node.name[:40].replace('[', '-').replace(']', '')}"


def upload(folder, url):
    place = open_storage(url)
    place.upload(folder, "")
    return url


def score(shards, mae, out, *options, expect=0):
    return run("score", "--shards", shards, "--mae", mae, "--out", out, *options, expect=expect)


def files(place):
    """Content of every file of the units by name, without the folder that an object store needs."""
    names = place.sizes("units")
    return {
        "/".join(part for part in name.split("/") if not part.startswith("data-")): place.read(
            f"units/{name}"
        )
        for name in names
        if not name.endswith("receipt.json")
    }


def test_shards_from_and_cache_to_an_object_store(shards, small_mae, bucket, tmp_path):
    url = upload(shards, f"{bucket}/shards")
    score(shards, small_mae, tmp_path / "local", "--views", 2)
    score(f"{url}/part-{{0..2}}.tar", small_mae, f"{bucket}/cache", "--views", 2)
    ours, theirs = LocalStorage(tmp_path / "local"), open_storage(f"{bucket}/cache")
    assert files(ours) == files(theirs)
    assert ours.read("manifest.parquet") == theirs.read("manifest.parquet")
    assert list(problems(open_cache(f"{bucket}/cache"), deep=True)) == []
    _, err = score(url, small_mae, f"{bucket}/cache", "--views", 2)
    assert "0 done, 3 already there" in err
    run("train-ranker", "--cache", f"{bucket}/cache", "--shards", url, "--out",
        tmp_path / "ranker", "--ranker", "vit_tiny", "--epochs", 1)  # fmt: skip
    run("select", "--shards", url, "--ranker", tmp_path / "ranker", "--out",
        f"{bucket}/selections", "--keep-ratio", 0.5)  # fmt: skip
    assert run("verify", f"{bucket}/selections", "--deep")[0].endswith("0 faults\n")
    run("select", "--shards", shards, "--ranker", tmp_path / "ranker", "--out",
        tmp_path / "selections", "--keep-ratio", 0.5)  # fmt: skip
    table = (tmp_path / "selections" / "selections.parquet").read_bytes()
    assert open_storage(f"{bucket}/selections").read("selections.parquet") == table
    score(url, small_mae, f"{bucket}/cache", "--append-views", 1)
    assert open_cache(f"{bucket}/cache").run["views"] == 3
    run("convert", f"{bucket}/cache", "--to", "webdataset", "--out", tmp_path / "tars")
    assert open_cache(tmp_path / "tars").run["views"] == 3


def test_a_receipt_is_put_only_where_there_is_none(bucket):
    place = open_storage(bucket)
    wins, barrier = [], threading.Barrier(8)

    def put(number):
        own = open_storage(bucket)
        barrier.wait()
        if own.create("units/a/receipt.json", str(number).encode()):
            wins.append(number)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert place.read("units/a/receipt.json") == str(wins[0]).encode()


def test_damage_in_an_object_store_is_found_and_repaired(shards, small_mae, bucket):
    cache = f"{bucket}/cache"
    score(shards, small_mae, cache)
    place = open_storage(cache)
    before = files(place)
    flipped = next(n for n in place.sizes("units") if n.startswith("part-0-") and "score/c/" in n)
    raw = bytearray(place.read(f"units/{flipped}"))
    raw[10] ^= 1
    place.replace(f"units/{flipped}", bytes(raw))
    place.remove(next(f"units/{n}" for n in before_keys(place) if n.startswith("part-1-")))
    out, _ = run("verify", cache, "--deep", "--repair", expect=1)
    assert "2 unit(s) moved to quarantine" in out
    _, err = score(shards, small_mae, cache)
    assert "2 done, 1 already there" in err
    assert files(place) == before


def before_keys(place):
    return [name for name in place.sizes("units") if "visible/c/" in name]


def test_a_lease_keeps_others_out_and_a_dead_one_is_taken_over(bucket, monkeypatch):
    place = open_storage(bucket)
    place.replace("run.json", b"{}")
    with (
        place.lock(),
        pytest.raises(LockedError, match=socket.gethostname()),
        open_storage(bucket).lock(),
    ):
        pass
    assert place.read_many([".lock"]) == {}
    elsewhere = {"host": "node-7", "pid": 1, "token": "x", "renewed": time.time()}
    place.replace(".lock", json.dumps(elsewhere).encode())
    with pytest.raises(LockedError, match="node-7"), open_storage(bucket).lock():
        pass
    place.replace(".lock", json.dumps({**elsewhere, "renewed": time.time() - 120}).encode())
    with open_storage(bucket).lock():
        assert json.loads(place.read(".lock"))["host"] == socket.gethostname()
    monkeypatch.setattr(lock, "LEASE_S", 0.4)
    with place.lock():
        first = json.loads(place.read(".lock"))["renewed"]
        time.sleep(0.5)
        assert json.loads(place.read(".lock"))["renewed"] > first


@pytest.mark.faults
def test_a_killed_driver_leaves_nothing_that_its_successor_does_not_mend(
    photographs, small_mae, make_tar, bucket, tmp_path
):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(12):
        members = [(f"{i}_{k}.jpg", content) for k, content in photographs.items()]
        make_tar(folder / f"{i:02d}.tar", members)
    cache = f"{bucket}/cache"
    command = [*PROGRAM, "score", "--shards", folder, "--mae", small_mae, "--out", cache,
               "--workers", 0]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE)
    place = open_storage(cache)
    deadline = time.monotonic() + 60
    while len(place.names("units")) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    _, err = score(folder, small_mae, cache)
    assert "0 failed" in err
    score(folder, small_mae, tmp_path / "whole")
    assert files(place) == files(LocalStorage(tmp_path / "whole"))
    assert list(problems(open_cache(cache), deep=True)) == []


def test_other_urls_are_refused_with_those_that_work(shards, small_mae, tmp_path):
    message = one_line_error(
        "score", "--shards", shards, "--mae", small_mae, "--out", "ftp://host/cache")  # fmt: skip
    assert "s3://, gs://" in message
    message = one_line_error(
        "score", "--shards", f"pipe:touch {tmp_path / 'x'}", "--mae", small_mae)  # fmt: skip
    assert not (tmp_path / "x").exists()
    assert sys.executable not in message
