"""Which shards `--shards` names: paths, brace ranges, globs, folders, URLs of object stores."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ltrp_core.errors import RequestError
from pipeline.inputs.images import EXTENSIONS
from pipeline.inputs.shards import FolderShard, Shard, TarShard, starts_as_tar

SCHEMES = ("s3", "gs", "gcs", "hf", "az", "abfs", "memory", "http", "https", "file")
"""URLs that are read; each but `file` and `memory` needs its fsspec package."""
_LOOKED_AT = 3
"""Shards whose beginning is read before a run, to tell a wrong argument from a bad shard."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A file as it was listed."""

    path: str
    size: int
    stamp: str


def find_shards(patterns: Sequence[str], *, unit_size: int = 1000) -> list[Shard]:
    """Returns the shards that patterns name, sorted by path.

    A pattern is a path or URL, a glob, a brace range such as `train-{0000..0146}.tar`, or a folder:
    every `*.tar` in it or, if it holds none, the images below it in units of `unit_size`.

    Raises:
        RequestError: a name that is no file, a pattern that matches nothing, an unknown kind of
            URL, two shards of one file name, no tar at all.
    """
    shards: dict[str, Shard] = {}
    for pattern in patterns:
        for shard in _shards_of(pattern, unit_size):
            shards[shard.path] = shard
    if not shards:
        raise RequestError("--shards names no tar; pass paths, globs, brace ranges or folders")
    ordered = [shards[path] for path in sorted(shards)]
    by_name: dict[str, str] = {}
    for shard in ordered:
        other = by_name.setdefault(shard.name, shard.path)
        if other != shard.path:
            raise RequestError(
                f"two shards have one file name: {other} and {shard.path}; "
                "rename one, results carry it"
            )
    # One bad tar among many fails alone when its turn comes; if none is good, the request is wrong.
    tars = [shard for shard in ordered if isinstance(shard, TarShard)]
    if tars and len(tars) == len(ordered) and not any(map(starts_as_tar, tars[:_LOOKED_AT])):
        raise RequestError(
            f"{tars[0].path} is not a tar{' nor are others' if len(tars) > 1 else ''}; "
            "pass WebDataset tars, or make them with `ltrp-pipeline pack`"
        )
    return ordered


def _shards_of(pattern: str, unit_size: int) -> Iterator[Shard]:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", pattern)
    if scheme is None or Path(pattern).exists():
        yield from _local(pattern, unit_size)
        return
    name = scheme.group(1).lower()
    if name not in SCHEMES or not pattern.startswith(f"{scheme.group(1)}://"):
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise RequestError(f"--shards {pattern!r}: pass a local path or one of {known}")
    if name == "file":
        yield from _local(pattern.split("://", 1)[1], unit_size)
    else:
        yield from _remote(pattern, unit_size)


def _local(pattern: str, unit_size: int) -> Iterator[Shard]:
    # A path that exists as it is written is meant, whatever braces and stars are in it.
    names = [pattern] if Path(pattern).exists() else _expand_braces(pattern)
    for name in names:
        path = Path(name)
        if path.is_dir():
            yield from _of_folder(str(path.absolute()), _listed(path), pattern, unit_size)
            continue
        matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(name))]
        if not matches:
            raise RequestError(f"--shards {pattern!r}: no file {name}")
        for match in matches:
            found = _stat(match)
            yield TarShard(found.path, found.size, found.stamp)


def _listed(folder: Path) -> Iterator[_Found]:
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for file in files:
            yield _stat(Path(parent, file))


def _stat(path: Path) -> _Found:
    status = path.stat()
    return _Found(str(path.absolute()), status.st_size, str(status.st_mtime_ns))


def _remote(pattern: str, unit_size: int) -> Iterator[Shard]:
    from fsspec.core import url_to_fs

    protocol = pattern.split("://", 1)[0]
    try:
        fs, path = url_to_fs(pattern, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise RequestError(
            f"--shards {pattern!r}: {error}; python -m pip install 'ltrp-pipeline[cluster]'"
        ) from error
    names = _expand_braces(path)
    if len(names) == 1 and glob.has_magic(path):
        found = fs.glob(path, detail=True)
        if not found:
            raise RequestError(f"--shards {pattern!r}: matches nothing")
        yield from (_tar_of(protocol, name, entry) for name, entry in sorted(found.items()))
    elif len(names) == 1 and fs.isdir(path):
        entries = fs.find(path, detail=True)
        yield from _of_folder(
            f"{protocol}://{path.rstrip('/')}",
            (_found(protocol, name, entry) for name, entry in entries.items()),
            pattern,
            unit_size,
        )
    else:
        yield from _named(fs, protocol, names, pattern)


def _named(fs: Any, protocol: str, names: Sequence[str], pattern: str) -> Iterator[Shard]:
    """One listing a folder, not one request a shard."""
    by_folder = itertools.groupby(sorted(names), key=posixpath.dirname)
    for folder, wanted in by_folder:
        several = list(wanted)
        try:
            if len(several) == 1:
                there = {several[0]: fs.info(several[0])}
            else:
                there = {entry["name"]: entry for entry in fs.ls(folder, detail=True)}
        except FileNotFoundError as error:
            raise RequestError(f"--shards {pattern!r}: no file {error}") from error
        for name in several:
            if name not in there:
                raise RequestError(f"--shards {pattern!r}: no file {protocol}://{name}")
            yield _tar_of(protocol, name, there[name])


def _tar_of(protocol: str, name: str, entry: dict[str, Any]) -> TarShard:
    found = _found(protocol, name, entry)
    return TarShard(found.path, found.size, found.stamp)


def _found(protocol: str, name: str, entry: dict[str, Any]) -> _Found:
    stamp = entry.get("ETag") or entry.get("etag") or entry.get("sha256") or entry.get("mtime", "")
    url = name if "://" in name else f"{protocol}://{name}"
    return _Found(url, int(entry.get("size") or 0), str(stamp).strip('"'))


def _of_folder(root: str, files: Iterable[_Found], pattern: str, unit_size: int) -> Iterator[Shard]:
    """Yields the tars directly in a folder or, if there is none, units of the images below it."""
    prefix = f"{root.rstrip('/')}/"
    tars, images = [], []
    for found in files:
        name = found.path.removeprefix(prefix)
        if "/" not in name and name.endswith(".tar"):
            tars.append(found)
        elif PurePosixPath(name).suffix.lower() in EXTENSIONS:
            images.append((name, found))
    if tars:
        yield from (TarShard(found.path, found.size, found.stamp) for found in tars)
        return
    if not images:
        raise RequestError(f"--shards {pattern!r}: folder {root} holds no .tar and no image")
    images.sort()
    title = posixpath.basename(root.rstrip("/")) or "images"
    for number, start in enumerate(range(0, len(images), unit_size)):
        group = images[start : start + unit_size]
        stamps = "\n".join(f"{name}\0{found.size}\0{found.stamp}" for name, found in group)
        yield FolderShard(
            name=f"{title}-{number:05d}",
            root=root.rstrip("/"),
            files=tuple(name for name, _ in group),
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
