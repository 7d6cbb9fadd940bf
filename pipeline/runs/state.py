"""What a stage of a whole run depends on, and whether it is done: a stamp an output folder.

An output folder's name ends in a hash of all that its content depends on, so a changed option makes
a new folder beside the old one, whose stages are found complete when the option is changed back.
Nothing is overwritten or deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.files import file_sha256, replace_text
from pipeline.inputs import find_shards
from pipeline.parsing import read_json_object
from pipeline.url_secrets import without_secrets

STAMPS = ".done"


def fingerprint(values: Any) -> str:
    """Returns 8 hex digits of a hash."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class ShardsState(NamedTuple):
    """The shards that a stage is given, as they are listed."""

    sizes: list[list[Any]]
    """Name and size of each: what output folders are named by"""
    stamps: str
    """Fingerprint of their times or ETags: equal means that none was replaced"""


def state_of_shards(shards: Sequence[str], unit_size: int) -> ShardsState:
    """Returns what tells shards from others.

    Raises:
        RequestError: there is none.
    """
    found = find_shards(shards, unit_size=unit_size)
    stamps = fingerprint([[shard.name, shard.stamp] for shard in found])
    return ShardsState([[shard.name, shard.size] for shard in found], stamps)


def state_of_path(path: str) -> Any:
    """Returns what tells the content of a local file or folder; a text for what is neither."""
    place = Path(path)
    if place.is_file():
        return file_sha256(place)
    if not place.is_dir():
        return path
    files = sorted(file for file in place.rglob("*") if file.is_file())
    # Not hashed: a cache may be large. A copy is then another folder, and what read it runs again.
    stats = [(file, file.stat()) for file in files]
    return [[str(f.relative_to(place)), stat.st_size, stat.st_mtime_ns] for f, stat in stats]


def is_done(base: Path, folder: Path, inputs: str, stamps: str = "") -> bool:
    """Whether the stage that writes `folder` ended well on these inputs.

    Args:
        stamps: of its shards. Where they are others than then, the stage looks at the shards: it
            knows their content, and does nothing if that is the same.
    """
    try:
        stamp = read_json_object(base / STAMPS / f"{folder.name}.json")
    except (OSError, ValueError):
        return False  # run again, it finds what is there
    same = stamp.get("inputs") == inputs and stamp.get("shards", stamps) == stamps
    return bool(same) and folder.is_dir()


def mark_done(
    base: Path, folder: Path, inputs: str, command: str, name: str, stamps: str = ""
) -> None:
    """Writes the stamp, and makes `base`/NAME lead to the folder."""
    (base / STAMPS).mkdir(parents=True, exist_ok=True)
    stamp = {"inputs": inputs, "shards": stamps, "command": without_secrets(command)}
    replace_text(base / STAMPS / f"{folder.name}.json", json.dumps(stamp, indent=1) + "\n")
    link = base / name
    if link.is_symlink() or not link.exists():
        temporary = base / f".{name}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder.name)
        temporary.replace(link)
