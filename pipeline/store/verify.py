"""Checks of a cache: every unit, every file, the conservation law, and what should not be there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ltrp_core.errors import DamagedFileError, RequestError
from pipeline.store.cache import APPENDED, Cache, open_cache
from pipeline.store.errors import DamagedUnitError
from pipeline.store.manifest import (
    MANIFEST,
    TABLE,
    UnitRow,
    manifest_bytes,
    read_manifest,
)
from pipeline.store.receipts import Receipt
from pipeline.store.records.forms import form_of
from pipeline.store.run_file import RUN_FILE
from pipeline.store.storage import QUARANTINE, UNITS, Storage
from pipeline.store.storage.local import ATTEMPTS
from pipeline.store.storage.lock import LOCK
from pipeline.store.units import UnitState, damaged_file, is_damage, unit_name
from pipeline.units.selection_table import table_problem

_KNOWN = {RUN_FILE, UNITS, MANIFEST, TABLE, LOCK, "log", QUARANTINE, APPENDED}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it should be."""

    what: str
    """One line: where, what, and what to do."""
    unit: str | None = None
    """The damaged unit; None where no unit is, or where nothing is known of it."""
    storage: Storage | None = None
    """Where that unit is: the cache, or that of its appended views."""


def problems(cache: Cache, *, deep: bool = False) -> Iterator[Fault]:
    """Yields the faults: damaged units, records out of range, stray files, a stale manifest.

    Args:
        deep: also re-reads every file against its sha256.
    """
    good: dict[str, UnitRow] = {}
    bad: set[str] = set()
    for unit, state in cache.scan().items():
        try:
            problem = state.problem or _bad_content(cache, unit, state, deep)
        except OSError as error:
            # Nothing is known of it: not to be moved away for a store that is away.
            bad.add(unit)
            yield Fault(f"{unit}: could not be read: {error}")
            continue
        if problem is None and state.receipt is not None:
            good[unit] = UnitRow.of(state.receipt)
        else:
            bad.add(unit)
            yield Fault(f"{unit}: {problem}", unit, cache.storage)
        yield from (Fault(f"{unit}: stray file {name}, delete it") for name in state.strays)
    yield from map(Fault, _outside_units(cache, good))
    yield from map(Fault, _manifest(cache, good, bad))
    yield from map(Fault, _table(cache, good, bad, deep))
    yield from _parts(cache, good, deep)


def _parts(cache: Cache, good: dict[str, UnitRow], deep: bool) -> Iterator[Fault]:
    """Yields the faults of appended views, and where they do not go with the cache."""
    parts: list[Cache] = []
    for url in cache.part_urls:
        try:
            parts.append(open_cache(url))
        except RequestError as error:
            yield Fault(f"{url.removeprefix(cache.url).strip('/')}: {error}")
    parts.sort(key=lambda part: (int(part.identity["first_view"]), part.url))
    first = int(cache.identity.get("first_view", 0)) + int(cache.identity.get("views", 0))
    for part in parts:
        name = part.url.removeprefix(cache.url).strip("/")
        problem = cache.part_problem(part, first)
        if problem is not None:
            yield Fault(f"{name}: {problem}")
            continue
        first += int(part.identity["views"])
        for fault in problems(part, deep=deep):
            yield replace(fault, what=f"{name}: {fault.what}")
        for unit in sorted(set(good) & set(part.rows)):
            if good[unit].shard_sha256 != part.rows[unit].shard_sha256:
                yield Fault(
                    f"{name}: {unit}: made of another shard than the unit", unit, part.storage
                )
        missing = sorted(set(good) - set(part.rows))
        if missing:
            yield Fault(
                f"{name}: {len(missing)} unit(s) not appended yet, e.g. {missing[0]}; "
                "these views are not read until the same --append-views has finished"
            )


def _bad_content(cache: Cache, unit: str, state: UnitState, deep: bool) -> str | None:
    if state.receipt is None:
        return None
    if deep and (name := damaged_file(cache.storage, unit, state.receipt)) is not None:
        return f"{name} has another sha256 than its receipt says"
    try:
        if state.receipt.n_bad:
            cache.errors(unit)
        return _bad_records(cache, unit, state.receipt)
    except DamagedFileError as error:
        return str(error)
    except OSError as error:
        if is_damage(error):
            return str(error)
        raise


def _outside_units(cache: Cache, good: Collection[str]) -> Iterator[str]:
    for name in cache.storage.names(QUARANTINE):
        unit = name.removesuffix(".json").rpartition(".")[0]
        yield f"{name}: in quarantine; " + (
            "a good unit has taken its place, delete it"
            if unit in good
            else f"no good unit {unit} has taken its place yet: run the same command again"
        )
    for name in cache.storage.names(ATTEMPTS):
        yield f"{ATTEMPTS}/{name}: left by an attempt; the next run clears it"
    for name in sorted(set(cache.storage.names("")) - _KNOWN - {ATTEMPTS}):
        yield f"{name}: stray file or folder, no part of a cache"


def _manifest(cache: Cache, good: dict[str, UnitRow], bad: Collection[str]) -> Iterator[str]:
    """Yields where the manifest is not what the receipts say.

    Its advice is to write it anew only where nothing else can be wrong than the manifest.
    """
    found = cache.storage.read_many([MANIFEST])
    again = "run the same command again, which rebuilds it"
    if not found:
        yield f"{MANIFEST} is missing; {again}"
        return
    if not bad and found[MANIFEST] == manifest_bytes(good.values()):
        return
    try:
        listed = read_manifest(cache.storage)
    except DamagedFileError as error:
        yield f"{error}; {again}"
        return
    for unit, count in Counter(row.unit for row in listed).items():
        if count > 1:
            yield f"{MANIFEST} lists {unit} {count} times; {again}"
    yield from _wrong_rows({row.unit: row for row in listed}, good, bad)
    missing = sorted(set(good) - {row.unit for row in listed})
    if missing:
        yield f"{MANIFEST} lacks {len(missing)} unit(s), e.g. {missing[0]}; {again}"
    if not bad and sorted(listed, key=lambda row: row.unit) == [good[u] for u in sorted(good)]:
        yield f"{MANIFEST} has the right rows and other bytes than they give; {again}"


def _wrong_rows(
    listed: dict[str, UnitRow], good: dict[str, UnitRow], bad: Collection[str]
) -> Iterator[str]:
    for unit, row in sorted(listed.items()):
        if unit not in good and unit not in bad:
            yield (
                f"{unit}: {MANIFEST} lists it, and it is not there; run the same command again "
                f"with its shard {row.shard}"
            )
        elif unit in good and row != good[unit]:
            own = unit_name(row.shard) == unit
            yield (
                f"{unit}: {MANIFEST} and its receipt do not agree: "
                + "; ".join(
                    f"{name} {getattr(row, name)!r} there, {getattr(good[unit], name)!r} here"
                    for name in UnitRow.__slots__
                    if getattr(row, name) != getattr(good[unit], name)
                )
                + ("; run the same command again with its shard, which tells" if own else "")
            )


def _table(cache: Cache, good: Collection[str], bad: Collection[str], deep: bool) -> Iterator[str]:
    """Yields what is wrong with the table of selections, if the units that it is of are whole."""
    if bad or cache.identity.get("stage") != "select":
        return
    problem = table_problem(cache, deep=deep)
    if problem is not None:
        yield f"{problem}; run the same `select` again, which writes it anew"


def _bad_records(cache: Cache, unit: str, receipt: Receipt) -> str | None:
    """Returns what is wrong with the records in one line; memory is bounded."""
    name, stamps = receipt.records
    rows, keys = 0, set[str]()
    with cache.storage.local_copy(f"{UNITS}/{unit}/{name}", stamps) as path:
        for block in form_of(str(cache.identity["store"])).read_blocks(path, None, stamps):
            rows += len(block["key"])
            keys.update(block["key"].tolist())
            for array, values in block.items():
                if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
                    raise DamagedUnitError(f"array {array!r} holds values that are not finite")
    if rows != receipt.n_ok:
        return f"receipt says {receipt.n_ok} records, there are {rows}"
    return "keys are not unique" if len(keys) != rows else None
