"""Shards: a tar of images, or some files of a folder of images, read once from start to end."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from ltrp_core.errors import RequestError
from pipeline.inputs.bad_members import (
    MAX_MEMBER_BYTES,
    bad_content,
    bad_name,
    escaped,
    no_image,
)
from pipeline.inputs.folders import is_text
from pipeline.inputs.image_choice import ImageChoice
from pipeline.inputs.keys import sample_key
from pipeline.inputs.sample_members import Member, OtherMembers
from pipeline.inputs.tar_members import (
    BLOCK,
    Entry,
    ForwardReader,
    TarDamage,
    is_of_the_system,
    looks_like,
    open_path,
    walk,
)
from pipeline.remote import RemoteError
from stages.protocols import BadSample

OnDamage = Literal["strict", "salvage"]


class DamagedShardError(RequestError):
    """A shard is not whole; the message names it, the place and what to do."""


class ShardReader(Protocol):
    """One pass over a shard. The other fields are complete when the iteration has ended."""

    identity: dict[str, Any]
    """Name, size and sha256 of what was read."""
    left_out: list[BadSample]
    """Samples without a usable member: of every key there is an image or a row here."""
    choice: ImageChoice
    """Where a sample had several images."""
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

    def open(self, on_damage: OnDamage = "strict") -> ShardReader:
        """Returns a reader of one pass."""
        ...


@dataclass(frozen=True, slots=True)
class TarShard:
    """A tar, local or in an object store."""

    path: str
    size: int
    stamp: str = ""
    image_ext: str = ""
    """Only members of this ending are images; empty: see `ImageChoice`"""
    is_whole: bool = False
    """Whether the other members of a sample are read, too"""

    @property
    def name(self) -> str:
        """File name, without the query of a signed URL."""
        is_web = self.path.startswith(("http://", "https://"))
        return posixpath.basename(self.path.partition("?")[0] if is_web else self.path)

    def open(self, on_damage: OnDamage = "strict") -> TarReader:
        """Returns a reader: see `TarReader`."""
        return TarReader(self, on_damage, choice=ImageChoice(self.image_ext))


@dataclass(slots=True)
class TarReader:
    """Yields the image of every sample of a tar, in order.

    A sample is all members of one key, as WebDataset has it: the path up to the first dot of the
    file name. Members of other kinds are labels and such; which of several images is the sample's,
    `ImageChoice` says. Of every key there is an image or a row in `left_out`: `no_image`,
    `no_key` (".jpg"), `not_a_file` (links, devices, sparse files),
    `unsafe_name` (absolute, with `..`, or no UTF-8), `too_large`, and where damage is salvaged
    `duplicate_key`: distinct keys + members without a usable name + duplicates = images + rows.

    Raises (on iteration):
        DamagedShardError: not a tar, cut, damaged anywhere, changed while it was read, or a key has
            two images between which there is no choice. With `salvage` what came before is kept
            and `damage` says so.
        OSError: the file cannot be read.
    """

    shard: TarShard
    on_damage: OnDamage
    identity: dict[str, Any] = field(default_factory=dict)
    left_out: list[BadSample] = field(default_factory=list)
    damage: str | None = None
    seconds: float = 0.0
    choice: ImageChoice = field(default_factory=ImageChoice)

    def __iter__(self) -> Iterator[Member]:
        with open_path(self.shard.path) as file:
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
        taken: dict[str, str] = {}
        without: dict[str, Entry] = {}
        others = OtherMembers(self.shard.is_whole)
        waiting: Member | None = None
        damage: list[TarDamage] = []
        for entry in _until_damage(source, damage):
            if entry.is_folder or is_of_the_system(entry.name):
                continue
            key = sample_key(entry.name)
            if waiting is not None and waiting.key != key:
                yield from others.complete(waiting, self.left_out)
                waiting = None
            problem = bad_name(entry)
            if problem is None:
                others.begin(key, entry, is_known=key in taken or key in without)
            if problem is None and not self.choice.is_image(entry.name):
                if key not in taken:
                    without.setdefault(key, entry)
                others.add(entry)
                continue
            rank = self.choice.rank(entry.name)
            if problem is None and key in taken:
                if self._stays(taken[key], entry, waiting, others):
                    continue
                waiting = None
            if problem is None:
                # What cannot be used as an image takes its key too: one row per key, not two.
                taken[key] = entry.name
                without.pop(key, None)
                problem = bad_content(entry)
            if problem is not None:
                self.left_out.append(problem)
            elif rank or others.wanted:
                # A better one may follow: members of a sample lie beside each other.
                waiting = Member(key, entry.name, entry.offset, entry.read())
            else:
                yield Member(key, entry.name, entry.offset, entry.read())
        if waiting is not None:
            # It is whole, also where damage follows.
            yield from others.complete(waiting, self.left_out)
        if damage:
            raise damage[0]
        self.left_out += [no_image(key, entry) for key, entry in without.items()]

    def _stays(
        self, taken: str, entry: Entry, waiting: Member | None, others: OtherMembers
    ) -> bool:
        """Whether the image `taken` stays its sample's where `entry` is one, too."""
        before, rank = self.choice.rank(taken), self.choice.rank(entry.name)
        if rank > before:
            self.choice.took(taken, entry.name)
            others.add(entry)
        elif waiting is None or rank == before:
            self._duplicate(sample_key(entry.name), entry)
        else:
            self.choice.took(entry.name, waiting.name)
            others.add_image(waiting)
            return False
        return True

    def _duplicate(self, key: str, entry: Entry) -> None:
        if self.on_damage == "strict":
            raise TarDamage(
                f"is ambiguous: key {key!r} stands twice (byte {entry.offset}); keys must be "
                "unique in a shard. If these are several images of one sample, say which by "
                "--image-ext, e.g. jpg or left.png"
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
    choice: ImageChoice = field(default_factory=ImageChoice)

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
        with open_path(f"{self.shard.root}/{name}") as file:
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
        self.left_out.append(BadSample(escaped(key), 0, reason, message))


def with_image_ext(shards: Sequence[Shard], image_ext: str) -> list[Shard]:
    """Returns shards of whose samples the image is the member of an ending: `--image-ext`.

    Raises:
        RequestError: it is given, and a shard is no tar: every file of a folder is an image.
    """
    if not image_ext:
        return list(shards)
    found: list[Shard] = []
    for shard in shards:
        if not isinstance(shard, TarShard):
            raise RequestError(
                f"--image-ext is for tars, whose samples have several members; {shard.path} is a "
                "folder, each of whose images is a sample"
            )
        found.append(replace(shard, image_ext=image_ext))
    return found


def with_members(shards: Sequence[Shard]) -> list[Shard]:
    """Returns shards whose samples are read with all their members; an image of a folder is one."""
    return [replace(s, is_whole=True) if isinstance(s, TarShard) else s for s in shards]


def _until_damage(source: ForwardReader, damage: list[TarDamage]) -> Iterator[Entry]:
    """Yields the members of a tar; damage ends them and is added to `damage`."""
    is_empty = True
    try:
        for entry in walk(source):
            is_empty = False
            yield entry
        if is_empty:
            raise TarDamage("holds no member")
    except TarDamage as error:
        damage.append(error)
