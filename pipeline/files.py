"""Local files, written whole or not at all, and their checksums."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ltrp_core.regular_files import open_regular


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Opens a temporary path beside `path`, with its ending; renamed to `path` when the body ends.

    A reader sees the old file or the new one, also after a crash. An error leaves the old file.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Replaces a small text file, UTF-8, in one step."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file, in hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
