"""The receipt: written last, it is what makes a unit done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from ltrp_core.regular_files import open_regular


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
        if not isinstance(values, Mapping) or set(values) != names:
            raise ValueError(f"a receipt has the fields {sorted(names)}")
        try:
            files = {name: FileStamp(**stamp) for name, stamp in values["files"].items()}
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a receipt: {error}") from error
        return cls(**{**values, "files": files})

    @classmethod
    def parse(cls, data: bytes) -> Receipt:
        """Returns the receipt in `data`.

        Raises:
            ValueError: not the JSON of a receipt.
        """
        return cls.from_json(json.loads(data))

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
    def num_bytes(self) -> int:
        """Size of the unit without its receipt."""
        return sum(stamp.size for stamp in self.files.values())


def stamp_files(folder: Path) -> dict[str, FileStamp]:
    """Returns size and sha256 of every file below `folder`, by relative name, sorted."""
    return {
        path.relative_to(folder).as_posix(): FileStamp(path.stat().st_size, file_sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file, hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Replaces a small text file atomically and durably."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
