"""Progress of another process: its bars are told of by small messages, and drawn here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from stages.protocols import Bar, Progress

_EVERY_S = 0.5


class RelayedProgress:
    """A `Progress` that sends what its bars do, some times per second."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._number = 0

    @contextlib.contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Bar]:
        """Tells of one bar while the body runs."""
        self._number += 1
        bar = _RelayedBar(self._send, self._number)
        self._send({"bar": self._number, "task": [name, total, unit]})
        try:
            yield bar
        finally:
            bar.flush()
            self._send({"bar": self._number, "end": True})


class _RelayedBar:
    def __init__(self, send: Callable[[dict[str, Any]], None], number: int) -> None:
        self._send, self._number = send, number
        self._done = 0
        self._facts: dict[str, float | str] = {}
        self._sent = 0.0

    def advance(self, amount: int = 1, **facts: float | str) -> None:
        self._done += amount
        self._facts |= facts
        if time.monotonic() - self._sent >= _EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Sends the count so far: a message that was lost is made up for by the next."""
        self._sent = time.monotonic()
        self._send({"bar": self._number, "done": self._done, "facts": self._facts})


class RelayedBars:
    """Draws the bars that a `RelayedProgress` tells of."""

    def __init__(self, progress: Progress, on_note: Callable[[str], None] | None = None) -> None:
        self._progress = progress
        self._on_note = on_note
        self._open = contextlib.ExitStack()
        self._bar: Bar | None = None
        self._number = self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def show(self, message: Mapping[str, Any]) -> None:
        """Draws one message."""
        if "note" in message and self._on_note is not None:
            self._on_note(str(message["note"]))
        if "task" in message:
            self._open.close()
            self._bar = self._open.enter_context(self._progress.task(*message["task"]))
            self._number, self._done = message["bar"], 0
        elif message.get("bar") == self._number and self._bar is not None:
            if "done" in message:
                self._bar.advance(message["done"] - self._done, **message["facts"])
                self._done = message["done"]
            if message.get("end"):
                self._open.close()
                self._bar = None
