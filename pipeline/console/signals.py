"""Ctrl-C and SIGTERM end a command the same way: what is committed stays, exit status 130."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType


def interrupt_on_signals() -> None:
    """Makes SIGINT and SIGTERM raise KeyboardInterrupt, and a second one end the process at once.

    A SIGINT that is ignored stays so: a shell has it ignored for what it starts in the background,
    whose user types Ctrl-C to something else. SIGTERM always ends a command.

    Call it again after `ray.init`, which installs a handler of its own that aborts on SIGTERM.
    """
    _handle(_interrupt)


def ignores_interrupts() -> bool:
    """Returns whether this process was started with SIGINT ignored."""
    return signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def _interrupt(number: int, frame: FrameType | None) -> None:
    _handle(_exit_now)
    raise KeyboardInterrupt


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    signal.signal(signal.SIGTERM, handler)
    if not ignores_interrupts():
        signal.signal(signal.SIGINT, handler)


def _exit_now(number: int, frame: FrameType | None) -> None:
    os._exit(130)
