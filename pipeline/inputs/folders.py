"""Which files of a folder are read: one walk for `pack`, for folders of images, for annotations."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ltrp_core.errors import RequestError
from pipeline.console.terminal import printable
from pipeline.inputs.images import EXTENSIONS

SYSTEM_NAMES = frozenset(
    {
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "@Recycle",
        "@Recently-Snapshot",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "Thumbs.db",
        "desktop.ini",
        "Icon\r",
    }
)
"""What macOS, Windows, NAS boxes and file systems put beside files; as are all names with a dot."""
HIDDEN = "hidden or system file(s) or folder(s)"
BROKEN = "broken link(s)"
CIRCLE = "link(s) to a folder they lie in"
OTHER = "file(s) not named as images"
COMPRESSED = "compressed tar(s)"
TARS = "tar(s) beside or below images"
BESIDE_TARS = "image(s) beside its tars"
BELOW_TARS = "folder(s) beside its tars"
_DECOMPRESS = {
    ".gz": "gunzip -k",
    ".tgz": "gunzip -k",
    ".zst": "zstd -d",
    ".tzst": "zstd -d",
    ".xz": "unxz -k",
    ".txz": "unxz -k",
    ".bz2": "bunzip2 -k",
    ".tbz2": "bunzip2 -k",
    ".tbz": "bunzip2 -k",
    ".lz4": "lz4 -d",
}


@dataclass(slots=True)
class LeftOut:
    """What of a folder was not taken, by kind: it must not go unsaid."""

    root: str
    names: dict[str, list[str]] = field(default_factory=dict)
    """Relative names, by one of the kinds above."""

    def add(self, kind: str, name: str) -> None:
        """Counts one entry."""
        self.names.setdefault(kind, []).append(name)

    def add_other(self, name: str) -> None:
        """Counts a file that is not of the wanted kind."""
        kind = COMPRESSED if decompress_command(name) else TARS if is_tar(name) else OTHER
        self.add(kind, name)

    def notes(self) -> list[str]:
        """Returns one line for each kind: how many, the first of them, what to do."""
        return [
            f"left out {len(names)} {kind}, e.g. {printable(min(names))}"
            f"{self._advice(kind, min(names))}"
            for kind, names in sorted(self.names.items())
        ]

    def _advice(self, kind: str, name: str) -> str:
        root = self.root.rstrip("/")
        if kind == COMPRESSED:
            path = shlex.quote(printable(f"{root}/{name}"))
            return f"; shards are plain tars: {decompress_command(name)} {path}"
        if kind in (TARS, BELOW_TARS):
            level = "*/" * (name.count("/") + (kind == BELOW_TARS))
            return f"; tars there are read with --shards {shlex.quote(f'{root}/{level}*.tar')}"
        return ""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file below a folder."""

    name: str
    """Relative, with slashes"""
    status: os.stat_result | None
    """None: a dangling link, or not to be seen. Reading it says what is wrong."""


def walk_folder(
    folder: Path, left_out: LeftOut, is_wanted: Callable[[str], bool] | None = None
) -> Iterator[FoundFile]:
    """Yields the files below a folder that are named as images or as `is_wanted` has it.

    Linked folders are followed, as classes are often linked in; not one inside itself. Hidden and
    system entries are left out by their whole name, wherever they lie below `folder`.

    Raises:
        RequestError: a folder cannot be read.
    """
    wanted = is_wanted or is_image
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        below, above = waiting.pop()
        entries, here = _entries(folder / below)
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            if is_hidden(entry.name):
                left_out.add(HIDDEN, name)
            elif entry_is_folder(entry):
                if entry.is_symlink() and _identity(entry) in above | {here}:
                    left_out.add(CIRCLE, name)
                else:
                    waiting.append((name, above | {here}))
            elif wanted(entry.name):
                yield FoundFile(name, _status(entry))
            elif entry.is_symlink() and _status(entry) is None:
                left_out.add(BROKEN, name)
            else:
                left_out.add_other(name)


def _entries(folder: Path) -> tuple[list[os.DirEntry[str]], tuple[int, int]]:
    try:
        status = folder.stat()
        return list(os.scandir(folder)), (status.st_dev, status.st_ino)
    except OSError as error:
        raise unreadable(folder, error) from error


def unreadable(folder: Path, error: OSError) -> RequestError:
    """Returns the error for a folder that cannot be listed."""
    return RequestError(
        f"cannot read {printable(str(folder))}: {error.strerror}; check its permissions, or take "
        "it out of there"
    )


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return os.stat(entry.path)
    except OSError:
        return None


def _identity(entry: os.DirEntry[str]) -> tuple[int, int] | None:
    status = _status(entry)
    return None if status is None else (status.st_dev, status.st_ino)


def entry_is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def stamp_of(status: os.stat_result) -> str:
    """Returns what changes with a file's content: `cp -p` sets the first time, nobody the second.

    Equal means unchanged; another one only that the content must be looked at.
    """
    return f"{status.st_mtime_ns} {status.st_ctime_ns}"


def is_hidden(entry: str) -> bool:
    """Whether a file or folder of this name is left out; of the name alone, not the path."""
    return entry.startswith(".") or entry in SYSTEM_NAMES


def is_image(name: str) -> bool:
    """Whether a file is named as an image."""
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def is_tar(name: str) -> bool:
    """Whether a file is named as a tar."""
    return name.lower().endswith(".tar")


def decompress_command(name: str) -> str:
    """Returns what turns a compressed tar into a plain one; empty for other names."""
    stem, suffix = os.path.splitext(name.lower())
    is_compressed = is_tar(stem) or suffix.startswith(".t")
    return _DECOMPRESS.get(suffix, "") if is_compressed else ""


def is_text(name: str) -> bool:
    """Whether a name is UTF-8; other bytes are read as lone surrogates, which no result holds."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
