"""What runs in the process of one rank: the work, and what it prints and raises carried back."""

from __future__ import annotations

import os
import pickle
import re
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ltrp_core.errors import RequestError
from pipeline.workers.code_version import code_version
from pipeline.workers.ddp.board import Home
from pipeline.workers.outcomes import RunStoppedError, classify
from pipeline.workers.slots import Plan

_OTHERS_FAULT = re.compile(
    r"gloo/|NCCL|c10d|TCPStore|Connection (closed|reset|refused)|Broken pipe|Socket Timeout"
    r"|DataLoader worker .*(killed by signal|exited unexpectedly)",
    re.IGNORECASE,
)
"""In a RuntimeError: another process is gone or stands still. gloo has no class of its own."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One of the processes that train together."""

    rank: int
    world_size: int
    local_rank: int
    node: str
    """Host name"""
    device: str
    """`cpu` or `cuda:N`"""
    attempt: int
    """How often all were started before"""
    report: Callable[[dict[str, Any]], None] = field(repr=False)
    """Sends a small dictionary to the driver; at once, and it may be lost"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankRun:
    """What Ray Train is to run, and with what."""

    work: Callable[[Rank], None]
    board: Any
    plan: Plan
    name: str
    scratch: Path
    folder: str
    """The driver's"""
    max_failures: int
    timeout_s: int
    version: str
    """The driver's code"""
    meets_by_port: bool
    """Whether ranks find each other by a port, else by a file in `scratch`"""

    @property
    def use_gpu(self) -> bool:
        """Whether each rank has a GPU."""
        return self.plan.gpu > 0

    @property
    def cpus(self) -> int:
        """Of one rank."""
        return self.plan.gpu_cpus if self.use_gpu else self.plan.cpu_cpus


def run_rank(options: dict[str, Any]) -> None:
    """Does the work of a RankRun (key `run`); Ray Train calls it once on each rank."""
    import ray
    import torch

    run: RankRun = options["run"]
    with suppress(OSError):
        os.chdir(run.folder)
    os.environ["OMP_NUM_THREADS"] = str(run.cpus)  # for processes started from here
    torch.set_num_threads(run.cpus)
    place = _place(run.board, run.use_gpu)
    try:
        _check_version(run.version, place.node)
        with _shown(run.board, place.rank):
            run.work(place)
    except BaseException as error:
        _tell(run.board, place.rank, error)
        raise
    with suppress(Exception):
        ray.get(run.board.seen.remote(), timeout=10.0)


def _check_version(driver: str, host: str) -> None:
    """Raises RequestError if this process runs other code than the driver."""
    if driver != code_version():
        raise RequestError(
            f"ltrp-pipeline is {driver} where the run was started and {code_version()} on {host}; "
            "install the same on all machines, or let `ltrp-pipeline submit` ship it"
        )


def _place(board: Any, use_gpu: bool) -> Rank:
    """Returns who this is; the first collective, so that all know the same attempt."""
    import ray
    import torch.distributed
    from ray.train import get_context
    from ray.train.torch import get_device

    context = get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    attempt = [0]
    if rank == 0:
        with suppress(Exception):
            attempt = [ray.get(board.begin.remote(), timeout=10.0)]
    if size > 1:
        torch.distributed.broadcast_object_list(attempt, src=0)
    home = Home(socket.gethostname(), ray.get_runtime_context().get_node_id(), os.getpid())
    _send(board.at, rank, home)

    def report(message: dict[str, Any]) -> None:
        _send(board.post, "report", message)

    return Rank(
        rank=rank,
        world_size=size,
        local_rank=context.get_local_rank(),
        node=home.host,
        device=str(get_device()) if use_gpu else "cpu",  # it would name a GPU that others use
        attempt=attempt[0],
        report=report,
    )


def _send(method: Any, *values: Any) -> None:
    """Calls the board, and does not wait; it may be gone, or behind."""
    with suppress(Exception):
        method.remote(*values)


def _tell(board: Any, rank: int, error: BaseException) -> None:
    """Waits until the board has it: this process may be killed as soon as it has raised."""
    import ray

    fatal = _packed(_fatal(error)) if _would_come_again(error) else None
    with suppress(Exception):
        ray.get(board.failed.remote(rank, classify(error).reason[:300], fatal), timeout=10.0)


def _would_come_again(error: BaseException) -> bool:
    """Whether a new attempt would end in the same way; not if another process is to blame."""
    import torch.distributed

    failure = classify(error)
    if failure.kind in ("request", "stop") or failure.is_retried:
        return not failure.is_retried
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.distributed.DistError):
            return False
        if isinstance(cause, RuntimeError) and _OTHERS_FAULT.search(str(cause)):
            return False
        cause = cause.__cause__ or cause.__context__
    return True


def _fatal(error: BaseException) -> RequestError:
    """Returns what the driver raises."""
    if isinstance(error, RequestError):
        return error
    failure = classify(error)
    if failure.kind == "stop":
        return RunStoppedError(failure.reason)
    lines = "".join(traceback.format_exception(error)).rstrip()
    return RunStoppedError(f"training failed on a worker: {failure.reason}\n{lines}")


def _packed(error: RequestError) -> bytes:
    """Pickles it, or what is left of it: some exceptions cannot be made again."""
    with suppress(Exception):
        packed = pickle.dumps(error)
        if str(pickle.loads(packed)) == str(error):
            return packed
    with suppress(Exception):
        packed = pickle.dumps(type(error)(str(error)))
        pickle.loads(packed)
        return packed
    return pickle.dumps(RequestError(str(error)))


@contextmanager
def _shown(board: Any, rank: int) -> Iterator[None]:
    """Sends the lines that rank 0 prints to the driver too; other ranks print to Ray's logs."""
    if rank != 0:
        yield
        return
    streams = sys.stdout, sys.stderr
    sys.stdout = _Lines(streams[0], board, "stdout")  # type: ignore[assignment]
    sys.stderr = _Lines(streams[1], board, "stderr")  # type: ignore[assignment]
    try:
        yield
    finally:
        for lines in (sys.stdout, sys.stderr):
            with suppress(Exception):
                lines.send_rest()  # type: ignore[attr-defined]
        sys.stdout, sys.stderr = streams


class _Lines:
    """A stream that sends whole lines to the board as well."""

    def __init__(self, stream: Any, board: Any, kind: Literal["stdout", "stderr"]) -> None:
        self._stream, self._board, self._kind = stream, board, kind
        self._rest = ""

    def write(self, text: str) -> int:
        """Writes, and sends the lines that are complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            _send(self._board.post, self._kind, line)
        self._stream.write(text)
        return len(text)

    def send_rest(self) -> None:
        """Sends a last line without an end."""
        if self._rest:
            _send(self._board.post, self._kind, self._rest)
            self._rest = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
