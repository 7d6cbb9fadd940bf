"""Worker pools: the same work in this process or on Ray actors. Only this package imports ray.

A pool makes the work once in every worker, gives it one item after the other, and yields what came
of each. outcomes.py has the rules on failures, slots.py the grammar of `--workers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pipeline.workers.in_process import InProcessPool
from pipeline.workers.outcomes import (
    ATTEMPTS,
    DELAYS_S,
    MakeWork,
    Outcome,
    RunStoppedError,
    Slot,
    Work,
    WorkerPool,
)
from pipeline.workers.run_metrics import RunMetrics
from pipeline.workers.slots import parse_workers

__all__ = [
    "ATTEMPTS",
    "InProcessPool",
    "MakeWork",
    "Outcome",
    "RunMetrics",
    "RunStoppedError",
    "Slot",
    "Work",
    "WorkerPool",
    "open_pool",
]


@contextmanager
def open_pool(
    workers: str,
    *,
    ray_address: str | None = None,
    item_timeout_s: float = 3600.0,
    after_start: Callable[[], None] = lambda: None,
    on_note: Callable[[str], None] = lambda text: None,
    delays_s: Sequence[float] = DELAYS_S,
) -> Iterator[WorkerPool]:
    """Opens the pool behind `--workers`.

    Args:
        workers: `0` = this process; `auto` = one Ray actor per GPU if there are any, else one per
            CPU slot; `N` = that many; `gpu=2,cpu=8` = of both kinds. Capped by what there is.
        ray_address: of a cluster; None = RAY_ADDRESS if that is set, else a Ray of this process.
        item_timeout_s: until an actor that is still at one item is killed; an attempt.
        after_start: called once Ray runs: it puts in signal handlers of its own.
        on_note: called with each note when it is made, e.g. that no machine is left.
        delays_s: before the second and the third attempt at an item.

    Raises:
        RequestError: `workers` is none of these, or Ray is missing.
    """
    request = parse_workers(workers)
    if request.in_process:
        yield InProcessPool(delays_s=delays_s)
        return
    from pipeline.workers.ray_pool import RayPool

    pool = RayPool(
        request,
        address=ray_address,
        item_timeout_s=item_timeout_s,
        after_start=after_start,
        on_note=on_note,
        delays_s=delays_s,
    )
    try:
        yield pool
    finally:
        pool.close()
