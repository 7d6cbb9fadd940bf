"""Walks a tar from its first byte to its last, and says so if a part of it is lost.

`tarfile` and WebDataset end silently at a damaged header, at zero blocks in the middle, where a
tar was cut, or before a second one in the same file: half a shard vanishes without an exception.
Here every header's checksum is looked at, and after the last member there must be zero blocks and
nothing else. One pass, forward only, so an object store can stream.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ltrp_core.regular_files import NotRegularFileError, open_descriptor
from pipeline.remote import open_remote

BLOCK = 512
_READ_BYTES = 1 << 20
_MOST_READ_BYTES = 8 << 20
"""Asked for at once: what a header claims is not reserved before it is there."""
_MAX_HEADER_BYTES = 1 << 20
"""Of a PAX or GNU long name; more is no name."""
_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"


_LOOK_BYTES = 16 << 10
"""Read to see whether a file begins as a tar."""
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"BZh": ("bzip2", "bunzip2"),
}


class TarDamage(Exception):
    """A part of the tar is lost; the message says where and how it shows.

    `whole` is how many bytes before it are whole, None if that is all that were taken so far.
    """

    def __init__(self, message: str, whole: int | None = None) -> None:
        super().__init__(message)
        self.whole = whole


class ForwardReader:
    """Reads a file once from start to end; counts and hashes what it reads."""

    def __init__(self, file: BinaryIO, read_bytes: int = _READ_BYTES) -> None:
        self._file = file
        self._read_bytes = read_bytes
        self._buffer = b""
        self._at = 0
        self._digest = hashlib.sha256()
        self.position = 0
        """Bytes taken so far."""
        self.received = 0
        """Bytes of the file seen so far, those ahead of `position` included."""
        self.seconds = 0.0
        """Spent waiting for the file."""

    def read(self, size: int) -> bytes:
        """Returns the next `size` bytes, fewer at the end of the file."""
        parts = []
        wanted = size
        while wanted:
            if self._at == len(self._buffer) and not self._fill(wanted):
                break
            part = self._buffer[self._at : self._at + wanted]
            parts.append(part)
            self._at += len(part)
            wanted -= len(part)
        self.position += size - wanted
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip(self, size: int) -> int:
        """Reads over `size` bytes without holding them; returns how many there were."""
        left = size
        while left:
            part = self.read(min(left, _READ_BYTES))
            if not part:
                break
            left -= len(part)
        return size - left

    def finish(self) -> str:
        """Reads to the end; returns the sha256 of the whole file."""
        while self.read(_READ_BYTES):
            pass
        return self._digest.hexdigest()

    def _fill(self, wanted: int) -> bool:
        started = time.monotonic()
        self._buffer = self._file.read(min(max(wanted, self._read_bytes), _MOST_READ_BYTES))
        self.seconds += time.monotonic() - started
        self._digest.update(self._buffer)
        self.received += len(self._buffer)
        self._at = 0
        return bool(self._buffer)


@dataclass(slots=True)
class Entry:
    """One member; `read` or leave it before the next one is asked for."""

    name: str
    offset: int
    """Of its data, bytes"""
    size: int
    is_file: bool
    is_folder: bool
    _source: ForwardReader
    _left: int

    def read(self) -> bytes:
        """Returns the data.

        Raises:
            TarDamage: the file ends before it.
        """
        data = self._source.read(self._left)
        if len(data) < self._left:
            raise TarDamage(
                f"cut at byte {self._source.position}: member {self.name!r} has {len(data)} of "
                f"{self.size} bytes"
            )
        self._left = 0
        return data


def is_of_the_system(name: str) -> bool:
    """Whether a member is what macOS puts beside every file of an archive."""
    *_, file = parts = name.split("/")
    return file.startswith("._") or "__MACOSX" in parts


def walk(source: ForwardReader) -> Iterator[Entry]:
    """Yields the members in order, and checks that the tar ends where it should.

    Raises:
        TarDamage: a header fails its checksum, the file is cut, or data follow the end.
    """
    extended: dict[str, str] = {}
    while True:
        info = _header(source)
        if info is None:
            _check_end(source)
            return
        if info.type in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
            payload = _payload(source, info)
            # A global header is about the archive; a long link's target is of no use here.
            if info.type == _PAX:
                extended.update(parse_pax(payload))
            elif info.type == _LONG_NAME:
                extended["path"] = _text(payload.rstrip(b"\0"))
            continue
        size = _size(info, extended, source)
        is_sparse = info.type == tarfile.GNUTYPE_SPARSE or any(
            name.startswith("GNU.sparse") for name in extended
        )
        if info.type == tarfile.GNUTYPE_SPARSE:
            _skip_sparse_map(source, info)
        stored = 0 if info.type in _WITHOUT_DATA else size
        entry = Entry(
            name=extended.get("GNU.sparse.name", extended.get("path", info.name)),
            offset=source.position,
            size=stored,
            is_file=info.type in tarfile.REGULAR_TYPES and not is_sparse,
            is_folder=info.isdir(),
            _source=source,
            _left=stored,
        )
        extended = {}
        yield entry
        _leave(source, entry)


def read_global_header(source: ForwardReader) -> dict[str, str]:
    """Returns the PAX records about the whole archive that a tar begins with.

    Raises:
        TarDamage: it begins with something else.
    """
    info = _header(source)
    if info is None or info.type != _PAX_GLOBAL:
        raise TarDamage("there is no global header")
    return parse_pax(_payload(source, info))


def parse_pax(payload: bytes) -> dict[str, str]:
    """Returns the records of a PAX header: lines of `LENGTH NAME=VALUE`.

    Raises:
        TarDamage: it is none.
    """
    records = {}
    while payload:
        length, _, _ = payload.partition(b" ")
        # A number too long for int() would be a ValueError there.
        if not length.isdigit() or len(length) > 9 or not 4 < int(length) <= len(payload):
            raise TarDamage("an extended header is not readable")
        line, payload = payload[len(length) + 1 : int(length)], payload[int(length) :]
        name, _, value = line.rstrip(b"\n").partition(b"=")
        records[_text(name)] = _text(value)
    return records


def _header(source: ForwardReader) -> tarfile.TarInfo | None:
    """Returns the next header, or None at a zero block."""
    start = source.position
    block = source.read(BLOCK)
    if not block:
        raise TarDamage(f"cut at byte {start}: the end-of-archive blocks are missing")
    if len(block) < BLOCK:
        raise TarDamage(f"cut at byte {start + len(block)}, inside a header")
    if not block.strip(b"\0"):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        what = "is no tar" if start == 0 else f"is damaged: a broken header at byte {start}"
        raise TarDamage(f"{what} ({error})", start) from error


def _size(info: tarfile.TarInfo, extended: dict[str, str], source: ForwardReader) -> int:
    """Returns the bytes of a member. An extended header has no checksum, so it may say anything."""
    size = extended.get("size", str(info.size))
    # isdigit alone takes digits of other scripts and superscripts; a size has at most 19 digits.
    if not (size.isascii() and size.isdigit() and len(size) < 20):
        start = source.position - BLOCK
        raise TarDamage(f"is damaged: a member of {size[:20]!r} bytes at byte {start}", start)
    return int(size)


def _skip_sparse_map(source: ForwardReader, info: tarfile.TarInfo) -> None:
    """Reads over the blocks in which GNU tar goes on with the map of a file's holes."""
    _, more, _ = info._sparse_structs  # type: ignore[attr-defined]
    while more:
        block = source.read(BLOCK)
        if len(block) < BLOCK:
            raise TarDamage(f"cut at byte {source.position}, inside a map of holes")
        more = bool(block[504])


def _payload(source: ForwardReader, info: tarfile.TarInfo) -> bytes:
    start, padded = source.position, -(-info.size // BLOCK) * BLOCK
    if not 0 <= info.size <= _MAX_HEADER_BYTES:
        raise TarDamage(
            f"is damaged: an extended header of {info.size} bytes at byte {start}", start - BLOCK
        )
    data = source.read(padded)
    if len(data) < padded:
        raise TarDamage(f"cut at byte {source.position}, inside an extended header")
    return data[: info.size]


def _leave(source: ForwardReader, entry: Entry) -> None:
    """Goes to the next header: over data that was not read, and the padding."""
    left = entry._left + -entry.size % BLOCK
    if source.skip(left) < left:
        raise TarDamage(f"cut at byte {source.position}, in or after member {entry.name!r}")


def _check_end(source: ForwardReader) -> None:
    end = source.position - BLOCK
    second = source.read(BLOCK)
    if len(second) < BLOCK:
        raise TarDamage(f"cut at byte {source.position}: one end-of-archive block is missing")
    tail = second
    while tail:
        if tail.strip(b"\0"):
            raise TarDamage(
                f"is damaged near byte {end}: data follow where the archive ends (a part was "
                "zeroed, or two tars are in one file)",
                end,
            )
        tail = source.read(_READ_BYTES)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def starts_as_tar(path: str) -> bool:
    """Returns whether a file begins with the header of a member. Unreadable ones may be tars."""
    try:
        with open_path(path, _LOOK_BYTES) as file:
            return next(walk(ForwardReader(file, _LOOK_BYTES)), None) is not None
    except (TarDamage, NotRegularFileError):
        return False
    except OSError:
        return True


def looks_like(path: str) -> str:
    """Returns what a file that is no tar is, where that can be told: words to add to an error."""
    try:
        with open_path(path, _LOOK_BYTES) as file:
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


def open_path(path: str, block_bytes: int = 8 << 20) -> BinaryIO:
    """Opens a regular file or a URL for reading from start to end."""
    if "://" not in path:
        return os.fdopen(open_descriptor(path), "rb", buffering=0)
    return open_remote(path, block_bytes)
