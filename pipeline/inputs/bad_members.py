"""Why a member of a shard cannot be used: rows of errors.parquet, without looking at its pixels."""

from __future__ import annotations

from pathlib import PurePosixPath

from pipeline.inputs.folders import is_text
from pipeline.inputs.keys import sample_key
from pipeline.inputs.tar_members import Entry
from stages.protocols import BadSample

MAX_MEMBER_BYTES = 512 << 20


def bad_name(entry: Entry) -> BadSample | None:
    """Returns why a member can belong to no sample, or None."""
    key = sample_key(entry.name)
    if entry.name.startswith("/") or ".." in PurePosixPath(entry.name).parts:
        message = f"{entry.name!r} points out of the shard"
        return BadSample(escaped(key), entry.offset, "unsafe_name", message)
    if not is_text(entry.name):
        message = f"{entry.name!r} is not UTF-8, and keys are text"
        return BadSample(escaped(key), entry.offset, "unsafe_name", message)
    if not key or key.endswith("/"):
        message = f"{entry.name!r} has nothing before its first dot"
        return BadSample(entry.name, entry.offset, "no_key", message)
    return None


def bad_content(entry: Entry) -> BadSample | None:
    """Returns why a member with the name of an image is none, or None."""
    key = sample_key(entry.name)
    if not entry.is_file:
        message = f"{entry.name!r} is a link, device or sparse file"
        return BadSample(key, entry.offset, "not_a_file", message)
    if entry.size > MAX_MEMBER_BYTES:
        message = f"{entry.name!r} has {entry.size} bytes"
        return BadSample(key, entry.offset, "too_large", message)
    return None


def no_image(key: str, entry: Entry) -> BadSample:
    """Returns the row of a key whose first member is `entry` and none of whose is an image."""
    message = "no member of this key is named as an image"
    if entry.name.lower().endswith((".tar", ".tar.gz", ".tgz", ".zip")):
        message = (
            f"{entry.name!r} is an archive within the shard, as in ImageNet's original tars: "
            "unpack each into a folder of its own, then `ltrp-pipeline pack` the folder above them"
        )
    return BadSample(key, entry.offset, "no_image", message)


def escaped(key: str) -> str:
    """Returns a key as text that can be stored, whatever bytes its name has."""
    return key.encode("utf-8", "backslashreplace").decode()
