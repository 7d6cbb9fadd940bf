"""Reads files that may be damaged: any way in which one does not parse is an error that names it.

JSON, Parquet and YAML libraries fail in a dozen ways on damaged bytes, of which a caller would
always forget one. JSON itself is in `ltrp_core.parsing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ltrp_core.errors import DamagedFileError, RequestError
from ltrp_core.parsing import parse_json, parse_json_object
from ltrp_core.regular_files import open_regular, read_regular

__all__ = [
    "open_parquet",
    "parse_json",
    "parse_json_object",
    "parse_parquet",
    "parse_yaml",
    "read_json",
    "read_json_object",
    "read_parquet",
]

_NOT_DAMAGE = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
_FAILURES = (
    pa.ArrowException,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    NotImplementedError,
)


def read_json(path: Path) -> Any:
    """Returns what a JSON file says.

    Raises:
        DamagedFileError: it is none: see `parse_json`.
        OSError: it cannot be read.
    """
    return parse_json(read_regular(path), str(path))


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds.

    Raises:
        DamagedFileError, OSError: as `read_json`, or it holds something else.
    """
    return parse_json_object(read_regular(path), str(path))


def open_parquet(source: Path | bytes, where: str) -> pq.ParquetFile:
    """Returns a Parquet file of which only the footer has been read.

    Raises:
        DamagedFileError: it is none.
        OSError: it is not there, or may not be read.
    """
    try:
        # Not `pq.read_table`: that takes folders for data sets, and `a=1/` in a path for a column.
        return pq.ParquetFile(
            pa.BufferReader(source)
            if isinstance(source, bytes)
            else pa.PythonFile(open_regular(source)),
            page_checksum_verification=True,
        )
    except _NOT_DAMAGE:
        raise
    except _FAILURES as error:
        raise _no_parquet(where, error) from error


def parse_parquet(
    source: Path | bytes,
    where: str,
    *,
    schema: pa.Schema | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Returns a table: checksums of its pages, lengths and text encodings are checked.

    Args:
        source: the file, or what it holds.
        where: its name, for the message.
        schema: what it must have, and is cast to; other columns are left out.
        columns: only these; all if omitted.

    Raises:
        DamagedFileError: it is no Parquet, is damaged, or a column is missing or of another kind.
        OSError: it is not there, or may not be read.
    """
    file = open_parquet(source, where)
    wanted = schema.names if schema is not None else columns
    try:
        missing = sorted(set(wanted or ()) - set(file.schema_arrow.names))
        if missing:
            raise ValueError(f"there is no column {missing[0]}")
        table = file.read(columns=wanted)
        table.validate(full=True)
        return table if schema is None else table.select(schema.names).cast(schema)
    except _FAILURES as error:
        raise _no_parquet(where, error) from error


def read_parquet(path: Path, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Returns the table of a file: see `parse_parquet`."""
    return parse_parquet(path, str(path), columns=columns)


def parse_yaml(text: str, where: str) -> Any:
    """Returns what YAML text says; nothing in it is executed.

    Raises:
        RequestError: it is no YAML, nested too deeply, or holds a value that there is not, such as
            the 31st of February.
    """
    try:
        return yaml.safe_load(text)
    except RecursionError as failure:
        raise RequestError(f"{where} is no YAML: nested too deeply") from failure
    except (yaml.YAMLError, ArithmeticError, *_FAILURES) as failure:
        raise RequestError(f"{where} is no YAML: {' '.join(str(failure).split())}") from failure


def _no_parquet(where: str, error: BaseException) -> DamagedFileError:
    return DamagedFileError(f"{where} is no readable Parquet: {' '.join(str(error).split())}")
