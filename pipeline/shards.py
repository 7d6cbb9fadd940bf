"""Tar shards: which files `--shards` names, and how they are read without losing half."""

from __future__ import annotations

import glob
import itertools
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ltrp_core.errors import RequestError
from pipeline.images import EXTENSIONS
from pipeline.store.receipts import file_sha256
from stages.protocols import Progress

_BLOCK = 512


class DamagedShardError(RequestError):
    """A tar is not whole; it names the shard and the byte offset."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One input tar."""

    path: str

    @property
    def stem(self) -> str:
        """File name without `.tar`."""
        return Path(self.path).name.removesuffix(".tar")

    def identity(self) -> dict[str, str | int]:
        """Returns name, size and sha256: what a unit's receipt says it was made from."""
        path = Path(self.path)
        return {"name": path.name, "size": path.stat().st_size, "sha256": file_sha256(path)}


@dataclass(frozen=True, slots=True)
class Member:
    """The encoded image of one sample."""

    key: str
    name: str
    offset: int
    """Of the data in the tar, bytes"""
    data: bytes
    is_regular: bool = True
    """False for links, devices and sparse files under an image's name; they have no data here."""


def find_shards(patterns: Sequence[str]) -> list[Shard]:
    """Returns the tars that paths, globs, brace ranges or folders name, sorted by path.

    `train-{0000..0146}.tar` is the 147 names; a folder is every `*.tar` in it.

    Raises:
        RequestError: a name that is no file, a pattern that matches nothing, a URL, no tar at all.
    """
    found: set[str] = set()
    for pattern in patterns:
        if re.match(r"[a-z0-9+]+:", pattern, re.IGNORECASE):
            raise RequestError(
                f"--shards {pattern!r}: only local paths are read; copy it here first"
            )
        for name in _expand_braces(pattern):
            found.update(str(path.absolute()) for path in _matches(name, pattern))
    if not found:
        raise RequestError("--shards names no tar; pass paths, globs, brace ranges or folders")
    by_name: dict[str, str] = {}
    for path in sorted(found):
        other = by_name.setdefault(Path(path).name, path)
        if other != path:
            raise RequestError(
                f"two shards have one file name: {other} and {path}; rename one, results carry it"
            )
    paths = sorted(found)
    # One bad tar among many fails alone when its turn comes; if none is good, the request is wrong.
    if not any(_starts_as_tar(path) for path in paths):
        raise RequestError(
            f"{paths[0]} is not a tar{' nor is any other' if len(paths) > 1 else ''}; "
            "pass WebDataset tars, or make them with `ltrp-pipeline pack`"
        )
    return [Shard(path) for path in paths]


def _starts_as_tar(path: str) -> bool:
    try:
        tarfile.open(path, "r:").close()
    except tarfile.TarError:
        return False
    return True


def _matches(name: str, pattern: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        tars = sorted(path.glob("*.tar"))
        if not tars:
            raise RequestError(
                f"--shards {pattern!r}: folder {name} holds no .tar; run `pack` first"
            )
        return tars
    if path.exists():
        return [path]
    tars = [Path(match) for match in sorted(glob.glob(name))]
    if not tars:
        raise RequestError(f"--shards {pattern!r}: no file {name}")
    return tars


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


def shard_identities(
    shards: Sequence[Shard], progress: Progress
) -> dict[str, dict[str, str | int]]:
    """Returns name, size and sha256 of every shard by path; reads each file once."""
    identities = {}
    with progress.task("hash shards", len(shards), "shards") as bar:
        for shard in shards:
            identities[shard.path] = shard.identity()
            bar.advance(1)
    return identities


def read_members(shard: Shard) -> Iterator[Member]:
    """Yields the image of every sample of a shard, in order; other members are labels and such.

    `tarfile` ends silently at a damaged header, in the middle or where a tar was cut; so after its
    last member there must be zero blocks and nothing else up to the end of the file.

    Raises:
        DamagedShardError: not a tar, cut, damaged in the middle, or a key stands twice.
    """
    keys: set[str] = set()
    end = 0
    try:
        with open(shard.path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
                if not info.isdir() and PurePosixPath(info.name).suffix.lower() in EXTENSIONS:
                    key = sample_key(info.name)
                    if key in keys:
                        raise DamagedShardError(
                            f"{shard.path}: key {key!r} stands twice (byte {info.offset}); "
                            "keys must be unique in a shard"
                        )
                    keys.add(key)
                    is_regular = info.isreg() and not info.issparse()
                    data = _read(file, info, shard) if is_regular else b""
                    yield Member(key, info.name, info.offset_data, data, is_regular)
                    file.seek(end)
            _check_end(file, end, shard)
    except tarfile.TarError as error:
        raise DamagedShardError(
            f"{shard.path} is not a whole tar: {error} (near byte {end}); "
            "write it again, e.g. with `ltrp-pipeline pack`"
        ) from error


def _read(file: object, info: tarfile.TarInfo, shard: Shard) -> bytes:
    file.seek(info.offset_data)  # type: ignore[attr-defined]
    data: bytes = file.read(info.size)  # type: ignore[attr-defined]
    if len(data) != info.size:
        raise DamagedShardError(
            f"{shard.path} is cut: member {info.name!r} at byte {info.offset_data} has "
            f"{len(data)} of {info.size} bytes"
        )
    return data


def _check_end(file: object, end: int, shard: Shard) -> None:
    size = os.path.getsize(shard.path)
    file.seek(end)  # type: ignore[attr-defined]
    tail: bytes = file.read(2 * _BLOCK)  # type: ignore[attr-defined]
    if size < end + 2 * _BLOCK:
        raise DamagedShardError(
            f"{shard.path} is cut at byte {size}: the end-of-archive blocks are missing"
        )
    while tail:
        if tail.strip(b"\0"):
            raise DamagedShardError(
                f"{shard.path} is damaged near byte {end}: data follow where the archive ends "
                "(a broken header, or two tars in one file)"
            )
        tail = file.read(1 << 20)  # type: ignore[attr-defined]


def sample_key(name: str) -> str:
    """Returns a member's key as WebDataset has it: its path up to the file name's first dot."""
    folder, _, file = name.removeprefix("./").rpartition("/")
    stem = file.split(".", 1)[0]
    return f"{folder}/{stem}" if folder else stem
