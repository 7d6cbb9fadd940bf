"""The board: a small actor on the driver's machine that carries what ranks say to the driver.

The run does not depend on it: without it there are no reports, and errors cost the attempts they
would have saved.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

LEAVE_S = 5.0
"""How long ranks may take to end torch.distributed before they are killed."""

_MOST_KEPT = 10_000
"""Messages the board keeps for a driver that stands still; the oldest are lost first."""

STANDS_STILL = "stands still"
"""Why a rank was given up: it answers no more, and is killed at once."""


@dataclass
class Said:
    """What the board has for the driver."""

    messages: list[tuple[str, Any]] = field(default_factory=list)
    fatal: bytes | None = None
    """A pickled exception that would come again"""
    num_running: int | None = None
    losses: list[str] = field(default_factory=list)
    leaving: dict[str, dict[int, float]] = field(default_factory=dict)
    """Of each node, the processes that are to end, and how many seconds they have"""


@dataclass(frozen=True, slots=True)
class Home:
    """Where a rank runs."""

    host: str
    node_id: str
    process: int

    def __str__(self) -> str:
        return f"{self.host} (process {self.process})"


class Board:
    """The class of the actor between the ranks and the driver."""

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._messages: deque[tuple[str, Any]] = deque(maxlen=_MOST_KEPT)
        self._fatal: bytes | None = None
        self._attempts = 0
        self._homes: dict[int, Home] = {}
        self._failures: dict[int, str] = {}
        self._losses: list[str] = []
        self._leaving: dict[str, dict[int, float]] = {}

    def begin(self) -> int:
        """Returns the number of the attempt; rank 0 asks, for all."""
        self._attempts += 1
        return self._attempts - 1

    def at(self, rank: int, home: Home) -> None:
        """A rank runs."""
        self._homes[rank] = home

    def failed(self, rank: int, reason: str, fatal: bytes | None) -> None:
        """A rank has raised an error: one that would come again, or of a lost neighbor."""
        self._failures[rank] = reason
        if self._fatal is None:
            self._fatal = fatal

    def lost(self, found: dict[int, str]) -> None:
        """Ray Train has seen ranks fail, and ends them all."""
        if self._fatal is not None:
            return
        gone = {rank: why for rank, why in found.items() if why}
        if not gone:  # those that say why themselves; they may have waited for another
            gone = {rank: self._failures.get(rank, "failed") for rank in found}
            late = any("timed out" in why.lower() for why in gone.values())
            silent = self._homes.keys() - self._failures.keys() if late else set()
            gone |= dict.fromkeys(silent, STANDS_STILL)
        for rank, home in self._homes.items():
            after_s = 0.0 if gone.get(rank) == STANDS_STILL else 4 * LEAVE_S
            self._leaving.setdefault(home.node_id, {})[home.process] = after_s
        text = "; ".join(
            f"rank {rank} on {self._homes.get(rank, 'a machine')}: {gone[rank]}"
            for rank in sorted(gone, key=lambda rank: (rank in self._failures, rank))
        )
        self._losses.append(text)
        if len(self._losses) <= self._max_failures:
            note = f"lost {text}; all start again from the last checkpoint"
            self._messages.append(("note", note))
        self._homes, self._failures = {}, {}

    def post(self, kind: str, value: Any) -> None:
        """Keeps a message for the driver."""
        self._messages.append((kind, value))

    def seen(self) -> None:
        """Returns when all that the caller has sent is here."""

    def take(self) -> Said:
        """Returns all there is, messages once."""
        said = Said(
            list(self._messages), self._fatal, len(self._homes), self._losses, self._leaving
        )
        self._messages.clear()
        self._leaving = {}
        return said


def take_from(board: Any) -> Said:
    """Returns what a board (a Ray actor) has for the driver; nothing if it is gone."""
    import ray

    try:
        said: Said = ray.get(board.take.remote(), timeout=10.0)
    except Exception:  # it may have been killed for memory; the run goes on
        return Said()
    return said
