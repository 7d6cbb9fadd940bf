"""Joins by key: where each key of a cache is, and the units that were read lately."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from ltrp_core.errors import RequestError
from stages.protocols import Arrays, CacheReader

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


def places_of(cache: CacheReader, name: str) -> dict[str, tuple[str, int]]:
    """Returns the unit and the row of every key of a cache.

    Args:
        cache: its keys alone are read.
        name: what messages call it.

    Raises:
        RequestError: it has a key twice.
    """
    places: dict[str, tuple[str, int]] = {}
    for unit in cache.units:
        for row, key in enumerate(cache.read(unit, ["key"])["key"].tolist()):
            if key in places:
                raise RequestError(
                    f"{name} has the key {key!r} twice (units {places[key][0]} and {unit}): "
                    "nothing can be joined by it"
                )
            places[key] = unit, row
    return places


def _size(arrays: Arrays) -> int:
    return sum(values.nbytes for values in arrays.values())
