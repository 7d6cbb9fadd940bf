"""Checks of a cache: every unit, every file, the conservation law, and what should not be there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.store.cache import APPENDED, Cache
from pipeline.store.errors import DamagedUnitError
from pipeline.store.lock import LOCK
from pipeline.store.manifest import MANIFEST, TABLE, manifest_bytes
from pipeline.store.places import ATTEMPTS
from pipeline.store.receipts import Receipt
from pipeline.store.record_forms import FORMS
from pipeline.store.run_file import RUN_FILE
from pipeline.store.units import QUARANTINE, UNITS, UnitState, damaged_file

_KNOWN = {RUN_FILE, UNITS, MANIFEST, TABLE, LOCK, "log", QUARANTINE, APPENDED}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it should be."""

    what: str
    """One line: where, what, and what to do."""
    unit: str | None = None
    """The damaged unit; None where no unit is."""


def problems(cache: Cache, *, deep: bool = False) -> Iterator[Fault]:
    """Yields the faults: damaged units, records out of range, stray files, a stale manifest.

    Args:
        deep: also re-reads every file against its sha256.
    """
    good, states = set(), cache.scan()
    for unit, state in states.items():
        problem = state.problem or _bad_content(cache, unit, state, deep)
        if problem is None:
            good.add(unit)
        else:
            yield Fault(f"{unit}: {problem}", unit)
        yield from (Fault(f"{unit}: stray file {name}, delete it") for name in state.strays)
    yield from map(Fault, _outside_units(cache))
    if len(good) == len(states):
        yield from map(Fault, _manifest(cache))
    for part in cache.parts:
        name = part.url.removeprefix(cache.url).strip("/")
        for fault in problems(part, deep=deep):
            yield Fault(f"{name}: {fault.what}")
        missing = sorted(good - set(part.rows))
        if missing:
            yield Fault(
                f"{name}: {len(missing)} unit(s) not appended yet, e.g. {missing[0]}; "
                "these views are not read until the same --append-views has finished"
            )


def _bad_content(cache: Cache, unit: str, state: UnitState, deep: bool) -> str | None:
    if state.receipt is None:
        return None
    if deep and (name := damaged_file(cache.place, state.receipt)) is not None:
        return f"{name} has another sha256 than its receipt says"
    return _bad_records(cache, unit, state.receipt)


def _outside_units(cache: Cache) -> Iterator[str]:
    for name in cache.place.names(QUARANTINE):
        yield f"{name}: in quarantine; a good unit has taken its place, delete it"
    for name in cache.place.names(ATTEMPTS):
        yield f"{ATTEMPTS}/{name}: left by an attempt; the next run clears it"
    for name in sorted(set(cache.place.names("")) - _KNOWN - {ATTEMPTS}):
        yield f"{name}: stray file or folder, no part of a cache"


def _manifest(cache: Cache) -> Iterator[str]:
    found = cache.place.read_many([MANIFEST])
    if not found:
        yield f"{MANIFEST} is missing; run the same command again, which rebuilds it"
    elif found[MANIFEST] != manifest_bytes(cache.rows.values()):
        yield f"{MANIFEST} is not what the receipts say; run the same command again"


def _bad_records(cache: Cache, unit: str, receipt: Receipt) -> str | None:
    """Returns what is wrong with the records in one line; memory is bounded."""
    records, stamps = receipt.records
    rows, keys = 0, set[str]()
    try:
        with cache.place.local_copy(f"{UNITS}/{unit}/{records}", stamps) as path:
            for block in FORMS[str(cache.identity["store"])].read_blocks(path):
                rows += len(block["key"])
                keys.update(block["key"].tolist())
                for array, values in block.items():
                    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
                        return f"array {array!r} holds values that are not finite"
    except (DamagedUnitError, OSError) as error:
        return str(error)
    if rows != receipt.n_ok:
        return f"receipt says {receipt.n_ok} records, there are {rows}"
    return "keys are not unique" if len(keys) != rows else None
