"""Reads uncompressed Zarr shards straight into the result, and finds files that are missing.

Zarr's own reader copies an uncompressed chunk several times; photographs' pixels are most of a
cache's bytes. What is read here is what any Zarr v3 reader sees: inner chunks, each followed by
its crc32c, and the index of their places at the end of the file (sharding codec, Zarr v3
specification).
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from pipeline.store.errors import DamagedUnitError

_CRC_BYTES = 4
_THREADS = min(4, os.cpu_count() or 1)


def check_present(folder: Path, array: zarr.Array) -> None:
    """Checks that every file of an array is there: Zarr reads a missing one as fill values.

    Raises:
        DamagedUnitError: one is missing or empty.
    """
    for file in _files(folder, array):
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            size = -1
        if size <= 0:
            what = "is missing" if size < 0 else "is empty"
            raise DamagedUnitError(f"{file} {what}")


def is_raw(array: zarr.Array) -> bool:
    """Returns whether an array's chunks are plain values and a crc32c, in shards cut along rows."""
    codecs = array.compressors
    plain = array.filters == () and len(codecs) == 1 and isinstance(codecs[0], Crc32cCodec)
    whole = array.chunks[1:] == array.shape[1:]
    sharded = array.shards is not None and array.shards[1:] == array.shape[1:]
    return plain and whole and sharded and array.dtype == np.uint8


def read_rows(folder: Path, array: zarr.Array, rows: slice | None = None) -> NDArray[Any]:
    """Returns rows of an array for which `is_raw` holds.

    Raises:
        DamagedUnitError: a file is cut, or a chunk fails its checksum.
    """
    start, stop, _ = (rows or slice(None)).indices(array.shape[0])
    values = np.empty((max(stop - start, 0), *array.shape[1:]), dtype=array.dtype)
    per_shard = array.shards[0] if array.shards else array.chunks[0]
    files = _files(folder, array)
    firsts = range(start - start % per_shard, stop, per_shard)
    work = [
        part
        for first in firsts
        for part in _chunks_of(files[first // per_shard], array, first, start, stop, values)
    ]
    # Reading and checking release the interpreter's lock.
    with ThreadPoolExecutor(max(1, min(_THREADS, len(work)))) as pool:
        for _ in pool.map(_read_part, work):
            pass
    return values


def row_places(folder: Path, array: zarr.Array) -> tuple[list[Path], NDArray[Any], NDArray[Any]]:
    """Returns where each row of an array lies for which `is_raw` holds: files, file number, offset.

    What is read there is not checked: `read_rows` checks, and `verify --deep`.

    Raises:
        DamagedUnitError: a file is missing or cut.
    """
    check_present(folder, array)
    files = _files(folder, array)
    per_chunk = array.chunks[0]
    per_shard = array.shards[0] if array.shards else per_chunk
    row_bytes = math.prod(array.shape[1:])
    number = np.arange(array.shape[0]) // per_shard
    offset = np.empty(array.shape[0], np.int64)
    for first, file in zip(range(0, array.shape[0], per_shard), files, strict=True):
        starts, sizes = _read_index(file, per_shard // per_chunk).astype(np.int64).T
        rows = np.arange(min(per_shard, array.shape[0] - first))
        chunk = rows // per_chunk
        if (sizes[: chunk[-1] + 1] != per_chunk * row_bytes + _CRC_BYTES).any():
            raise DamagedUnitError(f"{file}: a chunk has another size than its array says")
        ends = int(starts[chunk[-1]]) + per_chunk * row_bytes
        if file.stat().st_size < ends:
            raise DamagedUnitError(f"{file} is cut")
        offset[first : first + len(rows)] = starts[chunk] + (rows % per_chunk) * row_bytes
    return files, number, offset


@dataclass(frozen=True, slots=True)
class _Part:
    """A chunk, and where its rows go."""

    file: Path
    number: int
    offset: int
    rows: slice
    """Of the chunk"""
    shape: tuple[int, ...]
    """Of the whole chunk"""
    target: NDArray[Any]


def _chunks_of(
    file: Path, array: zarr.Array, first: int, start: int, stop: int, values: NDArray[Any]
) -> Iterator[_Part]:
    """Yields the chunks of a shard, whose first row is `first`, that hold rows start ... stop."""
    per_chunk = array.chunks[0]
    shape = (per_chunk, *array.shape[1:])
    shard_rows = array.shards[0] if array.shards else per_chunk
    for number, (offset, size) in enumerate(_read_index(file, shard_rows // per_chunk).tolist()):
        top = first + number * per_chunk
        low, high = max(top, start), min(top + per_chunk, stop)
        if low >= high:
            continue
        if size != math.prod(shape) + _CRC_BYTES:
            raise DamagedUnitError(f"{file}: chunk {number} has {size} bytes")
        target = values[low - start : high - start]
        yield _Part(file, number, offset, slice(low - top, high - top), shape, target)


def _read_part(part: _Part) -> None:
    # A whole chunk is read to where it belongs; of another a part is copied.
    whole = part.target.shape == part.shape
    chunk = part.target if whole else np.empty(part.shape, part.target.dtype)
    with part.file.open("rb", buffering=0) as source:
        _read_chunk(source, part.offset, chunk, part.file, part.number)
    if not whole:
        part.target[:] = chunk[part.rows]


def _read_chunk(source: Any, offset: int, chunk: NDArray[Any], file: Path, number: int) -> None:
    source.seek(offset)
    values = chunk.reshape(-1)
    plain = memoryview(values)  # type: ignore[arg-type]
    got = 0
    while got < len(plain):
        more = source.readinto(plain[got:])
        if not more:
            raise DamagedUnitError(f"{file} is cut in chunk {number}")
        got += more
    stored = int.from_bytes(source.read(_CRC_BYTES), "little")
    values.flags.writeable = False  # what google_crc32c asks for; `chunk` stays as it is
    if google_crc32c.value(values) != stored:
        raise DamagedUnitError(f"{file}: chunk {number} fails its checksum")


def _read_index(file: Path, chunks: int) -> NDArray[np.uint64]:
    """Returns (offset, size) of the chunks of a shard."""
    length = 16 * chunks
    with file.open("rb", buffering=0) as source:
        source.seek(-(length + _CRC_BYTES), 2)
        data = source.read(length + _CRC_BYTES)
    if len(data) != length + _CRC_BYTES or google_crc32c.value(data[:length]) != int.from_bytes(
        data[length:], "little"
    ):
        raise DamagedUnitError(f"{file}: the index of its chunks fails its checksum")
    return np.frombuffer(data[:length], dtype="<u8").reshape(chunks, 2)


def _files(folder: Path, array: zarr.Array) -> list[Path]:
    cut = array.shards or array.chunks
    counts = [-(-size // step) for size, step in zip(array.shape, cut, strict=True)]
    return [
        folder.joinpath("c", *map(str, index)) for index in itertools.product(*map(range, counts))
    ]
