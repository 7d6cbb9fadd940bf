"""Units of a cache that were read lately: a join by key does not read one again and again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from stages.protocols import Arrays

LIMIT_BYTES = 256 << 20


class RecentUnits:
    """Reads units and keeps those that were asked for last; several threads may ask.

    Where two caches were sharded alike, one unit at a time is enough. Where they were not, the
    images of one unit are in many of the other, and come round again.
    """

    def __init__(self, read: Callable[[str], Arrays], limit_bytes: int = LIMIT_BYTES) -> None:
        """Takes what reads a unit of a finished cache, and how much is kept beside the last one."""
        self._read, self._limit = read, limit_bytes
        self._kept: OrderedDict[str, Arrays] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __getitem__(self, unit: str) -> Arrays:
        """Returns the arrays of a unit."""
        with self._lock:
            if unit in self._kept:
                self._kept.move_to_end(unit)
                return self._kept[unit]
            arrays = self._read(unit)
            self._kept[unit] = arrays
            self._bytes += _size(arrays)
            while self._bytes > self._limit and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= _size(oldest)
            return arrays


def _size(arrays: Arrays) -> int:
    return sum(values.nbytes for values in arrays.values())
