"""What work is done with and what comes of it; every rule on failures is here."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ltrp_core.errors import RequestError
from ltrp_core.regular_files import NotRegularFileError
from pipeline.remote import is_remote
from pipeline.url_secrets import without_secrets

ATTEMPTS = 3
DELAYS_S = (0.5, 2.0)
"""Before the second attempt and before the third, so that a server can recover."""


@dataclass(frozen=True, slots=True)
class Slot:
    """What one worker may use: `cpu`, `cuda` (one GPU) or `auto`, and how many threads."""

    device: str
    cpus: int


Work = Callable[[Any], Any]
"""Takes an item, returns something small: results travel through the driver."""

MakeWork = Callable[[Slot], Work]
"""Makes the work in the worker, once; must be picklable and small (paths, not arrays)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LostAttempt:
    """An attempt that failed and was followed by another."""

    attempt: int
    worker: str
    reason: str
    time: float
    """When it was known, seconds since the epoch"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one item: a result, or an error after `attempts` tries."""

    item: Any
    result: Any = None
    error: str | None = None
    attempts: int = 1
    stop: bool = False
    """The run cannot go on; the other items that were being worked on have no outcome."""
    worker: str = ""
    """`host:device` of the last attempt"""
    lost: tuple[LostAttempt, ...] = ()
    """The attempts before the last"""


class WorkerPool(Protocol):
    """Yields one outcome an item, in any order."""

    @property
    def start_up_s(self) -> float:
        """Seconds until the first worker of the last map was ready."""

    @property
    def notes(self) -> list[str]:
        """What the user should know of the last map: fewer workers than asked, waiting."""

    def slots(self) -> Collection[str]:
        """Returns the devices of the slots that workers would have now."""

    def map(
        self, make: MakeWork, items: Sequence[Any], *, gpu_only: bool = False
    ) -> Iterator[Outcome]:
        """Yields the outcomes; a stop is the last one.

        Args:
            gpu_only: the work cannot be done on a CPU, so wait for a GPU where one was lost.

        Raises:
            RequestError: the work cannot be made, or there is no GPU to begin with.
        """


class RunStoppedError(RequestError):
    """No worker can be made ready; the reason is not in any item."""


FailureKind = Literal["item", "transient", "stop", "request", "worker", "machine"]
"""item: it will fail again. transient: it may not. stop: all others will fail too. request: what
was asked for is wrong (of an item: as item). worker: its process is of no use any more. machine:
so is all of its machine."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed, in one line, and what follows from it."""

    reason: str
    kind: FailureKind

    @property
    def is_retried(self) -> bool:
        """Another attempt may end otherwise."""
        return self.kind in ("transient", "worker", "machine")

    @property
    def ends_worker(self) -> bool:
        """The worker takes no other item."""
        return self.kind in ("worker", "machine")


_NO_WRITING = {
    errno.ENOSPC: "no space left to write to",
    errno.EDQUOT: "no space left in the quota",
    errno.EFBIG: "no space left in the file size limit (ulimit -f)",
    errno.EROFS: "no space left to write to: the file system became read-only",
}
_LASTING = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotRegularFileError,
)


def classify(error: BaseException) -> Failure:
    """Returns what an error of the work, or of making it, means for the item and for the run.

    What fails for lack of memory is tried again, for its neighbors may have taken the memory.
    """
    reason = _reason(error)
    full = _full_disk(error)
    if full is not None:
        return Failure(f"{full}: {reason}", "stop")
    if isinstance(error, RequestError):
        return Failure(reason, "request")
    if isinstance(error, RuntimeError) and "CUDA error:" in str(error):
        return Failure(reason, "worker")  # the CUDA context does not recover in this process
    is_circle = isinstance(error, OSError) and error.errno == errno.ELOOP
    if is_circle or isinstance(error, _LASTING):
        return Failure(reason, "item")
    if isinstance(error, (OSError, MemoryError)) or is_remote(error):
        return Failure(reason, "transient")
    return Failure(reason, "item")


def _reason(error: BaseException) -> str:
    text = without_secrets(" ".join(str(error).split()))
    if isinstance(error, RequestError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _full_disk(error: BaseException) -> str | None:
    """Looks at what the error was raised from too: libraries wrap an OSError in their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _NO_WRITING:
            return _NO_WRITING[cause.errno]
        cause = cause.__cause__
    return None
