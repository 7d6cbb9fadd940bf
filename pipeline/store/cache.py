"""A cache: one run's identity, its committed units, and what readers may see of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ltrp_core.errors import DamagedFileError, RequestError
from pipeline.parsing import parse_parquet
from pipeline.store.errors import DamagedUnitError
from pipeline.store.manifest import (
    MANIFEST,
    UnitRow,
    manifest_bytes,
    manifest_table,
    read_manifest,
)
from pipeline.store.receipts import ERRORS, RECEIPT, Receipt
from pipeline.store.records.forms import form_of
from pipeline.store.run_file import claim_storage, difference, read_run, run_id
from pipeline.store.storage import UNITS, Storage, open_storage
from pipeline.store.units import UnitState, parse_unit
from stages.protocols import Arrays, BadSample

APPENDED = "appended"
"""Folder of the caches that hold further views of the same samples."""
_RECEIPTS_AT_A_TIME = 4096
"""Read together, so that an object store is asked for many at once."""
_VIEW_ARRAYS = frozenset({"crop", "flip", "visible", "score", "pixels"})
"""Arrays whose second axis is the views."""
_OF_VIEWS = frozenset({"views", "first_view", "schema"})
"""What views that are appended may have otherwise than the cache that they belong to."""


class Cache:
    """A cache that exists.

    Readers trust a unit only if its receipt is of this run and of this unit, and every file has its
    size. One that was done and is damaged is an error to them: they would be silently given less.
    Views that were appended are seen as soon as every unit has them.
    """

    def __init__(self, storage: Storage, identity: Mapping[str, Any]) -> None:
        self.storage = storage
        self.identity = identity
        """Every option of this run that changes a number, and the weights' sha256."""

    @property
    def url(self) -> str:
        """Where it is: an absolute path or a URL."""
        return self.storage.url

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

    @property
    def rows(self) -> dict[str, UnitRow]:
        """What is known of the complete units, by name, sorted; read once."""
        return self._known[0]

    @property
    def damaged(self) -> dict[str, str]:
        """What is wrong with units that were done and are not whole now, by name; read once."""
        return self._known[1]

    @cached_property
    def _known(self) -> tuple[dict[str, UnitRow], dict[str, str]]:
        try:
            # Before the units: those that a run adds meanwhile are not missed then.
            listed = read_manifest(self.storage)
        except DamagedFileError:
            listed = []  # only a copy of the receipts
        rows, damaged = {}, {}
        for unit, state in self._states():
            if state.problem is None and state.receipt is not None:
                rows[unit] = UnitRow.of(state.receipt)
            elif state.problem is not None and not state.is_begun:
                damaged[unit] = state.problem
        for row in listed:
            if row.unit not in rows and row.unit not in damaged:
                damaged[row.unit] = (
                    f"{MANIFEST} lists it, made of shard {row.shard}, and it is not there"
                )
        return rows, dict(sorted(damaged.items()))

    @property
    def units(self) -> Sequence[str]:
        """Names of the complete units, sorted.

        Raises:
            DamagedUnitError: a unit that was done is damaged or gone, here or of appended views.
        """
        self.check_own()
        for part in self.parts:
            part.check_own()
        return sorted(self.rows)

    def shards_sha256(self) -> str:
        """Returns what changes with any unit, its shard's content or its number of rows, in hex."""
        rows = [(row.unit, row.n_ok, row.shard_sha256) for _, row in sorted(self.rows.items())]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def check_own(self) -> None:
        """Raises what `units` does, of this cache without its appended views."""
        for unit, problem in self.damaged.items():
            more = len(self.damaged) - 1
            others = f" (and {more} more damaged unit(s))" if more else ""
            raise self._damage(unit, f"{problem}{others}")

    @property
    def manifest(self) -> pa.Table:
        """One row a complete unit, made from the receipts: shard, counts, reasons, bytes."""
        return manifest_table(self.rows.values())

    @cached_property
    def appended(self) -> Sequence[Cache]:
        """The caches of further views that have every unit of this one, in order.

        Raises:
            DamagedUnitError: one is not of this cache, or holds the views of another.
        """
        first = int(self.identity.get("first_view", 0)) + int(self.identity.get("views", 0))
        for part in self.parts:
            problem = self.part_problem(part, first)
            if problem is not None:
                raise DamagedUnitError(f"{part.url}: {problem}")
            first += int(part.identity["views"])
        return [part for part in self.parts if set(self.rows) <= set(part.rows)]

    @cached_property
    def parts(self) -> Sequence[Cache]:
        """All caches of further views, finished or not, in the order of their views."""
        found = [open_cache(url) for url in self.part_urls]
        return sorted(found, key=lambda part: (int(part.identity["first_view"]), part.url))

    @property
    def part_urls(self) -> Sequence[str]:
        """Where the caches of further views are."""
        return [f"{self.storage.url}/{APPENDED}/{name}" for name in self.storage.names(APPENDED)]

    def part_problem(self, part: Cache, first_view: int) -> str | None:
        """Returns why `part` is not the views from `first_view` on of this cache, or None."""
        then, now = but_views(self.identity), but_views(part.identity)
        if then != now:
            return f"it is no part of this cache; move it away: {difference(self.url, then, now)}"
        found = int(part.identity["first_view"])
        if found != first_view or not part.url.endswith(f"/{part_name(first_view)}"):
            return (
                f"it holds the views from {found} on, and those from {first_view} on belong into "
                f"{part_name(first_view)}; move away what was copied there"
            )
        return None

    def scan(self) -> dict[str, UnitState]:
        """Returns what is known of everything under units/, by name, sorted."""
        return dict(self._states())

    def _states(self) -> Iterator[tuple[str, UnitState]]:
        """Yields what `scan` returns; some receipts at a time, for there may be 100,000."""
        sizes: dict[str, dict[str, int]] = {name: {} for name in self.storage.names(UNITS)}
        for path, size in self.storage.sizes(UNITS).items():
            unit, _, name = path.partition("/")
            # A file beside the units is as wrong as a unit without a receipt.
            sizes.setdefault(unit, {})[name or unit] = size
        units = sorted(sizes)
        for first in range(0, len(units), _RECEIPTS_AT_A_TIME):
            some = units[first : first + _RECEIPTS_AT_A_TIME]
            names = {unit: f"{UNITS}/{unit}/{RECEIPT}" for unit in some}
            contents = self.storage.read_many(names.values())
            for unit, name in names.items():
                state = parse_unit(unit, contents.get(name), sizes.pop(unit), run_id=self.run_id)
                yield unit, state

    def receipt(self, unit: str) -> Receipt:
        """Returns the receipt of a complete unit.

        Raises:
            RequestError: no complete unit has that name.
            DamagedUnitError: it is not there any more, or not what it was.
        """
        if unit in self.damaged:
            raise self._damage(unit, self.damaged[unit])
        if unit not in self.rows:
            raise RequestError(
                f"{self.url} has no complete unit {unit!r}; see `ltrp-pipeline verify`"
            )
        try:
            receipt = Receipt.parse(self.storage.read(f"{UNITS}/{unit}/{RECEIPT}"))
        except (FileNotFoundError, ValueError) as error:
            raise self._damage(unit, error) from error
        if UnitRow.of(receipt) != self.rows[unit]:
            raise self._damage(unit, f"{RECEIPT} is another than when the cache was opened")
        return receipt

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
            same = part.rows[unit].shard_sha256 == self.rows[unit].shard_sha256
            if not same or not np.array_equal(more["key"], arrays["key"]):
                what = "keys" if same else "shard"
                raise DamagedUnitError(
                    f"{part.url}: unit {unit} is of another {what} than in {self.url}"
                )
        for name in _VIEW_ARRAYS & set(arrays) if parts else ():
            arrays[name] = np.concatenate([arrays[name], *(part[name] for part in parts)], axis=1)
        return arrays

    def read_own(self, unit: str, names: Collection[str] | None = None) -> Arrays:
        """Returns the arrays of one unit without the views that were appended: see `read`."""
        receipt = self.receipt(unit)
        wanted = None if names is None else {"key", *names}
        records, stamps = receipt.records
        form = form_of(str(self.identity["store"]))
        try:
            with self.storage.local_copy(f"{UNITS}/{unit}/{records}", stamps) as path:
                arrays = form.read(path, wanted, stamps)
        except (FileNotFoundError, DamagedFileError) as error:
            raise self._damage(unit, error) from error
        counts = {name: len(values) for name, values in arrays.items()}
        if set(counts.values()) != {receipt.n_ok}:
            raise self._damage(
                unit, f"the receipt says {receipt.n_ok} records, the arrays hold {counts}"
            )
        return arrays

    def errors(self, unit: str) -> list[BadSample]:
        """Returns the samples of one unit that are bad.

        Raises:
            RequestError: no complete unit has that name.
            DamagedUnitError: their file is unreadable, or is not what the receipt says.
        """
        receipt = self.receipt(unit)
        if not receipt.n_bad:
            return []
        name = receipt.path_of(ERRORS)
        try:
            data = self.storage.read(f"{UNITS}/{unit}/{name}")
            if hashlib.sha256(data).hexdigest() != receipt.files[name].sha256:
                raise DamagedFileError(f"{name} has another sha256 than its receipt says")
            rows = [BadSample(**row) for row in parse_parquet(data, name).to_pylist()]
        except (FileNotFoundError, DamagedFileError, TypeError) as error:
            raise self._damage(unit, error) from error
        counts = Counter(row.reason for row in rows)
        if counts != receipt.reasons:
            raise self._damage(unit, f"{name} has the reasons {dict(counts)}, its receipt others")
        return rows

    def _damage(self, unit: str, what: object) -> DamagedUnitError:
        base = self.url.partition(f"/{APPENDED}/")[0]
        return DamagedUnitError(
            f"{self.url}: unit {unit}: {what}; `ltrp-pipeline verify {base} --deep --repair`, then "
            "the same run again"
        )

    def refresh(self) -> None:
        """Forgets what was read of receipts so far."""
        for name in ("_known", "parts", "appended"):
            self.__dict__.pop(name, None)

    def clear_attempts(self) -> None:
        """Removes what dead workers left; call it under the storage's lock."""
        self.storage.clear_attempts()

    def add(self, row: UnitRow) -> None:
        """Takes note of a unit that was committed since `rows` was read."""
        self.rows[row.unit] = row
        self.damaged.pop(row.unit, None)

    def write_manifest(self) -> None:
        """Replaces manifest.parquet by what the receipts say."""
        self.storage.replace(MANIFEST, manifest_bytes(self.rows.values()))


def but_views(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what views that are appended have in common with the cache that they belong to."""
    return {name: value for name, value in identity.items() if name not in _OF_VIEWS}


def part_name(first_view: int) -> str:
    """Returns the name of the folder that holds appended views from `first_view` on."""
    return f"views-{first_view:05d}"


def open_cache(path: str | Path) -> Cache:
    """Returns the cache at a path or URL for reading: `.run`, `.units`, `.read(unit)`, `.manifest`.

    Raises:
        RequestError: there is no cache.
    """
    storage = open_storage(path)
    return Cache(storage, read_run(storage))


def create_cache(path: str | Path, stage: str, identity: Mapping[str, Any]) -> Cache:
    """Returns the cache at a path or URL, made if it does not exist.

    Raises:
        RunMismatchError: another run is there (the message names every difference) or something
            that is no cache.
    """
    storage = open_storage(path)
    return Cache(storage, claim_storage(storage, stage, identity))
