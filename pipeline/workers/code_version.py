"""Which code runs here: driver and workers must have the same, or their numbers may differ."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from pipeline import __version__

_PACKAGES = ("ltrp_core", "stages", "pipeline")


@functools.cache
def code_version() -> str:
    """Returns the package's version and a hash of its source, e.g. `0.1.0 (code 3f2a90c1)`."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return f"{__version__} (code {digest.hexdigest()[:8]})"
