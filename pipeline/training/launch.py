"""A training stage on many ranks through Ray Train; what the first one makes comes back."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.console.relayed_progress import RelayedBars, RelayedProgress
from pipeline.store.receipts import replace_text
from pipeline.store.run_file import read_run, run_id
from pipeline.store.storage import LocalPlace
from pipeline.training.options import TrainingRunOptions
from stages.protocols import Progress
from stages.training.ddp import Ranks

if TYPE_CHECKING:
    from pipeline.workers.ddp.process import Rank

_RESULT = "result.json"


def train_on_ray(
    work: Callable[..., dict[str, Any]],
    out: Path,
    stage: str,
    *,
    device: str,
    workers: int,
    ray_address: str | None,
    progress: Progress,
    after_start: Callable[[], None],
    on_note: Callable[[str], None],
) -> dict[str, Any]:
    """Runs `work` on every rank; the first one's result comes back in a file.

    Args:
        work: called with `progress`, `on_note`, `ranks` and `device`; picklable.
        out: the training folder, opened: its run's id is part of the name that Ray shows.

    Raises:
        RequestError: see `train_on_ranks`.
    """
    # One process needs no Ray.
    from pipeline.workers.ddp.start import train_on_ranks

    result = out / _RESULT
    result.unlink(missing_ok=True)
    with RelayedBars(progress, on_note) as bars:
        train_on_ranks(
            functools.partial(_on_rank, work, result),
            workers=workers,
            ray_address=ray_address,
            name=f"{stage}-{run_id(read_run(LocalPlace(out)))}",
            device=device,
            on_report=bars.show,
            after_start=after_start,
            on_note=on_note,
        )
    found: dict[str, Any] = json.loads(result.read_text())
    result.unlink()
    return found


def loader_processes(options: TrainingRunOptions, ranks: Ranks, *, decodes: bool) -> int:
    """Decoding pays for processes of its own; reading stored pixels on a CPU does not."""
    if options.loader_processes >= 0:
        return options.loader_processes
    import torch

    cores = max(1, len(os.sched_getaffinity(0)) // ranks.size)
    if torch.cuda.is_available():
        return min(cores - 1, 8)
    return max(1, cores // 2) if decodes else 0


def _on_rank(work: Callable[..., dict[str, Any]], result: Path, rank: Rank) -> None:
    made = work(
        progress=RelayedProgress(rank.report),
        on_note=lambda text: rank.report({"note": text}),
        ranks=Ranks(rank.rank, rank.world_size),
        device=rank.device,
    )
    if rank.rank == 0:
        replace_text(result, json.dumps(made))
