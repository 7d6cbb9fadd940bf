"""Where the bytes of each row lie: file, offset, size. Rows are then read in any order.

Three numbers a row in memory-mapped arrays, so that loader processes share them, and files that are
opened when they are read from, some at a time: a training set may lie in more files than a process
may hold open.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import DamagedFileError
from ltrp_core.regular_files import open_descriptor
from pipeline.parsing import read_json

_OPEN_FILES = 128


def map_array(path: Path) -> NDArray[Any]:
    """Returns a staged array, memory-mapped.

    Raises:
        DamagedFileError: it is none, or is cut.
        OSError: it is not there, or may not be read.
    """
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return found
    except (OSError, MemoryError):
        raise
    except Exception as error:  # NumPy parses a header as Python: any of its errors
        what = " ".join(str(error).split())
        raise DamagedFileError(
            f"{path} is damaged ({what}); delete {path.parent}: it is made anew"
        ) from error


@dataclass(frozen=True, slots=True)
class Extents:
    """Bytes of rows in files."""

    paths: Sequence[str]
    file: NDArray[np.integer[Any]]
    """(N,) number of the path"""
    offset: NDArray[np.int64]
    """(N,) bytes"""
    size: NDArray[np.int64]
    """(N,) bytes"""

    def save(self, folder: Path, name: str) -> None:
        """Writes NAME.json and NAME.npy into `folder`."""
        table = np.stack([self.file.astype(np.int64), self.offset, self.size])
        np.save(folder / f"{name}.npy", table)
        (folder / f"{name}.json").write_text(json.dumps(list(self.paths)))

    @classmethod
    def load(cls, folder: Path, name: str) -> Extents:
        """Returns what `save` wrote, its arrays memory-mapped.

        Raises:
            DamagedFileError: a file is not what `save` writes.
        """
        # Plain arrays on mapped memory: single numbers come out of them several times as fast.
        table = np.asarray(map_array(folder / f"{name}.npy"))
        paths = read_json(folder / f"{name}.json")
        if table.ndim != 2 or len(table) != 3 or not isinstance(paths, list):
            raise DamagedFileError(f"{folder}/{name}: no places of rows; delete {folder}")
        return cls(paths, table[0], table[1], table[2])

    @classmethod
    def join(cls, parts: Sequence[Extents]) -> Extents:
        """Returns the rows of all parts, in order."""
        first = np.cumsum([0, *(len(part.paths) for part in parts)])
        return cls(
            [path for part in parts for path in part.paths],
            np.concatenate(
                [np.zeros(0, np.int32)] + [p.file + f for p, f in zip(parts, first, strict=False)]
            ).astype(np.int32),
            np.concatenate([np.zeros(0, np.int64)] + [part.offset for part in parts]),
            np.concatenate([np.zeros(0, np.int64)] + [part.size for part in parts]),
        )


@dataclass(slots=True)
class ExtentReader:
    """Reads rows of some `Extents`; belongs to one process, and one thread of it."""

    extents: Extents
    _open: OrderedDict[int, int] = field(default_factory=OrderedDict)

    def read(self, row: int) -> bytes:
        """Returns all bytes of a row.

        Raises:
            OSError: the file cannot be read, or ends before the row does.
        """
        number, offset, size = self._place(row)
        data = os.pread(self._file(number), size, offset)
        while 0 < len(data) < size:  # more than 2 GB, or a network file system
            more = os.pread(self._file(number), size - len(data), offset + len(data))
            if not more:
                break
            data += more
        if len(data) != size:
            raise OSError(f"{self.extents.paths[number]} ends before byte {offset + size}")
        return data

    def read_into(self, row: int, skip: int, target: NDArray[np.uint8]) -> None:
        """Fills `target` with bytes of a row, from its byte `skip` on.

        Raises:
            OSError: as `read`.
        """
        number, offset, _ = self._place(row)
        plain = memoryview(target.reshape(-1))  # type: ignore[arg-type]
        place = offset + skip
        got = 0
        while got < len(plain):
            more = os.preadv(self._file(number), [plain[got:]], place + got)
            if not more:
                end = place + len(plain)
                raise OSError(f"{self.extents.paths[number]} ends before byte {end}")
            got += more

    def close(self) -> None:
        """Closes every file."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _place(self, row: int) -> tuple[int, int, int]:
        extents = self.extents
        return int(extents.file[row]), int(extents.offset[row]), int(extents.size[row])

    def _file(self, number: int) -> int:
        if number in self._open:
            self._open.move_to_end(number)
        else:
            if len(self._open) >= _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[number] = open_descriptor(self.extents.paths[number])
        return self._open[number]
