"""manifest.parquet: the receipts as one table, rebuilt by one process and replaced atomically."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ltrp_core.errors import DamagedFileError, RequestError
from pipeline.parsing import parse_parquet
from pipeline.store.receipts import Receipt
from pipeline.store.storage import Storage

MANIFEST = "manifest.parquet"
TABLE = "selections.parquet"
"""What `select` kept, as a table beside the units."""
_ROWS_AT_A_TIME = 16384
SCHEMA = pa.schema(
    [
        ("unit", pa.string()),
        ("shard", pa.string()),
        ("shard_size", pa.int64()),
        ("shard_sha256", pa.string()),
        ("n_in", pa.int64()),
        ("n_ok", pa.int64()),
        ("n_bad", pa.int64()),
        ("reasons", pa.string()),
        ("damage", pa.string()),
        ("bytes", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class UnitRow:
    """What the manifest says of one unit; `reasons` is JSON."""

    unit: str
    shard: str
    shard_size: int
    shard_sha256: str
    n_in: int
    n_ok: int
    n_bad: int
    reasons: str
    damage: str | None
    bytes: int

    @classmethod
    def of(cls, receipt: Receipt) -> UnitRow:
        """Returns the row of a receipt."""
        return cls(
            unit=receipt.unit,
            shard=receipt.input["name"],
            shard_size=receipt.input["size"],
            shard_sha256=receipt.input["sha256"],
            n_in=receipt.n_in,
            n_ok=receipt.n_ok,
            n_bad=receipt.n_bad,
            # Most units have the same: a text each would be kept as long as the driver runs.
            reasons=sys.intern(json.dumps(dict(receipt.reasons), sort_keys=True)),
            damage=receipt.damage,
            bytes=receipt.num_bytes,
        )


def read_manifest(storage: Storage) -> list[UnitRow]:
    """Returns the rows of the manifest as it lies there; none if there is no manifest.

    Raises:
        DamagedFileError: it is no manifest.
    """
    rows = []
    for content in storage.read_many([MANIFEST]).values():
        table = parse_parquet(content, f"{storage.url}/{MANIFEST}", schema=SCHEMA)
        empty = [name for name in SCHEMA.names if name != "damage" and table[name].null_count]
        if empty:
            raise DamagedFileError(f"{storage.url}/{MANIFEST}: a row has no {empty[0]}")
        columns = [table[name].to_pylist() for name in SCHEMA.names]
        rows = [UnitRow(*values) for values in zip(*columns, strict=True)]
    return rows


def manifest_table(rows: Iterable[UnitRow]) -> pa.Table:
    """Returns one row per unit, sorted by name; a pure function of the rows."""
    return pa.Table.from_batches(_batches(rows), schema=SCHEMA)


def manifest_bytes(rows: Iterable[UnitRow]) -> bytes:
    """Returns the Parquet file of `manifest_table`."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, SCHEMA, write_page_checksum=True) as file:
        for batch in _batches(rows):
            file.write_batch(batch)
    return buffer.getvalue()


def _batches(rows: Iterable[UnitRow]) -> Iterator[pa.RecordBatch]:
    """Yields the sorted rows, some at a time and column by column.

    A dictionary a row, or all of them at once, would be most of the driver's memory at 100,000
    units.
    """
    ordered = sorted(rows, key=lambda row: row.unit)
    for first in range(0, max(len(ordered), 1), _ROWS_AT_A_TIME):
        some = ordered[first : first + _ROWS_AT_A_TIME]
        yield pa.RecordBatch.from_arrays(
            [
                pa.array((getattr(row, field.name) for row in some), field.type, size=len(some))
                for field in SCHEMA
            ],
            schema=SCHEMA,
        )


def check_same_members(known: UnitRow, number: int) -> None:
    """Checks that a shard is read by the rule that its unit was scored by.

    Args:
        number: of the images and of the rows of what is left out, as the shard is read now. With
            `salvage` earlier versions took whichever image of a sample came first, and had a row
            for each other one.

    Raises:
        RequestError: it is not.
    """
    if number != known.n_in:
        raise RequestError(
            f"unit {known.unit} was scored by a version that chose the images of {known.shard} "
            f"otherwise ({known.n_in} images and rows then, {number} now): its scores may be of "
            "other members; score the shard again, into another --out"
        )
