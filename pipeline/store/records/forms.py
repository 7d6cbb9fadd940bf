"""The two forms of a unit's records: Zarr arrays, or a WebDataset tar. Same rows, same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from pipeline.store.records import tar_records, zarr_records
from stages.protocols import ArrayField, Arrays


class RecordWriter(Protocol):
    """Takes the rows of a unit in their order; memory stays bounded however many there are."""

    def append(self, rows: Arrays) -> None:
        """Adds some rows."""
        ...


@dataclass(frozen=True, slots=True)
class Form:
    """How records lie on the disk."""

    file: str
    """Name of the file or folder in a unit."""
    writer: Callable[[Path, Mapping[str, ArrayField]], AbstractContextManager[RecordWriter]]
    read: Callable[..., Arrays]
    """Of a path, some names or None, and optionally the sha256 of the files by name"""
    read_blocks: Callable[..., Iterator[Arrays]]
    """As `read`"""
    read_fields: Callable[[Path], dict[str, ArrayField]]
    row_places: Callable[..., tuple[list[Path], NDArray[Any], NDArray[Any]]]
    """Of one uncompressed array: files, and file number and offset of each row (N,); of a path, its
    name, and optionally the sha256 of the files."""


FORMS = {
    "zarr": Form(
        file="records.zarr",
        writer=zarr_records.Writer,
        read=zarr_records.read,
        read_blocks=zarr_records.read_blocks,
        read_fields=zarr_records.read_fields,
        row_places=zarr_records.row_places,
    ),
    "webdataset": Form(
        file="records.tar",
        writer=tar_records.Writer,
        read=tar_records.read,
        read_blocks=tar_records.read_blocks,
        read_fields=tar_records.read_fields,
        row_places=tar_records.row_places,
    ),
}
"""By the name that `--store` takes."""


def copy_records(source: Path, target: Path, form: Form) -> int:
    """Writes the records at `source`, of whatever form, to `target` in `form`, block by block.

    Returns how many there were.

    Raises:
        DamagedUnitError: `source` is unreadable.
    """
    old = next(other for other in FORMS.values() if other.file == source.name)
    count = 0
    with form.writer(target, old.read_fields(source)) as writer:
        for rows in old.read_blocks(source):
            count += len(rows["key"])
            writer.append(rows)
    return count
