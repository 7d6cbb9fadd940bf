"""The pool without Ray: one worker, this process."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipeline.workers.outcomes import (
    ATTEMPTS,
    DELAYS_S,
    Failure,
    MakeWork,
    Outcome,
    Slot,
    Work,
    classify,
)
from pipeline.workers.tries import Tries, Try


class InProcessPool:
    """Works on one item after the other, by the same rules as on Ray.

    Attributes:
        start_up_s: seconds it took to make the work of the last map.
        notes: nothing, ever.
    """

    def __init__(self, *, delays_s: Sequence[float] = DELAYS_S) -> None:
        self.delays_s = delays_s
        self.start_up_s = 0.0
        self.notes: list[str] = []
        self.slot = Slot(device="auto", cpus=len(os.sched_getaffinity(0)))
        self.worker = f"{socket.gethostname()}:{self.slot.device}"

    def slots(self) -> Collection[str]:
        """Returns that of this process: whatever it has."""
        return {self.slot.device}

    def map(
        self, make: MakeWork, items: Sequence[Any], *, gpu_only: bool = False
    ) -> Iterator[Outcome]:
        """Yields the outcomes in the order of the items, those that were tried again later.

        Args:
            gpu_only: nothing here: the work is made on what there is, and says if it cannot be.

        Raises:
            Exception: what `make` raised, as it is.
        """
        self.start_up_s = 0.0
        if not items:
            return
        started = time.monotonic()
        work = self._made(make)
        self.start_up_s = time.monotonic() - started
        tries = Tries(items, self.delays_s)
        while tries.num_open:
            tried = tries.take(time.monotonic())
            if tried is None:
                time.sleep(tries.due_in_s(time.monotonic()))
                continue
            outcome = self._outcome(work, tried, tries)
            if outcome is not None:
                yield outcome
                if outcome.stop:
                    return

    def _made(self, make: MakeWork) -> Work:
        for delay_s in self.delays_s[: ATTEMPTS - 1]:
            try:
                return make(self.slot)
            except Exception as error:
                if classify(error).kind != "transient":
                    raise
            time.sleep(delay_s)
        return make(self.slot)

    def _outcome(self, work: Work, tried: Try, tries: Tries) -> Outcome | None:
        try:
            return tries.done(tried, work(tried.item), self.worker)
        except Exception as error:
            failure = _without_another_worker(classify(error))
            return tries.failed(tried, failure, self.worker, time.monotonic())


def _without_another_worker(failure: Failure) -> Failure:
    """A process whose GPU has failed cannot be replaced from within."""
    if failure.ends_worker:
        return replace(failure, kind="stop", reason=f"{failure.reason}; start the command again")
    return failure
