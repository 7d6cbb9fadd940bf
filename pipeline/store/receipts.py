"""The receipt: written last, it is what makes a unit done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What a file of a unit must be."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """Conservation law: n_in = n_ok + n_bad."""

    unit: str
    run_id: str
    n_in: int
    n_ok: int
    n_bad: int
    reasons: Mapping[str, int]
    """Bad samples by reason."""
    files: Mapping[str, FileStamp]
    input: Mapping[str, Any]
    """Name, size and sha256 of the shard."""
    host: str
    seconds: float

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Receipt:
        """Returns the receipt of parsed JSON.

        Raises:
            ValueError: a field is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            raise ValueError(f"a receipt has the fields {sorted(names)}")
        files = {name: FileStamp(**stamp) for name, stamp in values["files"].items()}
        return cls(**{**values, "files": files})


def write_receipt(path: Path, receipt: Receipt) -> None:
    """Writes the receipt as readable JSON."""
    path.write_text(json.dumps(asdict(receipt), indent=1, sort_keys=True) + "\n")


def read_receipt(path: Path) -> Receipt:
    """Returns the receipt at `path`.

    Raises:
        OSError: no such file.
        ValueError: not the JSON of a receipt.
    """
    try:
        return Receipt.from_json(json.loads(path.read_text()))
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path}: not a receipt: {error}") from error


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Replaces a small text file atomically and durably."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
