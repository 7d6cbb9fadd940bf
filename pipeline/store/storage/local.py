"""A cache in a folder of a local or shared file system."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from ltrp_core.regular_files import read_regular
from pipeline.faults import fault_point
from pipeline.store.receipts import RECEIPT, Receipt
from pipeline.store.storage.base import QUARANTINE, UNITS, Storage, check_inside
from pipeline.store.storage.lock import folder_holder, folder_lock

ATTEMPTS = ".attempt"
"""Folder of unfinished attempts."""


class LocalStorage(Storage):
    """A folder of a local or shared file system: a unit is committed by renaming its folder."""

    is_local = True
    appends = True

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    @property
    def url(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes:
        return read_regular(self._at(name))

    def read_many(self, names: Iterable[str]) -> Mapping[str, bytes]:
        found = {}
        for name in names:
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                found[name] = read_regular(self._at(name))
        return found

    def lines(self, name: str) -> Iterator[bytes]:
        with suppress(FileNotFoundError), self._at(name).open("rb") as file:
            yield from file

    def log(self, name: str, part: int, text: str) -> None:
        path = self._at(f"{name}.jsonl")
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write(text)

    def replace(self, name: str, data: bytes) -> None:
        path = self._at(name)
        with _written_beside(path, data) as temporary:
            os.replace(temporary, path)
        sync_folder(path.parent)

    def replace_from(self, name: str, file: Path) -> None:
        with file.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(file, self._at(name))
        sync_folder(self.path)

    def create(self, name: str, data: bytes) -> bool:
        path = self._at(name)
        with _written_beside(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        sync_folder(path.parent)
        return True

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self._at(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def sizes(self, folder: str) -> dict[str, int]:
        root = self._at(folder)
        found = {}
        for parent, _, files in os.walk(root):
            for file in files:
                path = Path(parent, file)
                with suppress(FileNotFoundError):
                    found[path.relative_to(root).as_posix()] = path.stat().st_size
        return dict(sorted(found.items()))

    def remove(self, name: str) -> None:
        path = self._at(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    @contextmanager
    def local_copy(self, name: str, files: Collection[str] | None = None) -> Iterator[Path]:
        yield self._at(name)

    @contextmanager
    def staging(self, unit: str) -> Iterator[Path]:
        # In the cache itself: a rename must not cross file systems.
        folder = self._at(f"{ATTEMPTS}/{unit}.{uuid.uuid4().hex}")
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, receipt: Receipt) -> Receipt | None:
        (staged / RECEIPT).write_bytes(receipt.to_bytes())
        fault_point("after_receipt", receipt.unit)
        sync_tree(staged)
        units = self.path / UNITS
        units.mkdir(exist_ok=True)
        target = units / receipt.unit
        fault_point("before_rename", receipt.unit)
        try:
            os.rename(staged, target)
        except OSError:
            if not target.exists():
                raise
            return None
        sync_folder(units)
        fault_point("after_rename", receipt.unit)
        return receipt

    def quarantine(self, unit: str, name: str) -> None:
        (self.path / QUARANTINE).mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # another attempt has moved it already
            os.rename(self.path / UNITS / unit, self.path / QUARANTINE / name)

    def lock(self) -> AbstractContextManager[None]:
        return folder_lock(self.path)

    def holder(self) -> str:
        return folder_holder(self.path)

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.path).free

    def clear_attempts(self) -> None:
        self.remove(ATTEMPTS)

    def is_file(self) -> bool:
        return self.path.is_file()

    def _at(self, name: str) -> Path:
        return self.path / check_inside(name, self.url) if name else self.path


@contextmanager
def _written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """Writes `data` durably beside `path`, whose folder is made; removed if the body leaves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes every file and name below a folder durable."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        sync_folder(path)
