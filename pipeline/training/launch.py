"""Starts a training in this process, or on many through Ray Train; what is made comes back.

A training stage is a `Job`: what identifies it, and its work on one process. Everything else that
trainings have in common is here: the folder, the scratch space, who writes and who does not.
"""

from __future__ import annotations

import functools
import json
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltrp_core.precision import is_emulated
from pipeline.console.relayed_progress import RelayedBars, RelayedProgress
from pipeline.files import replace_text
from pipeline.store.run_file import read_run, run_id
from pipeline.store.storage.local import LocalStorage
from pipeline.training.folder import DiskTrainingFolder
from pipeline.training.options import TrainingRunOptions
from stages.devices import resolve_device
from stages.protocols import Progress
from stages.training.ddp import Processes

if TYPE_CHECKING:
    from pipeline.workers.ddp.process import Rank

_RESULT = "result.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Where and how a training runs; no number depends on it."""

    workers: int = 0
    """Processes that train together through Ray Train; 0 = this one, without Ray"""
    ray_address: str | None = None
    after_start: Callable[[], None] = lambda: None
    """Called once Ray runs: it puts in signal handlers of its own"""
    on_note: Callable[[str], None] = lambda text: None
    """Called with each note when it is made"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """What one of the processes that train together is given."""

    folder: DiskTrainingFolder
    progress: Progress
    ranks: Processes
    device: str
    """Empty: what the options say"""
    options: TrainingRunOptions

    def loader_processes(self, *, decodes: bool) -> int:
        """Decoding pays for processes of its own; reading stored pixels on a CPU does not."""
        if self.options.loader_processes >= 0:
            return self.options.loader_processes
        import torch

        cores = max(1, len(os.sched_getaffinity(0)) // self.ranks.size)
        if torch.cuda.is_available():
            return min(cores - 1, 8)
        return max(1, cores // 2) if decodes else 0


class Job(ABC):
    """A training; picklable.

    Attributes:
        stage: name of the command.
        out: `--out`, absolute.
        options: that change no number.
        device: as it was asked for.
        precision: as it was asked for.
    """

    stage: str
    out: Path
    options: TrainingRunOptions
    device: str
    precision: str = "auto"

    @abstractmethod
    def identity(self, progress: Progress) -> dict[str, Any]:
        """Returns what the run's id is the hash of.

        Raises:
            RequestError: wrong options or input; nothing has been written then.
        """

    @abstractmethod
    def train(self, process: Process) -> dict[str, Any]:
        """Trains on one process; the first one writes `out` and returns what its caller wants."""

    def scratch(self, default: Path) -> Path:
        """Returns the folder for what is brought near, on this host: `--scratch`, or `default`.

        By host: processes of one machine share it, others have their own disk.
        """
        folder = Path(self.options.scratch) if self.options.scratch else default
        return folder.absolute() / socket.gethostname()


def launch(job: Job, progress: Progress, how: Launch | None = None) -> dict[str, Any]:
    """Runs a training to its end; returns what its first process made.

    Raises:
        RequestError: wrong input, or `out` holds another run.
    """
    how = how or Launch()
    identity = job.identity(progress)
    DiskTrainingFolder(job.out, job.stage).open(identity)
    work = functools.partial(_work, job)
    if how.workers == 0:
        if is_emulated(job.precision, resolve_device(job.device)):
            how.on_note(
                f"--precision {job.precision}: this CPU has no instructions for it: a step takes "
                "some 20 times as long as in float32; --precision auto is float32 here"
            )
        return work(progress=progress, on_note=how.on_note)
    return _on_ray(work, job, how, progress)


def _work(
    job: Job,
    *,
    progress: Progress,
    on_note: Callable[[str], None],
    ranks: Processes = Processes(),  # noqa: B008 (frozen)
    device: str = "",
) -> dict[str, Any]:
    folder = DiskTrainingFolder(
        job.out,
        job.stage,
        every_s=job.options.checkpoint_every,
        log_to=job.options.log_to,
        on_note=on_note,
    )
    process = Process(
        folder=folder, progress=progress, ranks=ranks, device=device, options=job.options
    )
    try:
        return job.train(process)
    finally:
        folder.close()


def _on_ray(
    work: Callable[..., dict[str, Any]], job: Job, how: Launch, progress: Progress
) -> dict[str, Any]:
    """Runs `work` on every process; the first one's result comes back in a file.

    Raises:
        RequestError: see `train_on_processes`.
    """
    # One process needs no Ray.
    from pipeline.workers.ddp.start import train_on_processes

    result = job.out / _RESULT
    result.unlink(missing_ok=True)
    with RelayedBars(progress, how.on_note) as bars:
        train_on_processes(
            functools.partial(_on_rank, work, result),
            workers=how.workers,
            ray_address=how.ray_address,
            name=f"{job.stage}-{run_id(read_run(LocalStorage(job.out)))}",
            device=job.device,
            on_report=bars.show,
            after_start=how.after_start,
            on_note=how.on_note,
        )
    found: dict[str, Any] = json.loads(result.read_text())
    result.unlink()
    return found


def _on_rank(work: Callable[..., dict[str, Any]], result: Path, rank: Rank) -> None:
    made = work(
        progress=RelayedProgress(rank.report),
        on_note=lambda text: rank.report({"note": text}),
        ranks=Processes(rank.rank, rank.world_size),
        device=rank.device,
    )
    if rank.rank == 0:
        replace_text(result, json.dumps(made))
