"""What `submit` ships: a folder with the packages, and files named on the command line."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from ltrp_core.errors import RequestError

PACKAGES = ("ltrp_core", "stages", "pipeline")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.py[cod]", ".*", "*~")
_MOST_BYTES = 100 << 20
"""Of one file beside the code: the head keeps what is shipped in its memory."""


def make_job_folder(folder: Path, files: Sequence[Path]) -> None:
    """Copies the packages that run here, and `files` beside them, into an empty folder.

    Only the packages: whatever else lies around them (environments, data, keys) stays here.

    Raises:
        RequestError: a file that is missing or large, or named like a package.
    """
    root = Path(__file__).resolve().parents[2]
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=_LEFT_OUT)
    for file in files:
        target = folder / file.name
        if not file.is_file():
            raise RequestError(f"--with {file}: no such file")
        if file.stat().st_size > _MOST_BYTES:
            raise RequestError(
                f"--with {file} has more than {_MOST_BYTES >> 20} MiB; put it on a disk or in a "
                "bucket that the cluster reads, and name that"
            )
        if target.exists():
            raise RequestError(f"--with {file}: {file.name} is there already; rename it")
        shutil.copyfile(file, target)
