"""Where a cache lies: a folder of a file system, or a prefix of an object store.

A folder has rename, an object store has a conditional put; both are hidden here, behind the few
operations that the commit protocol needs. Names are relative to the place, with `/`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from ltrp_core.errors import RequestError
from ltrp_core.regular_files import read_regular
from pipeline.remote import explained, is_remote, remote_error
from pipeline.url_secrets import check_url

SCHEMES = ("s3", "gs", "gcs", "hf", "memory", "az", "abfs")
"""Object stores that a cache may lie in; each needs its fsspec package."""


class Place(Protocol):
    """The operations of the commit protocol.

    `read` raises FileNotFoundError; every operation raises OSError when the store fails, and
    `UnsafeNameError` for a name that leads out of the place.
    """

    @property
    def url(self) -> str:
        """Absolute path or URL, for messages and for workers to open the same place."""
        ...

    def read(self, name: str) -> bytes: ...

    def read_many(self, names: Iterable[str]) -> Mapping[str, bytes]:
        """Returns the content of those of `names` that exist."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Writes a small file; a reader sees the old content or the new, never a part."""
        ...

    def replace_from(self, name: str, file: Path) -> None:
        """Replaces a file by a local one, which `staging` gave the room for, in one step."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Writes a small file if there is none; returns whether it did."""
        ...

    def names(self, folder: str) -> list[str]:
        """Returns the names directly in `folder`, sorted; none if it does not exist."""
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """Returns bytes of every file below `folder`, by name relative to it, sorted."""
        ...

    def remove(self, name: str) -> None:
        """Removes a file or a whole folder, if it is there."""
        ...

    def local_copy(self, name: str, files: Collection[str] | None = None) -> Any:
        """Context manager: the path of a local folder or file with the content of `name`.

        Args:
            files: what a receipt lists of it, relative to it ("": `name` itself is a file);
                nothing else is fetched from an object store. None: all that is there.
        """
        ...

    def staging(self, unit: str) -> Any:
        """Context manager: an empty local folder for one attempt, removed at the end."""
        ...


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


class LocalPlace:
    """A folder of a local or shared file system."""

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

    def replace(self, name: str, data: bytes) -> None:
        path = self._at(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            _write_durably(temporary, data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)

    def replace_from(self, name: str, file: Path) -> None:
        with file.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(file, self._at(name))
        sync_folder(self.path)

    def create(self, name: str, data: bytes) -> bool:
        path = self._at(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            _write_durably(temporary, data)
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
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

    def _at(self, name: str) -> Path:
        return self.path / check_inside(name, self.url) if name else self.path


class ObjectPlace:
    """A prefix of an object store, through fsspec."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        try:
            # No cache of listings: other machines write here too.
            self.fs, self.root = url_to_fs(url.rstrip("/"), use_listings_cache=False)
        except ImportError as error:
            raise RequestError(
                f"{url}: {error}; python -m pip install 'ltrp-pipeline[cluster]'"
            ) from error
        except Exception as error:
            if isinstance(error, OSError) or is_remote(error):
                raise remote_error(url, error) from error
            raise
        self._url = url.rstrip("/")

    @property
    def url(self) -> str:
        return self._url

    @explained
    def read(self, name: str) -> bytes:
        data: bytes = self.fs.cat_file(self._key(name))
        return data

    @explained
    def read_many(self, names: Iterable[str]) -> Mapping[str, bytes]:
        keys = {self._key(name): name for name in names}
        if not keys:
            return {}
        found = self.fs.cat(list(keys), on_error="return")
        for content in found.values():
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
        return {keys[key]: data for key, data in found.items() if isinstance(data, bytes)}

    @explained
    def replace(self, name: str, data: bytes) -> None:
        self.fs.pipe_file(self._key(name), data)

    @explained
    def create(self, name: str, data: bytes) -> bool:
        key = self._key(name)
        try:
            self.fs.pipe_file(key, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if _is_conflict(error):
                return False
            raise
        except (TypeError, NotImplementedError):
            # A store without a conditional put: two attempts may then both think they were first,
            # and the later receipt stays; both name complete files, so nothing is lost by it.
            if self.fs.exists(key):
                return False
            self.fs.pipe_file(key, data)
        return True

    @explained
    def names(self, folder: str) -> list[str]:
        key = self._key(folder)
        self.fs.invalidate_cache()
        try:
            entries = self.fs.ls(key, detail=False)
        except FileNotFoundError:
            return []
        return sorted(
            entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry.rstrip("/") != key
        )

    @explained
    def sizes(self, folder: str) -> dict[str, int]:
        key = self._key(folder)
        self.fs.invalidate_cache()
        found = self.fs.find(key, detail=True)
        prefix = f"{key}/"
        return {
            name.removeprefix(prefix): int(entry["size"]) for name, entry in sorted(found.items())
        }

    @explained
    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm(self._key(name), recursive=True)

    @contextmanager
    def local_copy(self, name: str, files: Collection[str] | None = None) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="ltrp-") as folder:
            target = Path(folder, name.rsplit("/", 1)[-1])
            self._fetch(name, target, files)
            yield target

    @explained
    def _fetch(self, name: str, target: Path, files: Collection[str] | None) -> None:
        """Copies objects below `target`. A store takes any text for a key: none may lead out."""
        key = self._key(name)
        where = f"{self._url}/{name}"
        if files is None:
            found = self.fs.find(key)
            files = ["" if each == key else each.removeprefix(f"{key}/") for each in found]
        if not files:
            raise FileNotFoundError(where)
        below = [check_inside(each, where) for each in files if each]
        keys = [f"{key}/{each}" for each in below] or [key]
        self.fs.get(keys, [str(target / each) for each in below] or [str(target)])

    @contextmanager
    def staging(self, unit: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="ltrp-") as folder:
            yield Path(folder)

    @explained
    def replace_from(self, name: str, file: Path) -> None:
        self.fs.put_file(str(file), self._key(name))

    def upload(self, folder: Path, name: str) -> None:
        """Puts every file of a local folder below `name`; the files are not yet committed."""
        self._put(name, folder)

    @explained
    def _put(self, name: str, folder: Path) -> None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        root = self._key(name)
        keys = [f"{root}/{path.relative_to(folder).as_posix()}" for path in paths]
        self.fs.put([str(path) for path in paths], keys)

    def _key(self, name: str) -> str:
        return f"{self.root}/{check_inside(name, self._url)}" if name else str(self.root)


ATTEMPTS = ".attempt"
"""Folder of unfinished attempts, in a local place."""


def open_place(path: str | Path) -> LocalPlace | ObjectPlace:
    """Returns the place that a path or URL names.

    Raises:
        RequestError: a URL of another scheme or with credentials, or its package is not installed.
    """
    text = str(path)
    check_url("place", text)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", text)
    if scheme is None:
        return LocalPlace(path)
    if scheme.group(1) == "file":
        return LocalPlace(text.split("://", 1)[-1])
    if scheme.group(1) not in SCHEMES or "://" not in text:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise RequestError(f"{text}: a cache lies in a local folder or in one of {known}")
    return ObjectPlace(text)


def is_url(path: str | Path) -> bool:
    """Returns whether `path` names an object store."""
    return "://" in str(path) and not str(path).startswith("file://")


def _is_conflict(error: OSError) -> bool:
    """Whether a conditional put met an object that was there: HTTP 412, or 409 while racing."""
    cause = error.__cause__
    code = getattr(cause, "response", {}).get("Error", {}).get("Code", "") if cause else ""
    text = f"{code} {error}"
    return any(
        word in text
        for word in ("PreconditionFailed", "ConditionalRequestConflict", "412", "pre-conditions")
    )


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


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
