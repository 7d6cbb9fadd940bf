"""Places in the code where tests make things go wrong. Without LTRP_FAULT nothing happens.

LTRP_FAULT is JSON: `point`, one of POINTS; optionally `unit` (only a unit whose name contains it),
`nth` (the nth passage in a process, from 1), `action` (exit, hang, full_disk, out_of_memory; exit
unless given) and `once`, a path: whoever creates that file first is the only one to fail.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import time
from collections import Counter
from typing import Any

VARIABLE = "LTRP_FAULT"
POINTS = (
    "before_read",
    "mid_forward",
    "after_attempt_write",
    "after_receipt",
    "before_rename",
    "after_rename",
    "before_manifest",
)
_passages: Counter[str] = Counter()


def fault_point(point: str, unit: str = "") -> None:
    """Does what LTRP_FAULT asks for at this point."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return
    fault = _parsed(text)
    if fault["point"] != point or fault.get("unit", "") not in unit:
        return
    _passages[point] += 1
    if _passages[point] < fault.get("nth", 1) or not _first(fault.get("once")):
        return
    _act(fault.get("action", "exit"), point)


@functools.cache
def _parsed(text: str) -> dict[str, Any]:
    fault: dict[str, Any] = json.loads(text)
    if fault["point"] not in POINTS:
        raise ValueError(f"{VARIABLE}: no point {fault['point']!r}; there are {POINTS}")
    return fault


def _first(once: str | None) -> bool:
    if once is None:
        return True
    try:
        os.close(os.open(once, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _act(action: str, point: str) -> None:
    match action:
        case "exit":
            os._exit(1)
        case "hang":
            time.sleep(3600)
        case "full_disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "out_of_memory":
            raise MemoryError(f"fault at {point}")
        case _:
            raise ValueError(f"{VARIABLE}: no action {action!r}")
