"""Tars that claim what they do not hold: no hang, no foreign exception, no row too many or few."""

import io
import os
import pickle
import signal
import tarfile
import tracemalloc

import pytest
from conftest import write_tar
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.inputs import DamagedShardError
from pipeline.inputs.shards import TarShard, sample_key
from pipeline.inputs.tar_members import is_of_the_system

BLOCK = 512


def shard(path):
    return TarShard(str(path), path.stat().st_size)


def read(path, on_damage="strict"):
    reader = shard(path).open(on_damage)
    keys = [member.key for member in reader]
    return keys, [(row.key, row.reason) for row in reader.left_out], reader.damage


def header(name, size=0, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return bytearray(info.tobuf(tarfile.GNU_FORMAT))


def with_checksum(block):
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def negative(kind):
    block = header("x.jpg", kind=kind)
    block[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512 in base 256
    return with_checksum(block)


def pax(records, name="x.jpg"):
    payload = records + bytes(-len(records) % BLOCK)
    return (
        bytes(header("pax", len(records), tarfile.XHDTYPE))
        + payload
        + bytes(header(name, 4))
        + b"data".ljust(BLOCK, b"\0")
    )


CLAIMS = {
    "a negative size": negative(tarfile.REGTYPE),
    "an extended header of negative size": negative(tarfile.XHDTYPE),
    "a size in an extended header that is negative": pax(b"13 size=-512\n"),
    "one that is no number": pax(b"11 size=zz\n"),
    "one in digits of another script": pax("13 size=\u0665\u0666\n".encode()),
    "one of thousands of digits": pax(b"5011 size=" + b"9" * 5000 + b"\n"),
    "a record of a length of thousands of digits": pax(b"9" * 5000 + b" a=b\n"),
}


@pytest.fixture
def alarm():
    """An endless loop is a failure, not a test run that never ends."""

    def stop(*_):
        raise TimeoutError("the reader does not come to an end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("claim", CLAIMS)
def test_a_size_that_cannot_be_is_damage(tmp_path, claim):
    good = bytes(header("good.jpg", 4)) + b"data".ljust(BLOCK, b"\0")
    path = tmp_path / "a.tar"
    path.write_bytes(good + CLAIMS[claim] + b"z" * 8 * BLOCK + bytes(2 * BLOCK))
    with pytest.raises(DamagedShardError, match=r"a\.tar is damaged|not readable"):
        read(path)
    keys, rows, damage = read(path, "salvage")
    assert (keys, rows) == (["good"], [])
    assert f"of {path.stat().st_size} bytes unread" in damage


def test_a_large_claim_reserves_no_memory(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header("x.jpg", 500 << 20)) + b"little")
    tracemalloc.start()
    try:
        with pytest.raises(DamagedShardError, match="has 6 of 524288000 bytes"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()


def test_a_large_tar_of_large_members_is_read_in_little_memory(tmp_path):
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        for number in range(10):
            file.write(bytes(header(f"{number}.jpg", 30 << 20)))
            file.seek(30 << 20, os.SEEK_CUR)
        file.write(bytes(2 * BLOCK))
    tracemalloc.start()
    try:
        assert sum(1 for _ in shard(path).open()) == 10
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_an_image_larger_than_any_is_a_row_and_is_not_held(tmp_path):
    path = tmp_path / "a.tar"
    size = (512 << 20) + BLOCK
    with path.open("wb") as file:
        file.write(bytes(header("big.jpg", size)))
        file.seek(size, os.SEEK_CUR)
        file.write(bytes(header("big.cls", 4)) + b"data".ljust(BLOCK, b"\0"))
        file.write(bytes(header("small.jpg", 4)) + b"data".ljust(BLOCK, b"\0"))
        file.write(bytes(2 * BLOCK))
    assert read(path) == (["small"], [("big", "too_large")], None)


@pytest.mark.parametrize("damage", ["a second tar", "zero blocks"])
def test_salvage_says_how_much_is_lost_behind_an_early_end(tmp_path, damage):
    write_tar(tmp_path / "a.tar", [(f"{n}.jpg", b"d" * 3000) for n in range(20)])
    raw, at = (tmp_path / "a.tar").read_bytes(), 3 * (BLOCK + 3072)
    if damage == "zero blocks":
        raw, whole, count = raw[:at] + bytes(1024) + raw[at + 1024 :], at, 3
    else:
        raw, whole, count = raw + raw, 20 * (BLOCK + 3072), 20
    (tmp_path / "a.tar").write_bytes(raw)
    keys, _, note = read(tmp_path / "a.tar", "salvage")
    assert len(keys) == count
    assert note.endswith(f"; {len(raw) - whole} of {len(raw)} bytes unread")


def write(path, members):
    """Writes (name, content) pairs; content that is a tar type makes a link or device."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
                info.type, info.linkname = content, "elsewhere"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


BAD_NAMES = ["../e.jpg", "/f.jpg", ".jpg", "d/.png", "caf\udce9.jpg", "caf\udce9.cls"]
NAMES = ["a.jpg", "a.png", "a.cls", "b.jpg", "b.cls", "b.v1.jpg", "./a.json", "d/a.jpg", "c.txt",
         "._a.jpg", *BAD_NAMES]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from([b"data", b"", tarfile.SYMTYPE])),
        min_size=1,
        max_size=12,
    )
)
@example([("a.jpg", tarfile.SYMTYPE), ("a.cls", b"data")])
@example([("a.jpg", tarfile.LNKTYPE), ("a.png", b"data")])
def test_every_key_is_one_image_or_one_row_whatever_a_tar_holds(tmp_path_factory, members):
    path = tmp_path_factory.mktemp("any") / "a.tar"
    write(path, members)
    found, rows, damage = read(path, "salvage")
    assert damage is None
    counted = [name for name, _ in members if not is_of_the_system(name)]
    unnamed = [name for name in counted if name in BAD_NAMES]
    keys = {sample_key(name) for name in counted if name not in unnamed}
    duplicates = [key for key, reason in rows if reason == "duplicate_key"]
    assert len(found) == len(set(found))
    assert len(keys) + len(unnamed) + len(duplicates) == len(found) + len(rows)
    assert {*found, *(key for key, _ in rows)} >= keys
    for key, _ in rows:
        key.encode()  # what is written to a table of errors


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_flip_in_an_extended_header_raises_nothing_else(tmp_path_factory, form, data):
    path = tmp_path_factory.mktemp("flip") / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name in ("a" * 120 + ".jpg", "b.jpg"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 700, 1.5
            tar.addfile(info, io.BytesIO(b"d" * 700))
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, 8 * BLOCK))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    try:
        keys, rows, _ = read(path)
    except DamagedShardError:
        return
    assert len(keys) + len(rows) == 2


def test_a_shard_travels_to_a_worker(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.jpg", b"data")])
    ours = shard(tmp_path / "a.tar")
    assert pickle.loads(pickle.dumps(ours)) == ours
    assert len(pickle.dumps(ours)) < 1000
