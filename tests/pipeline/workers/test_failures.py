"""The rules on failures, and the pool in this process that follows them."""

import errno
import os

import pytest

from ltrp_core.errors import RequestError
from pipeline.workers import ATTEMPTS, InProcessPool, RunStoppedError, Slot, open_pool
from pipeline.workers.outcomes import classify


def in_process(work, items, **options):
    pool = InProcessPool(delays_s=(0.01, 0.02), **options)
    return {outcome.item: outcome for outcome in pool.map(lambda slot: work, items)}


def from_cause(error, cause):
    error.__cause__ = cause
    return error


class RemoteError(Exception):
    """As object stores' packages have them: a plain Exception."""

    __module__ = "botocore.exceptions"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "stop"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "stop"),
        (OSError(errno.EFBIG, "File too large"), "stop"),
        (OSError(errno.EROFS, "Read-only file system"), "stop"),
        (from_cause(RuntimeError("not written"), OSError(errno.ENOSPC, "full")), "stop"),
        (RequestError("bad.tar is cut"), "request"),
        (ValueError("not finite"), "item"),
        (RuntimeError("sizes differ"), "item"),
        (KeyError("image"), "item"),
        (FileNotFoundError(errno.ENOENT, "gone"), "item"),
        (PermissionError(errno.EACCES, "denied"), "item"),
        (IsADirectoryError(errno.EISDIR, "a folder"), "item"),
        (OSError(errno.EIO, "Input/output error"), "transient"),
        (OSError("without a number"), "transient"),
        (TimeoutError("slow"), "transient"),
        (ConnectionResetError("reset"), "transient"),
        (RemoteError("SlowDown"), "transient"),
        (MemoryError(), "transient"),
        (RuntimeError("CUDA error: an illegal memory access"), "worker"),
        (RuntimeError("CUDA out of memory"), "item"),
    ],
)
def test_every_error_has_one_kind(error, kind):
    assert classify(error).kind == kind


def test_a_reason_is_one_line_that_names_the_error():
    assert classify(RequestError("bad.tar\n is cut")).reason == "bad.tar is cut"
    assert classify(ValueError("not\nfinite")).reason == "ValueError: not finite"
    assert classify(MemoryError()).reason == "MemoryError"
    full = classify(OSError(errno.ENOSPC, "No space left on device", "/out"))
    assert full.reason.startswith("no space left")
    assert "/out" in full.reason


def test_an_error_of_an_item_fails_it_at_once_and_the_others_go_on():
    def work(item):
        if item == 2:
            raise ValueError("not finite")
        return item * item

    found = in_process(work, [1, 2, 3])
    assert (found[1].result, found[3].result) == (1, 9)
    assert (found[2].error, found[2].attempts) == ("ValueError: not finite", 1)
    assert found[1].worker == f"{os.uname().nodename}:auto"


def test_a_transient_error_is_tried_again_after_the_other_items():
    tried = []

    def work(item):
        tried.append(item)
        if item == "flaky" and tried.count("flaky") < ATTEMPTS:
            raise ConnectionResetError("reset")
        return item

    found = in_process(work, ["flaky", "a", "b"])
    assert tried[:3] == ["flaky", "a", "b"]
    assert (found["flaky"].result, found["flaky"].attempts) == ("flaky", ATTEMPTS)


def test_what_never_succeeds_is_given_up_after_three_attempts():
    def work(item):
        raise MemoryError

    (outcome,) = in_process(work, ["large"]).values()
    assert (outcome.error, outcome.attempts, outcome.stop) == ("MemoryError", ATTEMPTS, False)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), RuntimeError("CUDA error: unspecified")]
)
def test_a_full_disk_or_a_broken_gpu_stops_the_run(error):
    tried = []

    def work(item):
        tried.append(item)
        raise error

    (outcome,) = in_process(work, [1, 2, 3]).values()
    assert outcome.stop
    assert tried == [1]


def test_what_cannot_be_made_is_raised_as_it_is():
    def make(slot):
        raise RequestError("weights are cut")

    with pytest.raises(RequestError, match="weights are cut"):
        list(InProcessPool().map(make, [1, 2]))


def test_making_the_work_survives_a_transient_error_and_knows_its_slot():
    slots = []

    def make(slot):
        slots.append(slot)
        if len(slots) < ATTEMPTS:
            raise TimeoutError("slow")
        return lambda item: item

    pool = InProcessPool(delays_s=(0.01, 0.02))
    assert [outcome.result for outcome in pool.map(make, [1])] == [1]
    assert set(slots) == {Slot(device="auto", cpus=len(os.sched_getaffinity(0)))}
    assert pool.start_up_s > 0.01


def test_nothing_is_made_for_no_items():
    def make(slot):
        raise AssertionError("made")

    with open_pool("0") as pool:
        assert list(pool.map(make, [])) == []


def test_a_run_that_is_stopped_is_said_like_a_wrong_request():
    assert issubclass(RunStoppedError, RequestError)
