"""Records as a Zarr v3 group: sharded arrays, a crc32c on every chunk, plain for any reader."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.codecs.numcodecs import Delta
from zarr.errors import ZarrUserWarning

from ltrp_core.parsing import parse_json_object
from pipeline.store.errors import DamagedUnitError
from pipeline.store.records import raw_chunks
from pipeline.store.records.fields import field_of, plain_field
from stages.protocols import ArrayField, Arrays

_CHUNK_ROWS = 16384
_CHUNK_BYTES = 4 << 20
_SHARD_CHUNKS = 8
"""A Zarr shard (one file) is at most so many chunks: that much is held in memory while writing."""
_METADATA = "zarr.json"
_FIELDS = "fields"
"""Attribute of the group: what the arrays are, for conversion and for readers."""


class Writer:
    """Writes rows as they come; what lies there at the end is a function of the rows alone."""

    def __init__(self, path: Path, fields: Mapping[str, ArrayField]) -> None:
        self.fields = fields
        with _quiet:
            self._group = zarr.open_group(path, mode="w-", zarr_format=3)
            self._group.attrs[_FIELDS] = {
                name: plain_field(field) for name, field in fields.items()
            }
        self._arrays = {name: _GrowingArray(self._group, name, f) for name, f in fields.items()}

    def append(self, rows: Arrays) -> None:
        """Adds some rows.

        Raises:
            ValueError: an array has another shape than its field says.
        """
        for name, field in self.fields.items():
            expected = (len(rows["key"]), *field.shape)
            if rows[name].shape != expected:
                raise ValueError(f"array {name!r} must be {expected}; got {rows[name].shape}")
            self._arrays[name].append(rows[name])

    def close(self) -> None:
        """Writes what is left."""
        for array in self._arrays.values():
            array.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()


class _GrowingArray:
    """One array: rows are held until they fill a Zarr shard, so that each is written once."""

    def __init__(self, group: zarr.Group, name: str, field: ArrayField) -> None:
        self.group, self.name, self.field = group, name, field
        row = int(np.prod(field.shape)) * (
            16 if _is_text(field) else np.dtype(field.dtype).itemsize
        )
        self.chunk_rows = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // max(row, 1)))
        self.shard_rows = self.chunk_rows * _SHARD_CHUNKS
        self.held: list[NDArray[Any]] = []
        self.num_held = 0
        self.array: zarr.Array | None = None

    def append(self, values: NDArray[Any]) -> None:
        self.held.append(values)
        self.num_held += len(values)
        while self.num_held > self.shard_rows:
            whole = np.concatenate(self.held)
            self._write(whole[: self.shard_rows])
            self.held = [whole[self.shard_rows :].copy()]
            self.num_held = len(self.held[0])

    def close(self) -> None:
        dtype = object if _is_text(self.field) else self.field.dtype
        empty = np.empty((0, *self.field.shape), dtype=dtype)
        self._write(np.concatenate([empty, *self.held]))

    def _write(self, values: NDArray[Any]) -> None:
        with _quiet:
            if self.array is None:
                self.array = self._create(len(values))
            start = self.array.shape[0]
            self.array.resize((start + len(values), *self.field.shape))
            if len(values):
                self.array[start:] = (
                    values.astype(object)
                    if _is_text(self.field)
                    else values.astype(self.field.dtype, copy=False)
                )

    def _create(self, first: int) -> zarr.Array:
        """Few rows make one small chunk: raw chunks are not padded to megabytes then."""
        field = self.field
        chunks = -(-max(first, 1) // self.chunk_rows)
        rows = -(-max(first, 1) // chunks)
        compressors = [Crc32cCodec()] if field.raw else [ZstdCodec(level=3), Crc32cCodec()]
        return self.group.create_array(
            self.name,
            shape=(0, *field.shape),
            dtype=str if _is_text(field) else field.dtype,
            chunks=(rows, *field.shape),
            shards=(rows * chunks, *field.shape),
            filters=[Delta(dtype=np.dtype(field.dtype).str)] if field.delta else None,
            compressors=compressors,
            fill_value=field.fill,
            # Zarr would leave out a chunk of fill values; here a file that is not there is damage.
            config={"write_empty_chunks": True},
        )


def read(
    path: Path, names: Collection[str] | None = None, stamps: Mapping[str, str] | None = None
) -> Arrays:
    """Returns whole arrays; keys as objects.

    Args:
        names: only these; all if omitted.
        stamps: sha256 of each file; that of every zarr.json, which has no checksum, is compared.

    Raises:
        DamagedUnitError: the group or a chunk is unreadable, missing, or fails its checksum.
    """
    with _damage(path):
        return {name: _read_rows(path, array, None) for name, array in _open(path, names, stamps)}


def read_blocks(
    path: Path, names: Collection[str] | None = None, stamps: Mapping[str, str] | None = None
) -> Iterator[Arrays]:
    """Yields the rows in their order, as many at a time as a chunk of the largest array holds.

    Raises:
        DamagedUnitError: as `read`, or arrays of different lengths.
    """
    with _damage(path):
        arrays = _open(path, names, stamps)
        lengths = {name: array.shape[0] for name, array in arrays}
        if len(set(lengths.values())) > 1:
            raise DamagedUnitError(f"{path}: arrays of different lengths {lengths}")
        total = next(iter(lengths.values()), 0)
        step = min((array.chunks[0] for _, array in arrays), default=1)
        small = {n: _read_rows(path, a, None) for n, a in arrays if a.chunks[0] >= total}
        for start in range(0, total, step):
            rows = slice(start, min(start + step, total))
            yield {
                name: small[name][rows] if name in small else _read_rows(path, array, rows)
                for name, array in arrays
            }


def read_fields(path: Path) -> dict[str, ArrayField]:
    """Returns what the arrays are, as they were written.

    Raises:
        DamagedUnitError: the group is unreadable.
    """
    with _damage(path):
        document = parse_json_object((path / _METADATA).read_bytes(), _METADATA)
        stored = document["attributes"][_FIELDS]
        return {name: field_of(values) for name, values in stored.items()}


def row_places(
    path: Path, name: str, stamps: Mapping[str, str] | None = None
) -> tuple[list[Path], NDArray[Any], NDArray[Any]]:
    """Returns where each row of an uncompressed array lies: files, file number and offset (N,).

    Raises:
        DamagedUnitError: the group is unreadable, or the array is missing or compressed.
    """
    with _damage(path):
        found = dict(_open(path, [name], stamps))
        if name not in found or not raw_chunks.is_raw(found[name]):
            raise DamagedUnitError(f"{path}: there is no uncompressed array {name!r}")
        return raw_chunks.row_places(path / name, found[name])


def _open(
    path: Path, names: Collection[str] | None, stamps: Mapping[str, str] | None
) -> list[tuple[str, zarr.Array]]:
    """Returns the arrays, each of the kind that its field says."""
    for name in (name for name in stamps or () if Path(name).name == _METADATA):
        # A bit of them can make other values of sound chunks: another shape, another filter.
        if stamps and hashlib.sha256((path / name).read_bytes()).hexdigest() != stamps[name]:
            raise DamagedUnitError(f"{path / name} has another sha256 than its receipt says")
    with _quiet:
        fields = read_fields(path)
        members = dict(zarr.open_group(path, mode="r", zarr_format=3).arrays())
    if set(members) != set(fields):
        raise DamagedUnitError(f"{path}: arrays {sorted(members)}, expected {sorted(fields)}")
    for name, field in fields.items():
        kind = "string" if members[name].dtype.kind in ("O", "T", "U") else str(members[name].dtype)
        if (kind, members[name].shape[1:]) != (field.dtype, field.shape):
            raise DamagedUnitError(
                f"{path}: array {name!r} is {kind} {members[name].shape[1:]}, not {field.dtype} "
                f"{field.shape}"
            )
    wanted = fields if names is None else names
    return [(name, members[name]) for name in wanted if name in members]


def _read_rows(path: Path, array: zarr.Array, rows: slice | None) -> NDArray[Any]:
    """Reads some rows of an array, or all.

    Zarr takes a missing or empty file for one that was never written and returns fill values; so
    presence is checked first.
    """
    folder = path / array.basename
    raw_chunks.check_present(folder, array)
    if raw_chunks.is_raw(array):
        return raw_chunks.read_rows(folder, array, rows)
    with _quiet:
        values = np.asarray(array[:] if rows is None else array[rows])
    return values.astype(object) if values.dtype.kind in "TU" else values


def _is_text(field: ArrayField) -> bool:
    return field.dtype == "string"


class _Quiet:
    """Silences what Zarr says of numcodecs' Delta and of strings of variable length.

    They are not in the Zarr v3 core specification; every Zarr-Python since 3.1 reads them. The
    filters of warnings belong to all threads: the first one in sets them, the last one out resets.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore", ZarrUserWarning)
                warnings.filterwarnings("ignore", message=".*(Zarr V?3|Zarr format 3).*")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.close()


_quiet = _Quiet()


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except DamagedUnitError:
        raise
    except (PermissionError, MemoryError):
        raise  # says nothing of the file
    except Exception as error:  # what Zarr raises of metadata that make no sense has no end
        text = " ".join(str(error).split()) or type(error).__name__
        raise DamagedUnitError(f"{path}: unreadable records: {text}") from error
