"""Decoding ahead gives the same samples in the same order, and ends when it is asked to."""

import threading
import time

import numpy as np
import pytest

from pipeline.inputs import DamagedShardError
from pipeline.inputs.samples import SampleStream, read_samples
from pipeline.inputs.shards import TarShard


@pytest.fixture
def shard(tmp_path, photographs, make_tar):
    members = [(f"{name}.jpg", content) for name, content in photographs.items()]
    members[3:3] = [("broken.jpg", members[0][1][:500]), ("page.png", b"<html>")]
    make_tar(tmp_path / "a.tar", [*members, ("only.cls", b"7")])
    path = tmp_path / "a.tar"
    return TarShard(str(path), path.stat().st_size)


def decode_threads():
    return [t for t in threading.enumerate() if t.name.startswith(("decode", "read shard"))]


def keys_and_means(stream):
    return [(sample.key, float(sample.image.mean())) for sample in stream]


@pytest.mark.parametrize(("threads", "megabytes"), [(1, 256), (3, 256), (3, 0)])
def test_threads_change_nothing(shard, threads, megabytes):
    plain = SampleStream(shard, prepare=lambda sample: sample)
    ahead = SampleStream(
        shard, prepare=lambda sample: sample, threads=threads, megabytes_ahead=megabytes
    )
    assert keys_and_means(plain) == keys_and_means(ahead)
    assert plain.bad == ahead.bad
    assert [row.reason for row in plain.bad] == ["truncated", "unidentified", "no_image"]
    assert plain.identity == ahead.identity
    assert ahead.seconds["decode"] > 0
    assert decode_threads() == []


def test_samples_are_prepared_before_they_are_asked_for(shard):
    prepared = []
    with SampleStream(shard, prepare=lambda s: prepared.append(s.key) or s, threads=2) as stream:
        samples = iter(stream)
        next(samples)
        deadline = time.monotonic() + 5
        while len(prepared) < 12 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(prepared) == 12


def test_a_stream_that_is_left_ends_its_threads(shard):
    with SampleStream(shard, prepare=lambda s: s, threads=2, megabytes_ahead=0) as stream:
        for _ in stream:
            break
    deadline = time.monotonic() + 5
    while decode_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert decode_threads() == []


@pytest.mark.parametrize("threads", [0, 2])
def test_errors_reach_who_iterates(shard, tmp_path, threads):
    raw = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DamagedShardError):
        list(SampleStream(shard, prepare=lambda s: s, threads=threads))
    (tmp_path / "a.tar").write_bytes(raw)

    def fails(sample):
        raise ValueError("no view of this")

    with pytest.raises(ValueError, match="no view of this"):
        list(SampleStream(shard, prepare=fails, threads=threads))


def test_read_samples_gives_pixels(shard, photographs):
    samples = list(read_samples(shard))
    assert [sample.key for sample in samples] == list(photographs)
    assert all(sample.image.dtype == np.uint8 for sample in samples)


def test_closing_ends_the_threads_though_the_iterator_is_held(shard):
    stream = SampleStream(shard, prepare=lambda s: s, threads=2, megabytes_ahead=0)
    held = iter(stream)
    next(held)
    stream.close()
    assert decode_threads() == []
    with pytest.raises(ValueError, match="closed"):
        next(held)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_where_the_samples_are_used_leaves_no_thread(shard, error, threads):
    stream = SampleStream(shard, prepare=lambda s: s, threads=threads)
    with pytest.raises(error), stream:  # noqa: PT012  the exception's frames hold the iterator
        for _ in stream:
            raise error
    assert decode_threads() == []


@pytest.mark.parametrize("threads", [0, 2])
def test_what_is_prepared_may_be_none(shard, photographs, threads):
    stream = SampleStream(shard, prepare=lambda s: None, threads=threads)
    assert list(stream) == [None] * len(photographs)
