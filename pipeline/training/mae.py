"""Runs `pretrain-mae`: reads the images once, trains in one process or many, writes the weights."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltrp_core.mae import save_mae
from pipeline.inputs import Shard
from pipeline.plots import plot_curves
from pipeline.training.folder import read_curve
from pipeline.training.launch import Job, Launch, Process, launch
from pipeline.training.options import TrainingRunOptions
from pipeline.training_data import StagedImages, stage_images
from stages import pretrain_mae
from stages.options import identity
from stages.pretrain_mae import PretrainConfig
from stages.protocols import Progress, Summary

STAGE = "pretrain-mae"
MAE_FILE = "mae.safetensors"


def run_pretrain(
    config: PretrainConfig,
    shards: Sequence[Shard],
    out: Path,
    progress: Progress,
    options: TrainingRunOptions | None = None,
    how: Launch | None = None,
) -> Summary:
    """Trains a masked autoencoder into `out`/mae.safetensors.

    Raises:
        RequestError: wrong input, or `out` holds another run.
    """
    job = MAEJob(config, tuple(shards), out.absolute(), options or TrainingRunOptions())
    result = launch(job, progress, how)
    shutil.rmtree(
        job.images_folder if job.options.scratch else job.images_folder.parent, ignore_errors=True
    )
    summary = Summary(**result)
    summary.output = str(job.out / MAE_FILE)
    return summary


class MAEJob(Job):
    """The training of a masked autoencoder from images."""

    stage = STAGE

    def __init__(
        self,
        config: PretrainConfig,
        shards: tuple[Shard, ...],
        out: Path,
        options: TrainingRunOptions,
    ) -> None:
        self.config, self.shards, self.out = config, shards, out
        self.options, self.device = options, config.device
        self.precision = config.precision

    @property
    def images_folder(self) -> Path:
        """Beside `out`, not in it: it is filled before `out` is claimed for these images."""
        return self.scratch(self.out.with_name(f".{self.out.name}.scratch"))

    def identity(self, progress: Progress) -> dict[str, Any]:
        """Returns options and images; brings the images near."""
        pretrain_mae.make_mae(self.config)
        images = StagedImages(stage_images(self.shards, self.images_folder, progress))
        return {**identity(self.config), **images.identity}

    def train(self, process: Process) -> dict[str, Any]:
        """Trains; the first process writes the folder, and returns the summary."""
        images = StagedImages(stage_images(self.shards, self.images_folder, process.progress))
        try:
            mae, summary = pretrain_mae.run(
                self.config,
                images=images,
                folder=process.folder,
                progress=process.progress,
                ranks=process.ranks,
                device=process.device,
                loader_processes=process.loader_processes(decodes=True),
            )
        finally:
            images.close()
        if not process.ranks.is_first:
            return {}
        save_mae(mae, self.out / MAE_FILE)
        plot_curves(read_curve(self.out), self.out, "curve")
        summary.notes += [f"left out {bad.key}: {bad.message}" for bad in images.bad]
        return dataclasses.asdict(summary)
