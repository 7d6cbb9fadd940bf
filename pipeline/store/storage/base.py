"""Where a cache lies: a folder of a file system, or a prefix of an object store.

A folder has rename, append and locks, an object store has a conditional put; both are hidden here,
behind the few operations that the commit protocol needs. Names are relative to the storage, with
`/`. A new kind of storage is one class and one line of `open_storage`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from ltrp_core.errors import RequestError
from pipeline.url_secrets import check_url

if TYPE_CHECKING:
    from pipeline.store.receipts import Receipt

SCHEMES = ("s3", "gs", "gcs", "hf", "memory", "az", "abfs")
"""Object stores that a cache may lie in; each needs its fsspec package."""
UNITS, QUARANTINE = "units", "quarantine"
"""Folders of a storage: what readers see, and what was taken away from them."""


class Storage(ABC):
    """The operations of the commit protocol.

    `read` raises FileNotFoundError; every operation raises OSError when the store fails, and
    `UnsafeNameError` for a name that leads out of the storage.
    """

    is_local: bool
    """Whether `local_copy` is the content itself, which stays there"""
    appends: bool
    """Whether `log` adds to what is there, at once, and need not be given it again"""

    @property
    @abstractmethod
    def url(self) -> str:
        """Absolute path or URL, for messages and for workers to open the same storage."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Returns the content of a file."""

    @abstractmethod
    def read_many(self, names: Iterable[str]) -> Mapping[str, bytes]:
        """Returns the content of those of `names` that exist."""

    @abstractmethod
    def lines(self, name: str) -> Iterator[bytes]:
        """Yields the lines of a file, none if there is none; a local one is not read as one."""

    @abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Writes a small file; a reader sees the old content or the new, never a part."""

    @abstractmethod
    def replace_from(self, name: str, file: Path) -> None:
        """Replaces a file by a local one, which `staging` gave the room for, in one step."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Writes a small file if there is none; returns whether it did."""

    @abstractmethod
    def log(self, name: str, part: int, text: str) -> None:
        """Writes lines of a log `name`: appends them, or replaces its file number `part`."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Returns the names directly in `folder`, sorted; none if it does not exist."""

    @abstractmethod
    def sizes(self, folder: str) -> dict[str, int]:
        """Returns bytes of every file below `folder`, by name relative to it, sorted."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file or a whole folder, if it is there."""

    @abstractmethod
    def local_copy(
        self, name: str, files: Collection[str] | None = None
    ) -> AbstractContextManager[Path]:
        """Opens the path of a local folder or file with the content of `name`.

        Args:
            name: relative to the storage.
            files: what a receipt lists of it, relative to it ("": `name` itself is a file);
                nothing else is fetched from an object store. None: all that is there.
        """

    @abstractmethod
    def staging(self, unit: str) -> AbstractContextManager[Path]:
        """Opens an empty local folder for one attempt, removed at the end."""

    @abstractmethod
    def publish(self, staged: Path, receipt: Receipt) -> Receipt | None:
        """Puts a sealed unit under its final name, whole or not at all.

        Returns:
            The receipt that stands there now, or None: something is there already.
        """

    @abstractmethod
    def quarantine(self, unit: str, name: str) -> None:
        """Takes a unit away from the readers; what is kept of it is called `name`."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Holds the lock of the storage while the body runs: one driver at a time writes.

        Raises:
            LockedError: a live process holds it; the message names host and pid.
        """

    @abstractmethod
    def holder(self) -> str:
        """Returns who holds the lock, as JSON, without taking it from anybody; empty: nobody."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Returns the room that is left; None where there is always more."""

    @abstractmethod
    def clear_attempts(self) -> None:
        """Removes what dead workers left; the lock must be held."""

    @abstractmethod
    def is_file(self) -> bool:
        """Returns whether a file stands where the storage should be."""


class UnsafeNameError(RequestError):
    """A name that is data, of a receipt or a listing, leads out of where it belongs."""


def check_inside(name: str, where: str) -> str:
    """Returns a relative name with `/` whose parts are all names: none empty, `.` or `..`.

    Raises:
        UnsafeNameError: it is another; the message says so of `where`.
    """
    if not is_inside(name):
        raise UnsafeNameError(
            f"{where}: the name {name!r} leads out of it; somebody may have put it there on "
            "purpose: look at who can write there"
        )
    return name


def is_inside(name: str) -> bool:
    """Returns whether a name, joined below a folder, stays in it."""
    return not ({"", ".", ".."} & set(name.split("/")) or "\0" in name)


def open_storage(path: str | Path) -> Storage:
    """Returns the storage that a path or URL names.

    Raises:
        RequestError: a URL of another scheme or with credentials, or its package is not installed.
    """
    # Each kind imports what it needs, and this file.
    from pipeline.store.storage.local import LocalStorage
    from pipeline.store.storage.objects import ObjectStorage

    text = str(path)
    check_url("place", text)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", text)
    if scheme is None:
        return LocalStorage(path)
    if scheme.group(1) == "file":
        return LocalStorage(text.split("://", 1)[-1])
    if scheme.group(1) not in SCHEMES or "://" not in text:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise RequestError(f"{text}: a cache lies in a local folder or in one of {known}")
    return ObjectStorage(text)


def is_url(path: str | Path) -> bool:
    """Returns whether `path` names an object store."""
    return "://" in str(path) and not str(path).startswith("file://")
