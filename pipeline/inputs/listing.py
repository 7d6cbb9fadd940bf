"""Which shards `--shards` names: paths, brace ranges, globs, folders, URLs of object stores."""

from __future__ import annotations

import errno
import glob
import hashlib
import itertools
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ltrp_core.errors import RequestError
from pipeline.console.terminal import printable
from pipeline.inputs.folders import (
    BELOW_TARS,
    BESIDE_TARS,
    COMPRESSED,
    HIDDEN,
    LeftOut,
    decompress_command,
    entry_is_folder,
    is_hidden,
    is_image,
    is_tar,
    is_text,
    stamp_of,
    unreadable,
    walk_folder,
)
from pipeline.inputs.keys import image_keys
from pipeline.inputs.shards import FolderShard, Shard, TarShard
from pipeline.inputs.tar_members import looks_like, starts_as_tar
from pipeline.remote import RemoteError, ask, is_remote, remote_error
from pipeline.url_secrets import check_url, without_secrets

SCHEMES = ("s3", "gs", "gcs", "hf", "az", "abfs", "memory", "http", "https", "file")
"""URLs that are read; each but `file` and `memory` needs its fsspec package."""
_LOOKED_AT = 3
"""Shards whose beginning is read before a run, to tell a wrong argument from a bad shard."""
_WEB = ("http", "https")
"""Single files only: there is nothing to list, and `?` belongs to the address."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A file as it was listed."""

    path: str
    size: int
    stamp: str


def find_shards(
    patterns: Sequence[str],
    *,
    unit_size: int = 1000,
    on_note: Callable[[str], None] | None = None,
) -> list[Shard]:
    """Returns the shards that patterns name, sorted by path.

    A pattern is a path or URL, a glob, a brace range such as `train-{0000..0146}.tar`, or a folder:
    every `*.tar` in it or, if it holds none, the images below it in units of `unit_size`.

    Args:
        on_note: called once for each kind of thing in a folder that is not read.

    Raises:
        RequestError: a name that is no file, a pattern that matches nothing, an unknown kind of
            URL, credentials in one, a folder that cannot be read, two shards of one file name or
            one whose name is no text, no tar at all.
    """
    shards: dict[str, Shard] = {}
    listing = _Listing(unit_size, dict[str, None]())
    for pattern in patterns:
        for shard in _shards_of(pattern, listing):
            shards[shard.path] = shard
    for note in listing.notes:
        if on_note is not None:
            on_note(note)
    if not shards:
        raise RequestError("--shards names no tar; pass paths, globs, brace ranges or folders")
    ordered = [shards[path] for path in sorted(shards)]
    by_name: dict[str, str] = {}
    for shard in ordered:
        if not is_text(shard.name):
            raise RequestError(
                f"the name of {printable(shard.path)} is not UTF-8; rename it, results carry it"
            )
        other = by_name.setdefault(shard.name, shard.path)
        if other != shard.path:
            raise RequestError(
                f"two shards have one file name: {other} and {shard.path}; "
                "rename one, results carry it"
            )
    # One bad tar among many fails alone when its turn comes; if none is good, the request is wrong.
    tars = [shard for shard in ordered if isinstance(shard, TarShard)]
    # First, middle and last: a few bad ones in a row at the start say nothing about the others.
    looked_at = tars[:: max(1, -(-len(tars) // _LOOKED_AT))][: _LOOKED_AT - 1] + tars[-1:]
    if (
        tars
        and len(tars) == len(ordered)
        and not any(starts_as_tar(shard.path) for shard in looked_at)
    ):
        raise RequestError(
            f"{tars[0].path} is not a tar{' nor are others' if len(tars) > 1 else ''}"
            f"{looks_like(tars[0].path)}; "
            "pass WebDataset tars, or make them with `ltrp-pipeline pack`"
        )
    return ordered


@dataclass(frozen=True, slots=True)
class _Listing:
    """What all patterns of a call have in common."""

    unit_size: int
    notes: dict[str, None]
    """What was left out, each line once"""

    def note(self, left_out: LeftOut) -> None:
        self.notes.update(
            dict.fromkeys(f"{printable(left_out.root)}: {note}" for note in left_out.notes())
        )


def _shards_of(pattern: str, listing: _Listing) -> Iterator[Shard]:
    if not pattern:
        raise RequestError("--shards is empty; pass paths, globs, brace ranges or folders")
    check_url("--shards", pattern, may_be_signed=True)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", pattern)
    if scheme is None or _exists(pattern):
        yield from _local(pattern, listing)
        return
    name = scheme.group(1).lower()
    rest = pattern[scheme.end() :]
    if name not in SCHEMES or not rest.startswith("//"):
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise RequestError(f"--shards {pattern!r}: pass a local path or one of {known}")
    if name == "file":
        yield from _local(rest.removeprefix("//"), listing)
    else:
        try:
            yield from _remote(f"{name}:{rest}", listing)
        except RequestError:
            raise
        except Exception as error:  # each store's package has errors of its own
            what = f"--shards {without_secrets(pattern)!r} cannot be listed"
            if isinstance(error, RemoteError):
                raise RequestError(f"{what}: {error}") from error
            if isinstance(error, OSError) or is_remote(error):
                raise RequestError(str(remote_error(what, error))) from error
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RequestError(f"{what}: {reason}") from error


def _exists(name: str) -> bool:
    """Whether a path is there. A list in braces may be longer than any path can be: it is not."""
    try:
        return Path(name).exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def _local(pattern: str, listing: _Listing) -> Iterator[Shard]:
    # A path that exists as it is written is meant, whatever braces and stars are in it.
    names = [pattern] if _exists(pattern) else _expand_braces(pattern)
    for name in names:
        if _exists(name):
            matches = [name]
        elif os.path.islink(name):
            raise RequestError(f"--shards {pattern!r}: {name} is a link that leads to nothing")
        else:
            matches = sorted(glob.glob(name)) if glob.has_magic(name) else []
        if not matches:
            raise RequestError(f"--shards {pattern!r}: no file {name}")
        for match in matches:
            path = Path(match)
            # A folder that a glob found under the name of a tar is a bad shard, not a folder.
            if path.is_dir() and (match == name or not is_tar(match)):
                yield from _of_local_folder(path, pattern, listing)
            else:
                yield _local_tar(path)


def _of_local_folder(folder: Path, pattern: str, listing: _Listing) -> Iterator[Shard]:
    root = str(folder.absolute())
    left_out = LeftOut(root)
    try:
        entries = [(entry.name, entry_is_folder(entry)) for entry in os.scandir(folder)]
    except OSError as error:
        raise unreadable(folder, error) from error
    tars = _tars_among(entries, left_out)
    if tars:
        listing.note(left_out)
        yield from (_local_tar(folder / name) for name in tars)
        return
    left_out = LeftOut(root)
    found = [
        _Found(f"{root}/{file.name}", *_size_and_stamp(file.status))
        for file in walk_folder(folder, left_out)
    ]
    yield from _units_of(root, found, left_out, pattern, listing)


def _local_tar(path: Path) -> TarShard:
    """Lists a file. One that cannot be seen is listed too: reading it says what is wrong."""
    status = None
    with suppress(OSError):
        status = path.stat()
    return TarShard(str(path.absolute()), *_size_and_stamp(status))


def _size_and_stamp(status: os.stat_result | None) -> tuple[int, str]:
    return (0, "") if status is None else (status.st_size, stamp_of(status))


def _tars_among(entries: Iterable[tuple[str, bool]], left_out: LeftOut) -> list[str]:
    """Returns which entries of a folder, (name, is a folder), are tars; notes what else may be."""
    tars = []
    for name, is_folder in entries:
        if is_hidden(name):
            if is_tar(name) or is_image(name):
                left_out.add(HIDDEN, name)
        elif is_tar(name):
            tars.append(name)
        elif is_folder:
            left_out.add(BELOW_TARS, name)
        elif decompress_command(name):
            left_out.add(COMPRESSED, name)
        elif is_image(name):
            left_out.add(BESIDE_TARS, name)
    return tars


def _remote(pattern: str, listing: _Listing) -> Iterator[Shard]:
    from fsspec.core import url_to_fs

    protocol = pattern.split("://", 1)[0]
    try:
        fs, path = url_to_fs(pattern, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise RequestError(
            f"--shards {pattern!r}: {error}; python -m pip install 'ltrp-pipeline[cluster]'"
        ) from error
    can_list = protocol not in _WEB
    literal = []
    for name in _expand_braces(path):
        if not (can_list and glob.has_magic(name)):
            literal.append(name.rstrip("/") if can_list else name)
            continue
        entries = sorted(ask(pattern, partial(fs.glob, name, detail=True)).items())
        if not entries:
            raise RequestError(f"--shards {pattern!r}: matches nothing")
        for match, entry in entries:
            yield from _of_entry(fs, protocol, match, entry, pattern, listing)
    for name, entry in _named(fs, protocol, literal, pattern):
        yield from _of_entry(fs, protocol, name, entry, pattern, listing)


def _named(
    fs: Any, protocol: str, names: Sequence[str], pattern: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """One listing a folder, not one request a shard; a web server has no listing."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        by_folder.setdefault(posixpath.dirname(name), []).append(name)
    for folder, wanted in by_folder.items():
        there: dict[str, dict[str, Any]] = {}
        with suppress(FileNotFoundError):
            if protocol in _WEB or len(wanted) == 1:
                for name in wanted:
                    there[name] = ask(_url(protocol, name), partial(fs.info, name))
            else:
                entries = ask(_url(protocol, folder), partial(fs.ls, folder, detail=True))
                there = {entry["name"].rstrip("/"): entry for entry in entries}
        for name in wanted:
            if name not in there:
                raise RequestError(f"--shards {pattern!r}: no file {_url(protocol, name)}")
            yield name, there[name]


def _of_entry(
    fs: Any, protocol: str, name: str, entry: dict[str, Any], pattern: str, listing: _Listing
) -> Iterator[Shard]:
    """Yields what a listed file or folder is. Of a folder with tars, what lies below is not asked.

    Raises:
        RequestError: a web server that does not say how long a file is.
    """
    if entry.get("type") != "directory":
        if entry.get("size") is None:
            raise RequestError(
                f"--shards {pattern!r}: the server does not say how many bytes it has, so a cut "
                "file looks like a whole one; copy it to a folder or an object store"
            )
        yield _tar_of(protocol, name, entry)
        return
    root = _url(protocol, name.rstrip("/"))
    left_out = LeftOut(root)
    entries = {
        posixpath.basename(e["name"].rstrip("/")): e
        for e in ask(pattern, partial(fs.ls, name, detail=True))
    }
    kinds = [(each, entry.get("type") == "directory") for each, entry in entries.items()]
    tars = _tars_among(kinds, left_out)
    if tars:
        listing.note(left_out)
        yield from (_tar_of(protocol, entries[each]["name"], entries[each]) for each in tars)
        return
    left_out, found = LeftOut(root), []
    for path, entry in ask(pattern, partial(fs.find, name, detail=True)).items():
        file = _found(protocol, path, entry)
        parts = file.path.removeprefix(f"{root}/").split("/")
        hidden = next((at for at, part in enumerate(parts) if is_hidden(part)), None)
        if hidden is not None:
            left_out.add(HIDDEN, "/".join(parts[: hidden + 1]))
        elif is_image(parts[-1]):
            found.append(file)
        else:
            left_out.add_other("/".join(parts))
    yield from _units_of(root, found, left_out, pattern, listing)


def _tar_of(protocol: str, name: str, entry: dict[str, Any]) -> TarShard:
    found = _found(protocol, name, entry)
    return TarShard(found.path, found.size, found.stamp)


def _found(protocol: str, name: str, entry: dict[str, Any]) -> _Found:
    stamp = entry.get("ETag") or entry.get("etag") or entry.get("sha256") or entry.get("mtime", "")
    return _Found(_url(protocol, name), int(entry.get("size") or 0), str(stamp).strip('"'))


def _url(protocol: str, name: str) -> str:
    return name if "://" in name else f"{protocol}://{name}"


def _units_of(
    root: str, files: Iterable[_Found], left_out: LeftOut, pattern: str, listing: _Listing
) -> Iterator[Shard]:
    """Yields units of the images below a folder."""
    prefix = f"{root.rstrip('/')}/"
    images = [(found.path.removeprefix(prefix), found) for found in files]
    if not images:
        there = "".join(f"; {note}" for note in left_out.notes())
        raise RequestError(
            f"--shards {pattern!r}: folder {printable(root)} holds no .tar and no image{there}"
        )
    listing.note(left_out)
    images.sort()
    keys = image_keys([name for name, _ in images])
    title = posixpath.basename(root.rstrip("/")) or "images"
    for number, start in enumerate(range(0, len(images), listing.unit_size)):
        group = images[start : start + listing.unit_size]
        stamps = "\n".join(f"{name}\0{found.size}\0{found.stamp}" for name, found in group)
        yield FolderShard(
            name=f"{title}-{number:05d}",
            root=root.rstrip("/"),
            files=tuple(name for name, _ in group),
            keys=tuple(keys[start : start + listing.unit_size]),
            size=sum(found.size for _, found in group),
            stamp=hashlib.sha256(stamps.encode("utf-8", "surrogateescape")).hexdigest()[:16],
        )


def _expand_braces(pattern: str) -> list[str]:
    parts = re.split(r"(\{[^{}]*\})", pattern)
    choices = [_choices(part) if part.startswith("{") else [part] for part in parts]
    return ["".join(combination) for combination in itertools.product(*choices)]


def _choices(brace: str) -> list[str]:
    match = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", brace)
    if match is None:
        return brace[1:-1].split(",") if "," in brace else [brace]
    first, last = match.groups()
    if int(last) < int(first):
        raise RequestError(f"brace range {brace} counts down; write the smaller number first")
    width = len(first) if first.startswith("0") else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
