"""Ctrl-C and SIGTERM end a command the same way: what is committed stays, exit status 130."""

from __future__ import annotations

import os
import signal
from types import FrameType


def interrupt_on_signals() -> None:
    """Makes SIGINT and SIGTERM raise KeyboardInterrupt, and a second one end the process at once.

    Call it again after `ray.init`, which installs a handler of its own that aborts on SIGTERM.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, _exit_now)
    raise KeyboardInterrupt


def _exit_now(number: int, frame: FrameType | None) -> None:
    os._exit(130)
