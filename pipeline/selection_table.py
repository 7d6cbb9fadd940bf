"""What `select` kept as one Parquet table, for readers that want rows: `selections.parquet`."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.cache import Cache
from pipeline.store.lock import place_lock
from pipeline.store.manifest import TABLE, manifest_bytes
from stages.protocols import Arrays
from stages.records import kept_name

_OF_UNITS = b"manifest_sha256"


def write_selection_table(cache: Cache) -> None:
    """Writes one row a (key, unit) of the complete units, unless the table of just these is there.

    Columns: key, unit, height, width; crop (top, left, height, width) and flip; for each keep ratio
    a list such as kept_0.25, the best patches first, then the homogeneous ones. Units in the order
    of their names, a row group each: the memory that it takes is that of one unit.

    Raises:
        LockedError: another process is writing there.
        DamagedUnitError: a unit cannot be read.
    """
    with place_lock(cache.place):
        units = hashlib.sha256(manifest_bytes(cache.rows.values())).hexdigest().encode()
        if _units_of_table(cache) == units:
            return
        names = [kept_name(ratio) for ratio in cache.run["keep_ratio"]]
        schema = _schema(names).with_metadata({_OF_UNITS: units})
        with cache.place.staging(TABLE) as folder:
            file = folder / TABLE
            with pq.ParquetWriter(file, schema, write_page_checksum=True) as writer:
                for unit in cache.units:
                    arrays = cache.read(unit, ["size", "crop", "flip", *names])
                    writer.write_table(pa.table(_columns(unit, arrays, names), schema=schema))
            cache.place.replace_from(TABLE, file)


def _schema(names: list[str]) -> pa.Schema:
    return pa.schema(
        [
            ("key", pa.string()),
            ("unit", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("crop", pa.list_(pa.int32())),
            ("flip", pa.bool_()),
            *((name, pa.list_(pa.uint16())) for name in names),
        ]
    )


def _columns(unit: str, arrays: Arrays, names: list[str]) -> dict[str, Any]:
    return {
        "key": arrays["key"].tolist(),
        "unit": [unit] * len(arrays["key"]),
        "height": arrays["size"][:, 0],
        "width": arrays["size"][:, 1],
        "crop": list(arrays["crop"][:, 0].astype("int32")),
        "flip": arrays["flip"][:, 0],
        **{name: list(arrays[name].astype("uint16")) for name in names},
    }


def _units_of_table(cache: Cache) -> bytes | None:
    """Returns the checksum of the manifest that the table there was written for."""
    if TABLE not in cache.place.names(""):
        return None
    try:
        with cache.place.local_copy(TABLE, [""]) as path:
            found: bytes | None = (pq.read_schema(path).metadata or {}).get(_OF_UNITS)
            return found
    except pa.ArrowInvalid:
        return None
