"""Weights that a worker reads on its own machine must be those that the run was started with."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

from ltrp_core.errors import CheckpointError
from ltrp_core.regular_files import open_regular


def check_same_weights(
    option: str,
    source: str,
    found: str,
    wanted: str | None,
    where: str = "where the run was started",
) -> None:
    """Compares two sha256 in hex; `wanted` None = any.

    Args:
        where: the other machine, in words.

    Raises:
        CheckpointError: they differ; names both, the machine and the file.
    """
    if wanted is not None and found != wanted:
        raise CheckpointError(
            f"{option} {source} has the sha256 {found[:12]} on {socket.gethostname()}, and "
            f"{wanted[:12]} {where}; bring the same file to all machines"
        )


def check_same_file(option: str, source: str, file: Path, wanted: str | None) -> None:
    """Compares the sha256 of the weights file of `source`; see `check_same_weights`."""
    if wanted is not None:
        with open_regular(file) as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        check_same_weights(option, source, found, wanted)
