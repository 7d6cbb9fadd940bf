"""Which item is tried next, and what a failed attempt leads to."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.workers.outcomes import ATTEMPTS, Failure, LostAttempt, Outcome


@dataclass(frozen=True, slots=True)
class Try:
    """The `attempt`th attempt (from 1) at an item."""

    item: Any
    attempt: int = 1
    lost: tuple[LostAttempt, ...] = ()
    """Those before"""


class Tries:
    """The items that have no outcome yet. Other items go before one that failed.

    Attributes:
        num_open: how many have no outcome, those that are being worked on included.
    """

    def __init__(self, items: Sequence[Any], delays_s: Sequence[float]) -> None:
        self.num_open = len(items)
        self._fresh = iter(items)
        self._delays_s = delays_s
        self._again: list[tuple[float, int, Try]] = []
        self._serial = 0

    def take(self, now: float) -> Try | None:
        """Returns what to try next; None if nothing is due at the time `now`."""
        for item in self._fresh:
            return Try(item)
        if self._again and self._again[0][0] <= now:
            return heapq.heappop(self._again)[2]
        return None

    def due_in_s(self, now: float) -> float:
        """Returns the seconds until an item is due again; inf if none failed."""
        return max(self._again[0][0] - now, 0.0) if self._again else math.inf

    def done(self, tried: Try, result: Any, worker: str) -> Outcome:
        """Returns the outcome of a success."""
        self.num_open -= 1
        return Outcome(
            item=tried.item,
            result=result,
            attempts=tried.attempt,
            worker=worker,
            lost=tried.lost,
        )

    def failed(self, tried: Try, failure: Failure, worker: str, now: float) -> Outcome | None:
        """Returns the outcome of a failed attempt; None if the item is to be tried again."""
        if failure.is_retried and tried.attempt < ATTEMPTS:
            delay_s = self._delays_s[min(tried.attempt, len(self._delays_s)) - 1]
            self._serial += 1
            lost = LostAttempt(
                attempt=tried.attempt, worker=worker, reason=failure.reason, time=time.time()
            )
            again = replace(tried, attempt=tried.attempt + 1, lost=(*tried.lost, lost))
            heapq.heappush(self._again, (now + delay_s, self._serial, again))
            return None
        self.num_open -= 1
        return Outcome(
            item=tried.item,
            error=failure.reason,
            attempts=tried.attempt,
            stop=failure.kind == "stop",
            worker=worker,
            lost=tried.lost,
        )
