"""The receipt: written last, it is what makes a unit done."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from ltrp_core.parsing import parse_json_object
from pipeline.files import file_sha256

RECEIPT, ERRORS = "receipt.json", "errors.parquet"
"""Two files of a unit: what makes it done, and what of its shard is not in it."""
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What a file of a unit must be."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """Conservation law: n_in = n_ok + n_bad.

    A pure function of shard, options and weights, like the records: who wrote it, when and how
    fast is in the run's log, so that two finished caches can be compared byte by byte.
    """

    unit: str
    run_id: str
    n_in: int
    n_ok: int
    n_bad: int
    reasons: Mapping[str, int]
    """Bad samples by reason."""
    damage: str | None
    """What `--on-damage salvage` forgave: where the shard ended to be readable."""
    files: Mapping[str, FileStamp]
    """By name relative to the unit."""
    input: Mapping[str, Any]
    """Name, size and sha256 of the shard."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Receipt:
        """Returns the receipt of parsed JSON.

        Raises:
            ValueError: a field is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(f"a receipt has the fields {sorted(names)}")
        wrong = [name for name, is_right in _RULES.items() if not is_right(values[name])]
        if wrong:
            raise ValueError(f"not a receipt: {wrong[0]} is {_brief(values[wrong[0]])}")
        return cls(**{**values, "files": {n: FileStamp(**s) for n, s in values["files"].items()}})

    @classmethod
    def parse(cls, data: bytes) -> Receipt:
        """Returns the receipt in `data`.

        Raises:
            ValueError: not the JSON of a receipt.
        """
        return cls.from_json(parse_json_object(data, RECEIPT))

    def to_bytes(self) -> bytes:
        """Returns readable JSON, equal for equal receipts."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    def path_of(self, prefix: str) -> str:
        """Returns the name in the unit of the file or folder whose name starts with `prefix`.

        Raises:
            KeyError: the unit has none.
        """
        for name in self.files:
            parts = PurePosixPath(name).parts
            for depth, part in enumerate(parts):
                if part.startswith(prefix):
                    return "/".join(parts[: depth + 1])
        raise KeyError(prefix)

    @property
    def records(self) -> tuple[str, dict[str, str]]:
        """Name of the records in the unit, and sha256 of their files by name relative to it.

        Records that are one file have the name "" there.
        """
        path = self.path_of("records.")
        return path, {
            name.removeprefix(path).removeprefix("/"): stamp.sha256
            for name, stamp in self.files.items()
            if name == path or name.startswith(f"{path}/")
        }

    @property
    def num_bytes(self) -> int:
        """Size of the unit without its receipt."""
        return sum(stamp.size for stamp in self.files.values())


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_inside(name: str) -> bool:
    """Whether a file's name leads into the unit: a receipt is data, and so are its names."""
    parts = name.split("/")
    return not ({"", ".", ".."} & set(parts) or "\0" in name or "\\" in name)


def _are_stamps(files: Any) -> bool:
    return isinstance(files, dict) and all(
        _is_inside(name)
        and isinstance(stamp, dict)
        and set(stamp) == {"size", "sha256"}
        and _is_count(stamp["size"])
        and _is_sha256(stamp["sha256"])
        for name, stamp in files.items()
    )


def _is_input(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and _is_count(value.get("size"))
        and _is_sha256(value.get("sha256"))
    )


_RULES: Mapping[str, Callable[[Any], bool]] = {
    "unit": lambda value: isinstance(value, str),
    "run_id": lambda value: isinstance(value, str),
    "n_in": _is_count,
    "n_ok": _is_count,
    "n_bad": _is_count,
    "reasons": lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
    "damage": lambda value: value is None or isinstance(value, str),
    "files": _are_stamps,
    "input": _is_input,
}
"""What each field of a receipt must be."""


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}..."


def stamp_files(folder: Path) -> dict[str, FileStamp]:
    """Returns size and sha256 of every file below `folder`, by relative name, sorted."""
    return {
        path.relative_to(folder).as_posix(): FileStamp(path.stat().st_size, file_sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
