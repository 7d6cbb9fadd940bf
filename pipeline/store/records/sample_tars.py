"""Samples as a plain WebDataset shard: KEY.ENDING for each member, sample after sample.

mtime 0, so the same samples give the same bytes. It has one array beside the keys, `members`.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.inputs.keys import sample_key
from pipeline.inputs.sample_members import ending_of
from pipeline.inputs.tar_members import ForwardReader, TarDamage, walk
from pipeline.store.errors import DamagedUnitError
from stages.protocols import ArrayField, Arrays
from stages.sample_rows import SAMPLE_FIELDS, object_rows

Sample = tuple[tuple[str, bytes], ...]
"""Ending and content of each member"""
_BLOCK_BYTES = 16 << 20
_BLOCK_ROWS = 4096


class Writer:
    """Writes samples as they come; the bytes are a function of the samples alone."""

    def __init__(self, path: Path, fields: Mapping[str, ArrayField]) -> None:
        del fields  # always SAMPLE_FIELDS
        self._file = path.open("wb")
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)

    def append(self, rows: Arrays) -> None:
        """Adds some samples."""
        for key, members in zip(rows["key"].tolist(), rows["members"].tolist(), strict=True):
            for ending, content in members:
                info = tarfile.TarInfo(f"{key}.{ending}" if ending else key)
                info.size, info.mtime, info.mode = len(content), 0, 0o644
                self._tar.addfile(info, io.BytesIO(content))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._tar.close()
        self._file.close()


def read(
    path: Path, names: Collection[str] | None = None, stamps: Mapping[str, str] | None = None
) -> Arrays:
    """Returns all samples: `key` and `members`, both (N,) of objects.

    Args:
        names: only these arrays; all if omitted.
        stamps: sha256 of the tar by the name ""; compared, as nothing in a tar has a checksum.

    Raises:
        DamagedUnitError: the tar is cut or damaged.
    """
    blocks = list(read_blocks(path, names, stamps))
    return {
        name: np.concatenate([np.empty(0, dtype=object), *(block[name] for block in blocks)])
        for name in SAMPLE_FIELDS
        if names is None or name in names
    }


def read_blocks(
    path: Path, names: Collection[str] | None = None, stamps: Mapping[str, str] | None = None
) -> Iterator[Arrays]:
    """Yields the samples in their order, some at a time.

    Raises:
        DamagedUnitError: as `read`; another sha256 only after the last of them.
    """
    rows: list[tuple[str, Sample]] = []
    size = 0
    for key, members in _samples(path, stamps or {}):
        rows.append((key, members))
        size += sum(len(content) for _, content in members)
        if size >= _BLOCK_BYTES or len(rows) >= _BLOCK_ROWS:
            yield _block(rows, names)
            rows, size = [], 0
    if rows:
        yield _block(rows, names)


def read_fields(path: Path) -> dict[str, ArrayField]:
    """Returns what the arrays are."""
    del path
    return dict(SAMPLE_FIELDS)


def row_places(
    path: Path, name: str, stamps: Mapping[str, str] | None = None
) -> tuple[list[Path], NDArray[Any], NDArray[Any]]:
    """Refuses: samples have no rows of one size.

    Raises:
        DamagedUnitError: always.
    """
    _no_array(path, name)


def _no_array(path: Path, name: str) -> NoReturn:
    raise DamagedUnitError(f"{path} holds samples; there is no array {name!r}")


def _block(rows: list[tuple[str, Sample]], names: Collection[str] | None) -> Arrays:
    arrays: Arrays = {}
    for number, name in enumerate(SAMPLE_FIELDS):
        if names is None or name in names:
            arrays[name] = object_rows([row[number] for row in rows])
    return arrays


def _samples(path: Path, stamps: Mapping[str, str]) -> Iterator[tuple[str, Sample]]:
    """Yields key and members; a tar that ends early is damage, not fewer samples."""
    key, members = "", list[tuple[str, bytes]]()
    try:
        with path.open("rb") as file:
            source = ForwardReader(file)
            for entry in walk(source):
                if (found := sample_key(entry.name)) != key and members:
                    yield key, tuple(members)
                    members = []
                key = found
                members.append((ending_of(entry.name), entry.read()))
            if "" in stamps and source.finish() != stamps[""]:
                raise DamagedUnitError(f"{path} has another sha256 than its receipt says")
    except (OSError, TarDamage) as error:
        raise DamagedUnitError(f"{path}: unreadable samples: {error}") from error
    if members:
        yield key, tuple(members)
