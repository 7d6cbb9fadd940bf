"""Worker pools: the same work in this process or on Ray actors.

A pool calls `work(item)` for every item and yields what came of it. Ray is at-least-once and an
actor can die at any moment; exactly-once comes from the commit of a unit, not from here.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ltrp_core.errors import RequestError

ATTEMPTS = 3

Work = Callable[[Any], Any]
MakeWork = Callable[[], Work]
"""Makes the work in the worker, once; must be picklable and small (paths, not arrays)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one item: a result, or an error after `attempts` tries."""

    item: Any
    result: Any = None
    error: str | None = None
    attempts: int = 1


class WorkerPool(Protocol):
    """Yields one outcome an item, in any order."""

    def map(self, make: MakeWork, items: Sequence[Any]) -> Iterator[Outcome]: ...


class InProcessPool:
    """No Ray: one worker, this process."""

    def map(self, make: MakeWork, items: Sequence[Any]) -> Iterator[Outcome]:
        """Yields outcomes in the order of the items."""
        if not items:
            return
        work = make()
        for item in items:
            try:
                yield Outcome(item=item, result=work(item))
            except _FAILURES as error:
                yield Outcome(item=item, error=_reason(error))


_FAILURES = (RequestError, OSError, RuntimeError, ValueError, MemoryError)
"""What fails one shard and lets the others go on. OSError includes a full disk."""


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, RequestError) else f"{type(error).__name__}: {text}"


class RayPool:
    """Long-lived actors, one item in flight each; the dead are replaced, poison is given up."""

    def __init__(self, workers: str, address: str | None, after_start: Callable[[], None]) -> None:
        self.workers, self.address, self.after_start = workers, address, after_start
        self.item_timeout_s = 3600.0
        self.num_workers = 0
        self.num_gpus = 0.0
        self._started_here = False

    def map(self, make: MakeWork, items: Sequence[Any]) -> Iterator[Outcome]:
        """Yields outcomes as they come. Ray starts with the first item: no work, no Ray."""
        if not items:
            return
        if self.num_workers == 0:
            self._start()
        waiting = deque((item, 1) for item in items)
        running: dict[Any, _Running] = {}
        actors = [self._actor(make) for _ in range(min(self.num_workers, len(items)))]
        idle = deque(actors)
        try:
            while waiting or running:
                while waiting and idle:
                    item, attempt = waiting.popleft()
                    actor = idle.popleft()
                    future = actor.work.remote(item)
                    running[future] = _Running(actor, item, attempt, time.monotonic())
                for outcome, actor, retry in self._collect(make, running):
                    idle.append(actor)
                    if retry is not None:
                        waiting.append(retry)
                    if outcome is not None:
                        yield outcome
        finally:
            for actor in (*idle, *(run.actor for run in running.values())):
                _ray().kill(actor)

    def _collect(
        self, make: MakeWork, running: dict[Any, _Running]
    ) -> Iterator[tuple[Outcome | None, Any, tuple[Any, int] | None]]:
        """Yields (outcome, idle actor, item to retry) for every item that ended or timed out."""
        ray = _ray()
        ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
        late = [
            future
            for future, run in running.items()
            if future not in ready and time.monotonic() - run.started > self.item_timeout_s
        ]
        for future in (*ready, *late):
            run = running.pop(future)
            problem: str | None = f"took longer than {self.item_timeout_s:.0f} s"
            if future in ready:
                try:
                    result = ray.get(future)
                    yield Outcome(item=run.item, attempts=run.attempt, **result), run.actor, None
                    continue
                except ray.exceptions.RayActorError as error:
                    problem = f"worker died: {str(error).splitlines()[0]}"
            ray.kill(run.actor)
            actor = self._actor(make)
            if run.attempt < ATTEMPTS:
                yield None, actor, (run.item, run.attempt + 1)
            else:
                failed = f"{problem} ({run.attempt} attempts)"
                yield Outcome(item=run.item, error=failed, attempts=run.attempt), actor, None

    def close(self) -> None:
        """Ends Ray if it was started here; a cluster that was there before goes on."""
        if self._started_here:
            _ray().shutdown()

    def _start(self) -> None:
        local = {"include_dashboard": False, "object_store_memory": 200 * 2**20}
        options = local if self.address is None else {"address": self.address}
        ray = _ray()
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level="ERROR", **options)
            self._started_here = True
        self.after_start()
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        slots = gpus or cpus
        # Capped by what there is, for Ray would wait for ever for more.
        self.num_workers = slots if self.workers == "auto" else min(int(self.workers), slots)
        self.num_gpus = 1.0 if gpus else 0.0

    def _actor(self, make: MakeWork) -> Any:
        ray = _ray()
        options = {"num_cpus": 1, "num_gpus": self.num_gpus, "max_restarts": 0}
        return ray.remote(**options, max_task_retries=0)(_Actor).remote(make)


@dataclass(slots=True)
class _Running:
    actor: Any
    item: Any
    attempt: int
    started: float


class _Actor:
    """Lives in a Ray worker; makes the work at the first item, so that a failure names an item."""

    def __init__(self, make: MakeWork) -> None:
        self._make = make
        self._work: Work | None = None

    def work(self, item: Any) -> dict[str, Any]:
        try:
            if self._work is None:
                self._work = self._make()
            return {"result": self._work(item)}
        except _FAILURES as error:
            return {"error": _reason(error)}


def _set_environment(ray_address: str | None) -> None:
    """Sets what Ray reads when it is imported; values that are set already stay.

    A local Ray needs no token file in HOME, reports to nobody, and its workers are this very
    command: Ray's default niceness of 15 would starve them beside anything else.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray_address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise RequestError(
            "--workers needs Ray: python -m pip install ray, or pass --workers 0"
        ) from error
    return ray


@contextmanager
def open_pool(
    workers: str,
    ray_address: str | None = None,
    after_start: Callable[[], None] = lambda: None,
) -> Iterator[WorkerPool]:
    """Opens the pool behind `--workers`: `0` = this process, `N` = Ray actors, `auto`.

    `auto` is one actor a GPU if there are any, else one a CPU slot; N is capped by what the cluster
    has. `after_start` is called once Ray runs: it puts in signal handlers of its own.

    Raises:
        RequestError: `workers` is neither a number nor `auto`, or Ray is missing.
    """
    if workers != "auto" and not workers.isdigit():
        raise RequestError(f"--workers {workers!r}: pass a number or auto")
    if workers == "0":
        yield InProcessPool()
        return
    _set_environment(ray_address)
    _ray()  # a missing package is named before anything else is done
    pool = RayPool(workers, ray_address, after_start)
    try:
        yield pool
    finally:
        pool.close()
