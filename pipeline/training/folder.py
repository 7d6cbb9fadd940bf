"""A training run on the disk: identity, checkpoints, curve; refuses another run's folder."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from ltrp_core.errors import CheckpointError
from ltrp_core.weight_checks import listed, not_finite
from pipeline.files import atomic_write, file_sha256, replace_text
from pipeline.parsing import parse_json_object, read_json_object
from pipeline.store.run_file import begun_run, claim_folder, read_run, run_id
from pipeline.store.storage.local import LocalStorage
from pipeline.training.loggers import LogTo, open_logger

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CHECKPOINTS = "checkpoints"
CURVE = "curve.jsonl"
METRICS = "metrics.parquet"
_KEPT = 2


class DiskTrainingFolder:
    """`run.json`, `checkpoints/`, the curve as JSON lines and Parquet, and a TensorBoard log.

    A checkpoint counts when the receipt beside it, written last, holds its sha256. The one before
    is kept: a file that was cut off or flipped costs the time between two, not the run.
    """

    def __init__(
        self,
        path: Path,
        stage: str,
        *,
        every_s: float = 60.0,
        log_to: LogTo = "tensorboard",
        on_note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.path = path.absolute()
        self.stage = stage
        self.every_s = every_s
        """Seconds from one checkpoint to the next."""
        self._on_note = on_note
        self._written = time.monotonic()
        self._number = 0
        self._writer: SummaryWriter | None = None
        self._logger = open_logger(log_to, self.path)
        self._logs = False

    def open(self, identity: Mapping[str, Any]) -> None:
        """Makes the folder, or checks that it is this run's.

        Raises:
            RunMismatchError: it holds another run; the message names every difference.
        """
        claim_folder(self.path, self.stage, identity)
        self.__dict__.pop("_run_id", None)

    @cached_property
    def _run_id(self) -> str:
        """Of the run whose folder this is: those that train are not those that opened it."""
        begun = begun_run(LocalStorage(self.path))
        return run_id(begun) if begun else ""

    def resume(self) -> Mapping[str, Any] | None:
        """Returns the state of the last checkpoint that is whole, or None at the start.

        Raises:
            CheckpointError: there are some, and none is whole.
        """
        folder = self.path / CHECKPOINTS
        found = (path for path in folder.glob("*.json") if path.stem.isdecimal())
        receipts = sorted(found, reverse=True)
        problems = []
        for receipt in receipts:
            self._number = max(self._number, int(receipt.stem))
            try:
                return self._read(receipt)
            except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
                problems.append(f"{receipt.with_suffix('.pt')} is damaged ({_line(error)})")
                self._on_note(f"{problems[-1]}; the one before is used")
        if problems:
            raise CheckpointError(
                f"no checkpoint is whole: {'; '.join(problems)}; delete {folder} to start again"
            )
        return None

    def is_due(self) -> bool:
        """Whether the last checkpoint is `every_s` old."""
        return time.monotonic() - self._written >= self.every_s

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Writes the state, its receipt and the curve; keeps the checkpoint before."""
        folder = self.path / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        self._number += 1
        path = folder / f"{self._number:06d}.pt"
        with path.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        receipt = {
            "run_id": self._run_id,
            "sha256": file_sha256(path),
            "size": path.stat().st_size,
        }
        replace_text(path.with_suffix(".json"), json.dumps(receipt))
        for old in folder.iterdir():
            if old.stem.isdecimal() and int(old.stem) <= self._number - _KEPT:
                old.unlink()
        self._write_curve(state["history"])
        self._written = time.monotonic()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values to the TensorBoard log in `tensorboard/`, and to the other logger."""
        log = self._log(step)
        for name, value in values.items():
            log.add_scalar(f"{self.stage}/{name}", value, step)  # type: ignore[no-untyped-call]
        try:
            self._log_elsewhere(step, values)
        except Exception as error:  # whatever its client raises: to watch a run must not end it
            self._on_note(
                f"no more values go to the other logger ({_line(error)}); all are in tensorboard/"
            )
            self._logger = None

    def _log_elsewhere(self, step: int, values: Mapping[str, float]) -> None:
        if self._logger is None:
            return
        if not self._logs:  # only the rank that logs opens it
            self._logger.open(self.stage, read_run(LocalStorage(self.path)))
            self._logs = True
        self._logger.log(step, values)

    def picture(self, name: str, epoch: int, pixels: NDArray[np.uint8]) -> None:
        """Writes NAME/epoch-NNNN.png, and the picture into the TensorBoard log."""
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        path = folder / f"epoch-{epoch:04d}.png"
        with atomic_write(path) as temporary:
            Image.fromarray(pixels).save(temporary, "PNG")
        log = self._log(epoch)
        log.add_image(f"{self.stage}/{name}", pixels, epoch, dataformats="HWC")  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Ends the logs."""
        if self._writer is not None:
            self._writer.close()  # type: ignore[no-untyped-call]
        if self._logger is not None and self._logs:
            with suppress(Exception):
                self._logger.close()

    def _log(self, step: int) -> SummaryWriter:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What an interrupted run logged beyond its last checkpoint is logged again.
            self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)  # type: ignore[no-untyped-call]
        return self._writer

    def _read(self, receipt: Path) -> Mapping[str, Any]:
        stamp = read_json_object(receipt)
        path = receipt.with_suffix(".pt")
        # Those of before this was written say nothing of it.
        if stamp.get("run_id", self._run_id) != self._run_id:
            raise ValueError(f"it is of run {stamp['run_id']}, not of {self._run_id}")
        data = path.read_bytes()
        if len(data) != stamp["size"]:
            raise ValueError(f"{len(data)} bytes instead of {stamp['size']}")
        if hashlib.sha256(data).hexdigest() != stamp["sha256"]:
            raise ValueError("another sha256")
        state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if broken := not_finite(state):
            raise ValueError(f"not finite: {listed(broken)}")
        return state

    def _write_curve(self, history: list[dict[str, float]]) -> None:
        lines = (json.dumps(row, sort_keys=True) for row in history)
        replace_text(self.path / CURVE, "".join(f"{line}\n" for line in lines))
        if history:
            with atomic_write(self.path / METRICS) as temporary:
                pq.write_table(pa.Table.from_pylist(history), temporary)


def read_curve(folder: Path) -> list[dict[str, float]]:
    """Returns the rows of a training run's curve, or none if there is no file."""
    path = folder / CURVE
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [parse_json_object(line, f"{path}, line {n}") for n, line in enumerate(lines, 1)]


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
