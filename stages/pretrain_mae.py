"""A masked autoencoder from scratch, for images unlike ImageNet and for demos (Sec. 3.1)."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltrp_core.mae import MaskedAutoencoder, create_mae
from ltrp_core.partitions import num_visible, sample_visible
from ltrp_core.seeding import random_permutation
from ltrp_core.views import make_view, normalize, render_view
from stages.devices import resolve_device
from stages.options import identity, option
from stages.protocols import ImageStream, Progress, Sample, Summary, TrainingFolder
from stages.ranks import Ranks
from stages.training import StepBatch, Task, TrainingConfig, fit

Batch = tuple[Tensor, Tensor]
"""uint8 images (B, 3, S, S) and visible int64 (B, n)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(TrainingConfig):
    """Options of `pretrain-mae`."""

    model: str = option("mae_tiny", help="mae_tiny, mae_small, mae_base, mae_large or mae_huge")
    views: int = option(1, low=1, help="views an image an epoch; an image is decoded once for all")
    mask_ratio: float = option(0.75, help="share of masked patches")


def run(
    config: PretrainConfig,
    *,
    images: ImageStream,
    folder: TrainingFolder,
    progress: Progress,
) -> tuple[MaskedAutoencoder, Summary]:
    """Trains a masked autoencoder on raw pixels (Tab. 1i); returns it in eval mode.

    Raises:
        RequestError: unknown model, ratio without visible patch, or a folder of another run.
    """
    started = time.monotonic()
    torch.manual_seed(config.seed)
    mae = create_mae(config.model)
    num_visible(mae.config.num_patches, config.mask_ratio)
    device = resolve_device(config.device)
    folder.open({**identity(config), **images.identity})
    mae.to(device)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        pixels, visible = batch
        value: Tensor = model(normalize(pixels.to(device)), visible.to(device))
        return value * len(pixels)

    num_views = images.num_images * config.views
    trained = fit(
        Task(
            name="pretrain-mae",
            model=mae,
            steps_per_epoch=math.ceil(num_views / config.batch_size),
            batches=lambda epoch, step: _steps(config, images, epoch, step, mae),
            loss=loss,
        ),
        config,
        folder=folder,
        progress=progress,
        ranks=Ranks(),
    )
    mae.load_state_dict(dict(trained.last))
    summary = Summary(stage="pretrain-mae", done=1, n_ok=images.num_images, n_bad=images.num_bad)
    summary.seconds = time.monotonic() - started
    return mae.cpu().eval(), summary


def _steps(
    config: PretrainConfig, images: ImageStream, epoch: int, first: int, mae: MaskedAutoencoder
) -> Iterator[StepBatch]:
    """Yields the steps of an epoch, from its step `first` on."""
    places = _places(config, images, epoch)
    for _ in itertools.islice(places, first * config.batch_size):
        pass  # Neither decoded again where images are in memory, nor rendered.
    while chosen := list(itertools.islice(places, config.batch_size)):
        rows = [_row(config, sample, number, mae) for sample, number in chosen]
        size = -(-len(rows) // config.accumulate)
        parts = [_collate(rows[start : start + size]) for start in range(0, len(rows), size)]
        yield StepBatch(parts, len(rows))


def _places(
    config: PretrainConfig, images: ImageStream, epoch: int
) -> Iterator[tuple[Sample, int]]:
    """Yields the epoch's views in an order that is a pure function of (seed, epoch)."""
    for number, window in enumerate(images.windows(epoch, config.seed)):
        order = random_permutation(
            len(window) * config.views, seed=config.seed, key=f"{epoch}:{number}", purpose="order"
        )
        for place in order.tolist():
            yield window[place // config.views], epoch * config.views + place % config.views


def _row(config: PretrainConfig, sample: Sample, number: int, mae: MaskedAutoencoder) -> Batch:
    height, width = sample.image.shape[:2]
    view = make_view("train", sample.key, number, height, width, config.seed)
    length = mae.config.num_patches
    visible = sample_visible(sample.key, number, 1, length, config.mask_ratio, config.seed)
    return render_view(sample.image, view, mae.config.image_size), torch.from_numpy(visible[0])


def _collate(rows: list[Batch]) -> Batch:
    pixels, visible = zip(*rows, strict=True)
    return torch.stack(pixels), torch.stack(visible)
