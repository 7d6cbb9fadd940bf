"""Stage 0: a folder of images becomes tar shards that every other stage reads."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stages.options import check_ranges, identity, option
from stages.protocols import Progress, Summary


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """Options of `pack`."""

    shard_size: int = option(1000, low=1, help="images per shard")
    prefix: str = option("images", help="shards are named PREFIX-0000.tar, PREFIX-0001.tar, ...")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFile:
    """One image on the disk and the key it gets."""

    path: Path
    key: str
    label: int | None
    class_name: str | None


class ShardSink(Protocol):
    """Where shards go."""

    def write(self, name: str, files: Sequence[ImageFile]) -> Mapping[str, str | int]:
        """Writes one shard; returns its stamp: name, size, sha256 and such."""
        ...


class PackIndex(Protocol):
    """The list of shards written so far; it refuses a folder that another run wrote."""

    def open(self, identity: Mapping[str, object]) -> Mapping[str, Mapping[str, str | int]]:
        """Returns the stamps of the shards that are there, by name."""
        ...

    def check(self, name: str, files: Sequence[ImageFile]) -> None:
        """Raises if a shard that is there does not hold these images as they are now."""
        ...

    def add(self, name: str, stamp: Mapping[str, str | int]) -> None:
        """Adds a shard that was written."""
        ...


def run(
    config: PackConfig,
    files: Sequence[ImageFile],
    *,
    sink: ShardSink,
    index: PackIndex,
    progress: Progress,
) -> Summary:
    """Writes the shards that are missing; returns how many were written and how many were there."""
    started = time.monotonic()
    groups = [
        files[start : start + config.shard_size]
        for start in range(0, len(files), config.shard_size)
    ]
    done = index.open({**identity(config), "files_sha256": _listing_sha256(files)})
    summary = Summary(stage="pack")
    width = max(4, len(str(len(groups) - 1)))
    with progress.task("pack", len(files), "images") as bar:
        for number, group in enumerate(groups):
            name = f"{config.prefix}-{number:0{width}d}.tar"
            if name in done:
                index.check(name, group)
                summary.skipped += 1
            else:
                index.add(name, sink.write(name, group))
                summary.done += 1
            summary.n_ok += len(group)
            bar.advance(len(group))
    summary.seconds = time.monotonic() - started
    return summary


def _listing_sha256(files: Sequence[ImageFile]) -> str:
    """Returns one hash over keys and sizes: other files are another run."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.key}\0{file.path.stat().st_size}\n".encode())
    return digest.hexdigest()
