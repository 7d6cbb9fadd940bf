"""Checks of a finished cache: every unit, every file, and the conservation law."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.store.cache import Cache
from pipeline.store.errors import DamagedUnitError
from pipeline.store.units import QUARANTINE, UNITS, unit_problem


def problems(cache: Cache, *, deep: bool = False) -> Iterator[str]:
    """Yields one line a fault: damaged units, stray files, records out of their range.

    Args:
        deep: also re-reads every file against its sha256.
    """
    folder = cache.path / UNITS
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        problem = unit_problem(path, run_id=cache.run_id, deep=deep)
        if problem is None:
            problem = _bad_records(cache, path.name)
        if problem is not None:
            yield f"{path.name}: {problem}"
    for path in sorted((cache.path / QUARANTINE).glob("*")):
        yield f"{path.name}: in quarantine; a good unit has taken its place, delete it"


def _bad_records(cache: Cache, unit: str) -> str | None:
    try:
        arrays = cache.read(unit)
    except DamagedUnitError as error:
        return str(error)
    for name, values in arrays.items():
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            return f"array {name!r} holds values that are not finite"
    keys = arrays["key"].tolist()
    if len(set(keys)) != len(keys):
        return "keys are not unique"
    return None
