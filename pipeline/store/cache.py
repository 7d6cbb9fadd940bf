"""A cache: one run's identity, its committed units, and what readers may see of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ltrp_core.errors import RequestError
from pipeline.store.errors import DamagedUnitError
from pipeline.store.manifest import MANIFEST, UnitRow, manifest_bytes, manifest_table
from pipeline.store.places import ATTEMPTS, LocalPlace, ObjectPlace, open_place
from pipeline.store.receipts import Receipt
from pipeline.store.record_forms import FORMS
from pipeline.store.run_file import claim_place, read_run, run_id
from pipeline.store.units import RECEIPT, UNITS, UnitState, parse_unit
from stages.protocols import Arrays

APPENDED = "appended"
"""Folder of the caches that hold further views of the same samples."""
_RECEIPTS_AT_A_TIME = 4096
"""Read together, so that an object store is asked for many at once."""
_VIEW_ARRAYS = frozenset({"crop", "flip", "visible", "score", "pixels"})
"""Arrays whose second axis is the views."""


class Cache:
    """A cache that exists.

    Readers trust a unit only if its receipt is of this run and every file has its size. Views that
    were appended are seen as soon as every unit has them.
    """

    def __init__(self, place: LocalPlace | ObjectPlace, identity: Mapping[str, Any]) -> None:
        self.place = place
        self.identity = identity
        """Every option of this run that changes a number, and the weights' sha256."""

    @property
    def url(self) -> str:
        """Where it is: an absolute path or a URL."""
        return self.place.url

    @property
    def run_id(self) -> str:
        """Hash of the identity."""
        return run_id(self.identity)

    @property
    def run(self) -> Mapping[str, Any]:
        """The identity, with the number of views that `read` returns."""
        extra = sum(int(part.identity["views"]) for part in self.appended)
        return (
            {**self.identity, "views": int(self.identity["views"]) + extra}
            if extra
            else (self.identity)
        )

    @cached_property
    def rows(self) -> dict[str, UnitRow]:
        """What is known of the complete units, by name, sorted; read once."""
        found = {}
        for unit, state in self._states():
            if state.problem is None and state.receipt is not None:
                found[unit] = UnitRow.of(state.receipt)
        return found

    @property
    def units(self) -> Sequence[str]:
        """Names of the complete units, sorted."""
        return sorted(self.rows)

    @property
    def manifest(self) -> pa.Table:
        """One row a complete unit, made from the receipts: shard, counts, reasons, bytes."""
        return manifest_table(self.rows.values())

    @cached_property
    def appended(self) -> Sequence[Cache]:
        """The caches of further views that have every unit of this one, in order."""
        return [part for part in self.parts if set(self.rows) <= set(part.rows)]

    @cached_property
    def parts(self) -> Sequence[Cache]:
        """All caches of further views, finished or not, in the order of their views."""
        found = [
            open_cache(f"{self.place.url}/{APPENDED}/{name}") for name in self.place.names(APPENDED)
        ]
        return sorted(found, key=lambda part: int(part.identity["first_view"]))

    def scan(self) -> dict[str, UnitState]:
        """Returns what is known of everything under units/, by name, sorted."""
        return dict(self._states())

    def _states(self) -> Iterator[tuple[str, UnitState]]:
        """Yields what `scan` returns; some receipts at a time, for there may be 100,000."""
        sizes: dict[str, dict[str, int]] = {name: {} for name in self.place.names(UNITS)}
        for path, size in self.place.sizes(UNITS).items():
            unit, _, name = path.partition("/")
            # A file beside the units is as wrong as a unit without a receipt.
            sizes.setdefault(unit, {})[name or unit] = size
        units = sorted(sizes)
        for first in range(0, len(units), _RECEIPTS_AT_A_TIME):
            some = units[first : first + _RECEIPTS_AT_A_TIME]
            names = {unit: f"{UNITS}/{unit}/{RECEIPT}" for unit in some}
            contents = self.place.read_many(names.values())
            for unit, name in names.items():
                state = parse_unit(contents.get(name), sizes.pop(unit), run_id=self.run_id)
                yield unit, state

    def receipt(self, unit: str) -> Receipt:
        """Returns the receipt of a complete unit.

        Raises:
            RequestError: no complete unit has that name.
        """
        if unit not in self.rows:
            raise RequestError(
                f"{self.url} has no complete unit {unit!r}; see `ltrp-pipeline verify`"
            )
        return Receipt.parse(self.place.read(f"{UNITS}/{unit}/{RECEIPT}"))

    def read(self, unit: str, names: Collection[str] | None = None) -> Arrays:
        """Returns the arrays of one unit, appended views included.

        Args:
            names: only these arrays (and `key`); all if omitted.

        Raises:
            RequestError: no complete unit has that name.
            DamagedUnitError: its files are unreadable or fail a checksum.
        """
        arrays = self.read_own(unit, names)
        parts = [part.read_own(unit, names) for part in self.appended]
        for part, more in zip(self.appended, parts, strict=True):
            if not np.array_equal(more["key"], arrays["key"]):
                raise DamagedUnitError(f"{part.url}: unit {unit} has other keys than {self.url}")
        for name in _VIEW_ARRAYS & set(arrays) if parts else ():
            arrays[name] = np.concatenate([arrays[name], *(part[name] for part in parts)], axis=1)
        return arrays

    def read_own(self, unit: str, names: Collection[str] | None = None) -> Arrays:
        """Returns the arrays of one unit without the views that were appended: see `read`."""
        receipt = self.receipt(unit)
        wanted = None if names is None else {"key", *names}
        records, stamps = receipt.records
        form = FORMS[str(self.identity["store"])]
        remedy = f"`ltrp-pipeline verify {self.url} --deep --repair`, then the same run again"
        try:
            with self.place.local_copy(f"{UNITS}/{unit}/{records}", stamps) as path:
                arrays = form.read(path, wanted)
        except (FileNotFoundError, DamagedUnitError) as error:
            raise DamagedUnitError(f"{self.url}: unit {unit}: {error}; {remedy}") from error
        counts = {name: len(values) for name, values in arrays.items()}
        if set(counts.values()) != {receipt.n_ok}:
            raise DamagedUnitError(
                f"{self.url}: unit {unit}: the receipt says {receipt.n_ok} records, the arrays "
                f"hold {counts}; {remedy}"
            )
        return arrays

    def refresh(self) -> None:
        """Forgets what was read of receipts so far."""
        for name in ("rows", "parts", "appended"):
            self.__dict__.pop(name, None)

    def clear_attempts(self) -> None:
        """Removes what dead workers left; call it under the place's lock."""
        if isinstance(self.place, LocalPlace):
            self.place.remove(ATTEMPTS)

    def add(self, row: UnitRow) -> None:
        """Takes note of a unit that was committed since `rows` was read."""
        self.rows[row.unit] = row

    def write_manifest(self) -> None:
        """Replaces manifest.parquet by what the receipts say."""
        self.place.replace(MANIFEST, manifest_bytes(self.rows.values()))


def open_cache(path: str | Path) -> Cache:
    """Returns the cache at a path or URL for reading: `.run`, `.units`, `.read(unit)`, `.manifest`.

    Raises:
        RequestError: there is no cache.
    """
    place = open_place(path)
    return Cache(place, read_run(place))


def create_cache(path: str | Path, stage: str, identity: Mapping[str, Any]) -> Cache:
    """Returns the cache at a path or URL, made if it does not exist.

    Raises:
        RunMismatchError: another run is there (the message names every difference) or something
            that is no cache.
    """
    place = open_place(path)
    return Cache(place, claim_place(place, stage, identity))
