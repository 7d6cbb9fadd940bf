"""The two forms of a unit's arrays: Zarr, or a WebDataset tar. Same rows, same order.

A third one is of samples, which are files and no arrays: what `reduce` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from pipeline.store.records import sample_tars, tar_records, zarr_records
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
SAMPLES = "samples"
_ALL = {
    **FORMS,
    SAMPLES: Form(
        file="records.samples.tar",
        writer=sample_tars.Writer,
        read=sample_tars.read,
        read_blocks=sample_tars.read_blocks,
        read_fields=sample_tars.read_fields,
        row_places=sample_tars.row_places,
    ),
}


def form_of(store: str) -> Form:
    """Returns the form that a run's identity calls `store`."""
    return _ALL[store]


def form_at(path: Path) -> Form:
    """Returns the form of the records at a path, by its name."""
    return next(form for form in _ALL.values() if form.file == path.name)


def copy_records(source: Path, target: Path, form: Form) -> int:
    """Writes the records at `source`, of whatever form, to `target` in `form`, block by block.

    Returns how many there were.

    Raises:
        DamagedUnitError: `source` is unreadable.
    """
    old = form_at(source)
    count = 0
    with form.writer(target, old.read_fields(source)) as writer:
        for rows in old.read_blocks(source):
            count += len(rows["key"])
            writer.append(rows)
    return count
