"""A training run on the disk: identity, checkpoint, curve; refuses another run's folder."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ltrp_core.errors import CheckpointError
from pipeline.store.receipts import replace_text
from pipeline.store.run_file import claim_folder

_EVERY_S = 60.0


class DiskTrainingFolder:
    """`run.json`, `checkpoint.pt` (tensors and numbers only) and `curve.jsonl` in one folder."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path.absolute()
        self.stage = stage
        self._written = time.monotonic()

    def open(self, identity: Mapping[str, Any]) -> None:
        """Makes the folder, or checks that it is this run's.

        Raises:
            RunMismatchError: it holds another run; the message names every difference.
        """
        claim_folder(self.path, self.stage, identity)

    def resume(self) -> Mapping[str, Any] | None:
        """Returns the last checkpoint's state, or None at the start.

        Raises:
            CheckpointError: it cannot be read.
        """
        path = self.path / "checkpoint.pt"
        if not path.exists():
            return None
        try:
            state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path} is unreadable ({str(error).splitlines()[0]}); delete it to start again"
            ) from error
        return state

    def checkpoint(self, state: Mapping[str, Any], *, last: bool) -> None:
        """Writes the state and the curve, atomically, every 60 s and at the end."""
        if not last and time.monotonic() - self._written < _EVERY_S:
            return
        self._written = time.monotonic()
        temporary = self.path / f".checkpoint.{os.getpid()}"
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / "checkpoint.pt")
        lines = (json.dumps(row, sort_keys=True) for row in state["history"])
        replace_text(self.path / "curve.jsonl", "".join(f"{line}\n" for line in lines))


def read_curve(folder: Path) -> list[dict[str, float]]:
    """Returns the rows of a training run's curve, or none if there is no file."""
    path = folder / "curve.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
