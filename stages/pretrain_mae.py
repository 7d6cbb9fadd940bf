"""A masked autoencoder from scratch, for images unlike ImageNet and for demos (Sec. 3.1)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ltrp_core.mae import MaskedAutoencoder, create_mae
from ltrp_core.partitions import num_visible, sample_visible
from ltrp_core.seeding import random_permutation
from ltrp_core.views import make_view, normalize, render_view
from stages.devices import resolve_device
from stages.options import identity, option
from stages.protocols import ImageStream, Progress, Sample, Summary, TrainingFolder
from stages.training import TrainingConfig, fit

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

    def loss(batch: Batch) -> Tensor:
        pixels, visible = batch
        value: Tensor = mae(normalize(pixels.to(device)), visible.to(device))
        return value

    num_views = images.num_images * config.views
    fit(
        mae,
        config,
        steps_per_epoch=math.ceil(num_views / config.batch_size),
        batches=lambda epoch: _batches(config, images, epoch, mae),
        loss=loss,
        validate=None,
        folder=folder,
        progress=progress,
        name="pretrain-mae",
    )
    summary = Summary(stage="pretrain-mae", done=1, n_ok=images.num_images, n_bad=images.num_bad)
    summary.seconds = time.monotonic() - started
    return mae.cpu().eval(), summary


def _batches(
    config: PretrainConfig, images: ImageStream, epoch: int, mae: MaskedAutoencoder
) -> Iterator[Batch]:
    """Yields the epoch's views in an order that is a pure function of (seed, epoch)."""
    rows: list[Batch] = []
    for number, window in enumerate(images.windows(epoch, config.seed)):
        order = random_permutation(
            len(window) * config.views, seed=config.seed, key=f"{epoch}:{number}", purpose="order"
        )
        for place in order.tolist():
            sample = window[place // config.views]
            rows.append(_row(config, sample, epoch * config.views + place % config.views, mae))
            if len(rows) == config.batch_size:
                yield _collate(rows)
                rows.clear()
    if rows:
        yield _collate(rows)


def _row(config: PretrainConfig, sample: Sample, number: int, mae: MaskedAutoencoder) -> Batch:
    height, width = sample.image.shape[:2]
    view = make_view("train", sample.key, number, height, width, config.seed)
    length = mae.config.num_patches
    visible = sample_visible(sample.key, number, 1, length, config.mask_ratio, config.seed)
    return render_view(sample.image, view, mae.config.image_size), torch.from_numpy(visible[0])


def _collate(rows: list[Batch]) -> Batch:
    pixels, visible = zip(*rows, strict=True)
    return torch.stack(pixels), torch.stack(visible)
