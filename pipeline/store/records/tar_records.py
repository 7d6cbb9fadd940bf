"""Records as a WebDataset tar: KEY.view.json and one KEY.NAME.npy an array, sample after sample.

Written by WebDataset, mtime 0, so the same records give the same bytes. What the arrays are stands
in the tar's global PAX header, which iterating readers do not see: it is there also when there is
no sample.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from ltrp_core.parsing import parse_json_object
from pipeline.inputs.tar_members import ForwardReader, TarDamage, read_global_header, walk
from pipeline.store.errors import DamagedUnitError
from pipeline.store.records.fields import field_of, plain_field
from stages.protocols import ArrayField, Arrays

_COMMENT = "LTRP.fields"
_BLOCK_BYTES = 16 << 20
_BLOCK_ROWS = 4096
_VIEW = "view.json"
_IN_VIEW = frozenset({"size", "crop", "flip"})
"""Arrays that stand in view.json; the decimal text of a float32 is exact."""


class Writer:
    """Writes rows as they come; the bytes are a function of the rows alone."""

    def __init__(self, path: Path, fields: Mapping[str, ArrayField]) -> None:
        # Before WebDataset is imported: it then refuses pickles and pipes.
        os.environ.setdefault("WDS_SECURE", "1")
        from webdataset import TarWriter

        self.fields = fields
        self._file = path.open("wb")
        _write_header(self._file, fields)
        self._tar = TarWriter(self._file, mtime=0, user="", group="", encoder=False)

    def append(self, rows: Arrays) -> None:
        """Adds some rows."""
        for row, key in enumerate(rows["key"].tolist()):
            sample: dict[str, Any] = {"__key__": key}
            small = {}
            for name, field in self.fields.items():
                if name == "key":
                    continue
                value = np.asarray(rows[name][row], dtype=field.dtype)
                if name in _IN_VIEW:
                    small[name] = value.tolist()
                else:
                    sample[f"{name}.npy"] = _npy(value)
            sample[_VIEW] = json.dumps(small, sort_keys=True).encode()
            self._tar.write(sample)

    def close(self) -> None:
        """Ends the tar."""
        self._tar.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def read(
    path: Path, names: Collection[str] | None = None, stamps: Mapping[str, str] | None = None
) -> Arrays:
    """Returns whole arrays; keys as objects.

    Args:
        names: only these; all if omitted.
        stamps: sha256 of the tar by the name ""; compared, as nothing in a tar has a checksum.

    Raises:
        DamagedUnitError: the tar is cut, damaged, or not one of ours.
    """
    fields = read_fields(path)
    wanted = [name for name in fields if names is None or name in names]
    blocks = list(read_blocks(path, names, stamps))
    return {
        name: np.concatenate([_empty(fields[name]), *(block[name] for block in blocks)])
        for name in wanted
    }


def read_blocks(
    path: Path, names: Collection[str] | None = None, stamps: Mapping[str, str] | None = None
) -> Iterator[Arrays]:
    """Yields the rows in their order, some at a time.

    Raises:
        DamagedUnitError: as `read`; another sha256 only after the last of them.
    """
    fields = read_fields(path)
    wanted = {n: field for n, field in fields.items() if names is None or n in names}
    rows: dict[str, list[Any]] = {name: [] for name in wanted}
    size = 0
    for key, members in _samples(path, stamps or {}):
        small = _view(members.get(_VIEW, b"{}"), path)
        for name, field in wanted.items():
            value = key if name == "key" else _value(name, field, small, members, path)
            rows[name].append(value)
        size += sum(len(content) for content in members.values())
        if size >= _BLOCK_BYTES or len(next(iter(rows.values()))) >= _BLOCK_ROWS:
            yield {name: _stack(rows[name], wanted[name]) for name in wanted}
            rows, size = {name: [] for name in wanted}, 0
    if any(rows.values()):
        yield {name: _stack(rows[name], wanted[name]) for name in wanted}


def read_fields(path: Path) -> dict[str, ArrayField]:
    """Returns what the arrays are, as they were written.

    Raises:
        DamagedUnitError: the tar is unreadable or not one of ours.
    """
    try:
        with path.open("rb") as file:
            header = read_global_header(ForwardReader(file))
        stored = parse_json_object(header[_COMMENT], "its header")
        return {name: field_of(values) for name, values in stored.items()}
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, TarDamage) as error:
        raise DamagedUnitError(f"{path}: no records that this program wrote: {error}") from error


def row_places(
    path: Path, name: str, stamps: Mapping[str, str] | None = None
) -> tuple[list[Path], NDArray[Any], NDArray[Any]]:
    """Returns where each row of an array lies: files, file number and offset (N,).

    Raises:
        DamagedUnitError: the tar is unreadable, or a member is no row of the array.
    """
    shape_bytes = _row_bytes(read_fields(path), name, path)
    offsets = []
    try:
        with path.open("rb") as file:
            source = ForwardReader(file)
            for entry in walk(source):
                if entry.name.endswith(f".{name}.npy"):
                    if entry.size < shape_bytes:
                        raise DamagedUnitError(f"{path}: {entry.name} is too short")
                    # What stands before the values is the header of the .npy format.
                    offsets.append(entry.offset + entry.size - shape_bytes)
            _check_sha256(path, source, stamps or {})
    except (OSError, TarDamage) as error:
        raise DamagedUnitError(f"{path}: unreadable records: {error}") from error
    return [path], np.zeros(len(offsets), np.int64), np.array(offsets, dtype=np.int64)


def _row_bytes(fields: Mapping[str, ArrayField], name: str, path: Path) -> int:
    if name not in fields:
        raise DamagedUnitError(f"{path}: there is no array {name!r}")
    return int(np.prod(fields[name].shape)) * np.dtype(fields[name].dtype).itemsize


def _samples(path: Path, stamps: Mapping[str, str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields (key, content by extension); a tar that ends early is damage, not fewer samples."""
    key, members = "", dict[str, bytes]()
    try:
        with path.open("rb") as file:
            source = ForwardReader(file)
            for entry in walk(source):
                folder, slash, name = entry.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if f"{folder}{slash}{stem}" != key and members:
                    yield key, members
                    members = {}
                key = f"{folder}{slash}{stem}"
                members[extension] = entry.read()
            _check_sha256(path, source, stamps)
    except (OSError, TarDamage) as error:
        raise DamagedUnitError(f"{path}: unreadable records: {error}") from error
    if members:
        yield key, members


def _check_sha256(path: Path, source: ForwardReader, stamps: Mapping[str, str]) -> None:
    """Raises DamagedUnitError if what was read, all of the tar, is not what the receipt says."""
    if "" in stamps and source.finish() != stamps[""]:
        raise DamagedUnitError(f"{path} has another sha256 than its receipt says")


def _view(content: bytes, path: Path) -> dict[str, Any]:
    try:
        return parse_json_object(content, _VIEW)
    except ValueError as error:
        raise DamagedUnitError(f"{path}: unreadable records: {error}") from error


def _value(
    name: str, field: ArrayField, small: dict[str, Any], members: dict[str, bytes], path: Path
) -> NDArray[Any]:
    try:
        if name in _IN_VIEW:
            return np.array(small[name], dtype=field.dtype).reshape(field.shape)
        value: NDArray[Any] = np.load(io.BytesIO(members[f"{name}.npy"]), allow_pickle=False)
    except Exception as error:  # NumPy parses a header as Python: any of its errors
        raise DamagedUnitError(f"{path}: unreadable {name}: {error}") from error
    if value.shape != field.shape or value.dtype != field.dtype:
        raise DamagedUnitError(f"{path}: {name} is {value.dtype} {value.shape}")
    return value


def _npy(value: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=False)
    return buffer.getvalue()


def _stack(rows: list[Any], field: ArrayField) -> NDArray[Any]:
    if field.dtype == "string":
        return np.array([*rows, ""], dtype=object)[:-1]
    return np.stack(rows)


def _empty(field: ArrayField) -> NDArray[Any]:
    dtype = object if field.dtype == "string" else field.dtype
    return np.empty((0, *field.shape), dtype=dtype)


def _write_header(file: BinaryIO, fields: Mapping[str, ArrayField]) -> None:
    text = json.dumps({name: plain_field(field) for name, field in fields.items()})
    file.write(tarfile.TarInfo.create_pax_global_header({_COMMENT: text}))
