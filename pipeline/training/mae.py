"""Runs `pretrain-mae`: reads the images once, trains in one process or many, writes the weights."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ltrp_core.mae import save_mae
from pipeline.inputs import Shard
from pipeline.plots import plot_curves
from pipeline.training.folder import DiskTrainingFolder, read_curve
from pipeline.training.launch import loader_processes, train_on_ray
from pipeline.training.options import TrainingRunOptions
from pipeline.training_data import StagedImages, stage_images
from stages import pretrain_mae
from stages.options import identity
from stages.pretrain_mae import PretrainConfig
from stages.protocols import Progress, Summary
from stages.training.ddp import Ranks

STAGE = "pretrain-mae"
MAE_FILE = "mae.safetensors"


def run_pretrain(
    config: PretrainConfig,
    shards: Sequence[Shard],
    out: Path,
    progress: Progress,
    options: TrainingRunOptions | None = None,
    *,
    workers: int = 0,
    ray_address: str | None = None,
    after_start: Callable[[], None] = lambda: None,
    on_note: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Trains a masked autoencoder into `out`/mae.safetensors.

    Args:
        workers: processes that train together through Ray Train; 0 = this one, without Ray.

    Raises:
        RequestError: wrong input, or `out` holds another run.
    """
    options = options or TrainingRunOptions()
    out = out.absolute()
    pretrain_mae.make_mae(config)
    scratch = _scratch(out, options)
    images = StagedImages(stage_images(shards, scratch, progress))
    DiskTrainingFolder(out, STAGE).open({**identity(config), **images.identity})
    work = functools.partial(_train, config, tuple(shards), out, options)
    if workers == 0:
        result = work(progress=progress, on_note=on_note)
    else:
        result = train_on_ray(
            work,
            out,
            STAGE,
            device=config.device,
            workers=workers,
            ray_address=ray_address,
            progress=progress,
            after_start=after_start,
            on_note=on_note,
        )
    shutil.rmtree(scratch if options.scratch else scratch.parent, ignore_errors=True)
    summary = Summary(**result)
    summary.output = str(out / MAE_FILE)
    summary.next_step = f"ltrp-pipeline score --shards ... --mae {summary.output} --out cache"
    return summary


def _scratch(out: Path, options: TrainingRunOptions) -> Path:
    """By host: ranks of one machine share it, others have their own disk.

    Beside `out`, not in it: what the images are must be known before `out` is claimed for them.
    """
    folder = Path(options.scratch) if options.scratch else out.with_name(f".{out.name}.scratch")
    return folder.absolute() / socket.gethostname()


def _train(
    config: PretrainConfig,
    shards: Sequence[Shard],
    out: Path,
    options: TrainingRunOptions,
    *,
    progress: Progress,
    on_note: Callable[[str], None],
    ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
    device: str = "",
) -> dict[str, Any]:
    """Trains on one rank; the first one writes `out` and returns the summary."""
    folder = DiskTrainingFolder(
        out,
        STAGE,
        every_s=options.checkpoint_every,
        log_to=options.log_to,
        on_note=on_note,
    )
    images = StagedImages(stage_images(shards, _scratch(out, options), progress))
    try:
        mae, summary = pretrain_mae.run(
            config,
            images=images,
            folder=folder,
            progress=progress,
            ranks=ranks,
            device=device,
            loader_processes=loader_processes(options, ranks, decodes=True),
        )
    finally:
        folder.close()
        images.close()
    if not ranks.is_first:
        return {}
    save_mae(mae, out / MAE_FILE)
    plot_curves(read_curve(out), out, "curve")
    summary.notes += [f"left out {bad.key}: {bad.message}" for bad in images.bad]
    return dataclasses.asdict(summary)
