"""What `select` kept as one Parquet table, for readers that want rows: `selections.parquet`."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ltrp_core.errors import DamagedFileError
from pipeline.files import file_sha256
from pipeline.parsing import open_parquet, parse_parquet
from pipeline.store.cache import Cache
from pipeline.store.errors import DamagedUnitError
from pipeline.store.manifest import TABLE, manifest_bytes
from stages.protocols import Arrays
from stages.records import kept_name
from stages.types import SelectRun

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
    with cache.storage.lock():
        units = hashlib.sha256(manifest_bytes(cache.rows.values())).hexdigest().encode()
        if _units_of_table(cache) == units:
            return
        with cache.storage.staging(TABLE) as folder:
            _write(cache, folder / TABLE, units)
            cache.storage.replace_from(TABLE, folder / TABLE)


def table_problem(cache: Cache, *, deep: bool = False) -> str | None:
    """Returns what is wrong with the table of a finished cache in one line, or None.

    It is a copy of the units, so a cache without one is whole.

    Args:
        deep: compare all of it with the units; else only which units it was written for.

    Raises:
        DamagedUnitError: a unit cannot be read.
    """
    if TABLE not in cache.storage.names(""):
        return None
    try:
        units = hashlib.sha256(manifest_bytes(cache.rows.values())).hexdigest().encode()
        if _units_of_table(cache) != units:
            return f"{TABLE} is damaged, or of other units than are there"
        if not deep:
            return None
        with (
            tempfile.TemporaryDirectory(prefix="ltrp-") as folder,
            cache.storage.local_copy(TABLE, [""]) as path,
        ):
            again = Path(folder, TABLE)
            _write(cache, again, units)
            # Equal rows in other bytes: another version of the library has written them.
            if file_sha256(path) == file_sha256(again):
                return None
            found, expected = parse_parquet(path, TABLE), parse_parquet(again, TABLE)
            same = found.equals(expected) and _writer(path) != _writer(again)
        return None if same else f"{TABLE} is not what the units say"
    except DamagedUnitError:
        raise
    except DamagedFileError as error:
        return str(error)


def _writer(path: Path) -> str:
    return str(open_parquet(path, TABLE).metadata.created_by)


def _write(cache: Cache, file: Path, units: bytes) -> None:
    names = [kept_name(ratio) for ratio in SelectRun.of(cache.run, cache.url).keep_ratio]
    schema = _schema(names).with_metadata({_OF_UNITS: units})
    with pq.ParquetWriter(file, schema, write_page_checksum=True) as writer:
        for unit in cache.units:
            arrays = cache.read(unit, ["size", "crop", "flip", *names])
            writer.write_table(pa.table(_columns(unit, arrays, names), schema=schema))


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
    if TABLE not in cache.storage.names(""):
        return None
    try:
        with cache.storage.local_copy(TABLE, [""]) as path:
            schema = open_parquet(path, TABLE).schema_arrow
            found: bytes | None = (schema.metadata or {}).get(_OF_UNITS)
            return found
    except DamagedFileError:
        return None
