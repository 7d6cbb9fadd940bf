"""Shards: a tar of images, or some files of a folder of images, read once from start to end."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal, Protocol

from ltrp_core.errors import RequestError
from ltrp_core.regular_files import NotRegularFileError, open_descriptor
from pipeline.inputs.folders import is_text
from pipeline.inputs.images import EXTENSIONS
from pipeline.inputs.keys import sample_key
from pipeline.remote import RemoteError, open_remote
from pipeline.tar_members import BLOCK, Entry, ForwardReader, TarDamage, walk
from stages.protocols import BadSample

OnDamage = Literal["strict", "salvage"]
MAX_MEMBER_BYTES = 512 << 20
"""A member that claims more is no image; it is not held in memory."""
_LOOK_BYTES = 16 << 10
"""Read to see whether a file begins as a tar."""
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"BZh": ("bzip2", "bunzip2"),
}


class DamagedShardError(RequestError):
    """A shard is not whole; the message names it, the place and what to do."""


@dataclass(frozen=True, slots=True)
class Member:
    """The encoded image of one sample."""

    key: str
    name: str
    offset: int
    """Of the data in the tar, bytes"""
    data: bytes


class ShardReader(Protocol):
    """One pass over a shard. The other fields are complete when the iteration has ended."""

    identity: dict[str, Any]
    """Name, size and sha256 of what was read."""
    left_out: list[BadSample]
    """Samples without a usable member: of every key there is an image or a row here."""
    damage: str | None
    """What `salvage` forgave."""
    seconds: float
    """Spent waiting for the bytes."""

    def __iter__(self) -> Iterator[Member]: ...


class Shard(Protocol):
    """What becomes one unit; picklable and small."""

    @property
    def name(self) -> str:
        """File name, unique in a run."""
        ...

    @property
    def path(self) -> str:
        """Absolute path or URL."""
        ...

    @property
    def size(self) -> int:
        """Bytes, as listed."""
        ...

    @property
    def stamp(self) -> str:
        """Modification time or ETag: equal means unchanged. Empty if unknown."""
        ...

    def open(self, on_damage: OnDamage = "strict") -> ShardReader: ...


@dataclass(frozen=True, slots=True)
class TarShard:
    """A tar, local or in an object store."""

    path: str
    size: int
    stamp: str = ""

    @property
    def name(self) -> str:
        """File name, without the query of a signed URL."""
        is_web = self.path.startswith(("http://", "https://"))
        return posixpath.basename(self.path.partition("?")[0] if is_web else self.path)

    def open(self, on_damage: OnDamage = "strict") -> TarReader:
        """Returns a reader: see `TarReader`."""
        return TarReader(self, on_damage)


@dataclass(slots=True)
class TarReader:
    """Yields the image of every sample of a tar, in order.

    A sample is all members of one key, as WebDataset has it: the path up to the first dot of the
    file name. Members of other kinds are labels and such. Of every key there is an image or a row
    in `left_out`: `no_image`, `no_key` (".jpg"), `not_a_file` (links, devices, sparse files),
    `unsafe_name` (absolute, with `..`, or no UTF-8), `too_large`, and where damage is salvaged
    `duplicate_key`: distinct keys + members without a usable name + duplicates = images + rows.

    Raises (on iteration):
        DamagedShardError: not a tar, cut, damaged anywhere, changed while it was read, or a key has
            two images. With `salvage` what came before is kept and `damage` says so.
        OSError: the file cannot be read.
    """

    shard: TarShard
    on_damage: OnDamage
    identity: dict[str, Any] = field(default_factory=dict)
    left_out: list[BadSample] = field(default_factory=list)
    damage: str | None = None
    seconds: float = 0.0

    def __iter__(self) -> Iterator[Member]:
        with _open(self.shard.path) as file:
            source = ForwardReader(file)
            try:
                yield from self._members(source)
                self._check_size(source)
            except TarDamage as error:
                place = source.position if error.whole is None else error.whole
                self._forgive(str(error), place)
            sha256 = source.finish()
            self.seconds = source.seconds
        self.identity = {"name": self.shard.name, "size": source.received, "sha256": sha256}

    def _members(self, source: ForwardReader) -> Iterator[Member]:
        taken: set[str] = set()
        without: dict[str, int] = {}
        count = 0
        for entry in walk(source):
            count += 1
            if entry.is_folder or is_of_the_system(entry.name):
                continue
            key = sample_key(entry.name)
            problem = _bad_name(entry)
            if problem is None and not _is_image(entry.name):
                if key not in taken:
                    without.setdefault(key, entry.offset)
                continue
            if problem is None and key in taken:
                self._duplicate(key, entry)
                continue
            if problem is None:
                # What cannot be used as an image takes its key too: one row a key, not two.
                taken.add(key)
                without.pop(key, None)
                problem = _bad_content(entry)
            if problem is None:
                yield Member(key, entry.name, entry.offset, entry.read())
            else:
                self.left_out.append(problem)
        if count == 0:
            raise TarDamage("holds no member")
        self.left_out += [
            BadSample(key, offset, "no_image", "no member of this key is named as an image")
            for key, offset in without.items()
        ]

    def _duplicate(self, key: str, entry: Entry) -> None:
        if self.on_damage == "strict":
            raise TarDamage(
                f"is ambiguous: key {key!r} stands twice (byte {entry.offset}); keys must be "
                "unique in a shard"
            )
        message = f"{entry.name!r}: the key has an image already"
        self.left_out.append(BadSample(key, entry.offset, "duplicate_key", message))

    def _check_size(self, source: ForwardReader) -> None:
        if source.received != self.shard.size:
            raise TarDamage(
                f"changed while it was read: {self.shard.size} bytes were listed, "
                f"{source.received} read"
            )

    def _forgive(self, problem: str, place: int) -> None:
        if place <= BLOCK:
            problem = f"{problem}{looks_like(self.shard.path)}"
        if self.on_damage == "strict":
            raise DamagedShardError(
                f"{self.shard.path} {problem}; write it again, e.g. with `ltrp-pipeline pack`, or "
                "keep what is readable with --on-damage salvage"
            )
        unread = max(self.shard.size - place, 0)
        self.damage = f"{problem}; {unread} of {self.shard.size} bytes unread"


@dataclass(frozen=True, slots=True)
class FolderShard:
    """Some images of a folder: a unit without a tar."""

    name: str
    root: str
    files: tuple[str, ...]
    """Paths below the root, sorted"""
    keys: tuple[str, ...]
    """One a file, unique in the whole folder: see `image_keys`"""
    size: int
    stamp: str = ""

    @property
    def path(self) -> str:
        """Root and range of files, for messages."""
        return f"{self.root} ({self.files[0]} ... {self.files[-1]})"

    def open(self, on_damage: OnDamage = "strict") -> FolderReader:
        """Returns a reader: see `FolderReader`."""
        return FolderReader(self, on_damage)


@dataclass(slots=True)
class FolderReader:
    """Yields the images of a `FolderShard`, in order, under its keys.

    A file that cannot be read is left out as `unreadable`, one that is no image for its size as
    `too_large`, a name that is no UTF-8 as `unsafe_name`.

    Raises (on iteration):
        DamagedShardError: other bytes than were listed. `salvage` says so in `damage`.
    """

    shard: FolderShard
    on_damage: OnDamage = "strict"
    identity: dict[str, Any] = field(default_factory=dict)
    left_out: list[BadSample] = field(default_factory=list)
    damage: str | None = None
    seconds: float = 0.0

    def __iter__(self) -> Iterator[Member]:
        digest, received = hashlib.sha256(), 0
        all_read = True
        for name, key in zip(self.shard.files, self.shard.keys, strict=True):
            try:
                data, size, content = self._read(name)
            except RemoteError:
                raise  # nothing is known of the file: the unit is tried again
            except OSError as error:
                self._leave_out(key, "unreadable", f"{name!r}: {error.strerror or error}")
                all_read = False
                continue
            received += size
            # Files that are left out count as well: the unit would be another without them.
            digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape") + content)
            if not is_text(name):
                self._leave_out(key, "unsafe_name", f"{name!r} is not UTF-8")
                continue
            if data is None:
                self._leave_out(key, "too_large", f"{name!r} has {size} bytes")
            else:
                yield Member(key, name, 0, data)
        if all_read and received != self.shard.size:
            self._changed(received)
        # As listed: a file that is left out must not make the folder look changed to a next run.
        self.identity = {
            "name": self.shard.name,
            "size": self.shard.size,
            "sha256": digest.hexdigest(),
        }

    def _read(self, name: str) -> tuple[bytes | None, int, bytes]:
        """Returns the data if they are no more than an image has, the size, and what to hash."""
        with _open(f"{self.shard.root}/{name}") as file:
            source = ForwardReader(file)
            data = source.read(MAX_MEMBER_BYTES)
            whole = source.finish()
        self.seconds += source.seconds
        if source.received > MAX_MEMBER_BYTES:
            return None, source.received, whole.encode()
        return data, source.received, data

    def _changed(self, received: int) -> None:
        problem = f"changed while it was read: {self.shard.size} bytes were listed, {received} read"
        if self.on_damage == "strict":
            raise DamagedShardError(
                f"{self.shard.path} {problem}; start again when nothing writes there, or keep what "
                "was read with --on-damage salvage"
            )
        self.damage = problem

    def _leave_out(self, key: str, reason: str, message: str) -> None:
        self.left_out.append(BadSample(_escaped(key), 0, reason, message))


def starts_as_tar(shard: TarShard) -> bool:
    """Returns whether a file begins with the header of a member. Unreadable ones may be tars."""
    try:
        with _open(shard.path, _LOOK_BYTES) as file:
            return next(walk(ForwardReader(file, _LOOK_BYTES)), None) is not None
    except (TarDamage, NotRegularFileError):
        return False
    except OSError:
        return True


def _bad_name(entry: Entry) -> BadSample | None:
    """Returns why a member can belong to no sample, or None."""
    key = sample_key(entry.name)
    if entry.name.startswith("/") or ".." in PurePosixPath(entry.name).parts:
        message = f"{entry.name!r} points out of the shard"
        return BadSample(_escaped(key), entry.offset, "unsafe_name", message)
    if not is_text(entry.name):
        message = f"{entry.name!r} is not UTF-8, and keys are text"
        return BadSample(_escaped(key), entry.offset, "unsafe_name", message)
    if not key or key.endswith("/"):
        message = f"{entry.name!r} has nothing before its first dot"
        return BadSample(entry.name, entry.offset, "no_key", message)
    return None


def _bad_content(entry: Entry) -> BadSample | None:
    """Returns why a member with the name of an image is none, or None."""
    key = sample_key(entry.name)
    if not entry.is_file:
        message = f"{entry.name!r} is a link, device or sparse file"
        return BadSample(key, entry.offset, "not_a_file", message)
    if entry.size > MAX_MEMBER_BYTES:
        message = f"{entry.name!r} has {entry.size} bytes"
        return BadSample(key, entry.offset, "too_large", message)
    return None


def _escaped(key: str) -> str:
    return key.encode("utf-8", "backslashreplace").decode()


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS or (
        name.rpartition("/")[2].lower() in EXTENSIONS
    )


def is_of_the_system(name: str) -> bool:
    """Whether a member is what macOS puts beside every file of an archive."""
    *_, file = parts = name.split("/")
    return file.startswith("._") or "__MACOSX" in parts


def looks_like(path: str) -> str:
    """Returns what a file that is no tar is, where that can be told: words to add to an error."""
    try:
        with _open(path, _LOOK_BYTES) as file:
            start = file.read(512)
    except NotRegularFileError as error:
        return f": it is {error.strerror}"
    except OSError:
        return ""
    if not start:
        return ": it is empty"
    for magic, (form, command) in _COMPRESSED.items():
        if start.startswith(magic):
            return (
                f": it is compressed with {form}, and shards are plain tars ({command} makes one)"
            )
    return ": it is a web page" if b"<html" in start.lower() else ""


def _open(path: str, block_bytes: int = 8 << 20) -> BinaryIO:
    if "://" not in path:
        return os.fdopen(open_descriptor(path), "rb", buffering=0)
    return open_remote(path, block_bytes)
