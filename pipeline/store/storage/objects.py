"""A cache in an object store, through fsspec."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from ltrp_core.errors import RequestError
from pipeline.faults import fault_point
from pipeline.remote import explained, is_remote, remote_error
from pipeline.store.receipts import RECEIPT, Receipt
from pipeline.store.storage.base import QUARANTINE, UNITS, Storage, check_inside
from pipeline.store.storage.lock import Lease, live_holder


class ObjectStorage(Storage):
    """A prefix of an object store, through fsspec: a unit is committed by its receipt.

    The keys of a unit's files name their content, so two attempts cannot tear each other's files.
    """

    is_local = False
    appends = False

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

    def lines(self, name: str) -> Iterator[bytes]:
        for content in self.read_many([name]).values():
            yield from io.BytesIO(content)

    def log(self, name: str, part: int, text: str) -> None:
        if text:
            self.replace(f"{name}.{part:05d}.jsonl", text.encode())

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

    def publish(self, staged: Path, receipt: Receipt) -> Receipt | None:
        folder = f"data-{hashlib.sha256(receipt.to_bytes()).hexdigest()[:16]}"
        files = {f"{folder}/{name}": stamp for name, stamp in receipt.files.items()}
        receipt = dataclasses.replace(receipt, files=files)
        unit = f"{UNITS}/{receipt.unit}"
        self.upload(staged, f"{unit}/{folder}")
        fault_point("after_receipt", receipt.unit)
        sizes = self.sizes(unit)
        short = [name for name, stamp in files.items() if sizes.get(name) != stamp.size]
        if short:
            raise OSError(f"{self.url}/{unit}/{short[0]} is not there after its upload")
        fault_point("before_rename", receipt.unit)
        if not self.create(f"{unit}/{RECEIPT}", receipt.to_bytes()):
            return None
        fault_point("after_rename", receipt.unit)
        return receipt

    def quarantine(self, unit: str, name: str) -> None:
        # The receipt alone: the next attempt writes the files that it names again.
        receipt = f"{UNITS}/{unit}/{RECEIPT}"
        for content in self.read_many([receipt]).values():
            self.replace(f"{QUARANTINE}/{name}.json", content)
        self.remove(receipt)

    def lock(self) -> AbstractContextManager[None]:
        return Lease(self).held()

    def holder(self) -> str:
        return live_holder(self)

    def free_bytes(self) -> int | None:
        return None

    def clear_attempts(self) -> None:
        """Attempts are on the workers' own disks."""

    def is_file(self) -> bool:
        return False

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


def _is_conflict(error: OSError) -> bool:
    """Whether a conditional put met an object that was there: HTTP 412, or 409 while racing."""
    cause = error.__cause__
    code = getattr(cause, "response", {}).get("Error", {}).get("Code", "") if cause else ""
    text = f"{code} {error}"
    return any(
        word in text
        for word in ("PreconditionFailed", "ConditionalRequestConflict", "412", "pre-conditions")
    )
