"""Where a cache lies: a local folder or an object store. Start at `open_storage`."""

from pipeline.store.storage.base import (
    QUARANTINE,
    SCHEMES,
    UNITS,
    Storage,
    UnsafeNameError,
    check_inside,
    is_inside,
    is_url,
    open_storage,
)

__all__ = [
    "QUARANTINE",
    "SCHEMES",
    "UNITS",
    "Storage",
    "UnsafeNameError",
    "check_inside",
    "is_inside",
    "is_url",
    "open_storage",
]
