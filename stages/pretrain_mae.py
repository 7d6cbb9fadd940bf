"""A masked autoencoder from scratch, for images unlike ImageNet and for demos (Sec. 3.1)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ltrp_core.errors import RequestError
from ltrp_core.mae import MaskedAutoencoder, create_mae
from ltrp_core.partitions import num_visible
from ltrp_core.views import normalize
from stages.devices import resolve_device
from stages.options import option
from stages.protocols import Images, Progress, Summary, TrainingFolder
from stages.training.config import TrainingConfig
from stages.training.ddp import Processes
from stages.training.held_out_images import HeldOutImages
from stages.training.hold_out import split_by_hash
from stages.training.loading import Loader
from stages.training.loop import Task, fit
from stages.training.masked_views import MaskedViews, PretrainingSteps
from stages.training.order import RecordOrder


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(TrainingConfig):
    """Options of `pretrain-mae`."""

    model: str = option("mae_tiny", help="mae_tiny, mae_small, mae_base, mae_large or mae_huge")
    views: int = option(1, low=1, help="views per image and epoch")
    mask_ratio: tuple[float, ...] = option(
        (0.75, 0.9),
        low=0.0,
        high=1.0,
        help="shares of masked patches; each view has one of them. Scoring masks 0.9",
    )
    holdout: float = option(
        0.02, low=0.0, high=0.9, help="share of the images that the error is measured on; 0 = none"
    )
    draw_every: int = option(
        10, low=1, help="epochs between drawn reconstructions", changes_numbers=False
    )


def run(
    config: PretrainConfig,
    *,
    images: Images,
    folder: TrainingFolder,
    progress: Progress,
    ranks: Processes | None = None,
    device: str = "",
    loader_processes: int = 0,
) -> tuple[MaskedAutoencoder, Summary]:
    """Trains a masked autoencoder on raw pixels (Tab. 1i); returns it in eval mode.

    Args:
        folder: opened for this config and these images.
        ranks: which of the processes that train together this is.
        device: where this rank computes; empty: what `config.device` says.
        loader_processes: decode and render ahead; 0 = when a step needs it.

    Raises:
        RequestError: unknown model, ratio without visible patch, or no image left to train on.
    """
    started = time.monotonic()
    ranks = ranks or Processes()
    target = resolve_device(device or config.device)
    mae = make_mae(config)
    train, held_out = split_by_hash(images.keys, config.holdout, config.seed)
    steps = _steps(config, images, train, mae, ranks)
    measured = None
    if len(held_out):
        measured = HeldOutImages.make(images, held_out, mae, config.mask_ratio, config.seed, ranks)
    mae.to(target)
    trained = fit(
        Task(
            name="pretrain-mae",
            model=mae,
            steps_per_epoch=steps.order.steps_per_epoch,
            batches=Loader(
                steps, config.epochs, processes=loader_processes, pin=target.type == "cuda"
            ),
            loss=_loss(target),
            keys=lambda epoch, step: [
                images.keys[row] for row in train[steps.order.step(epoch, step).sample]
            ],
            validate=measured.measure if measured is not None else None,
            after_epoch=_drawing(config, measured, folder) if measured is not None else None,
        ),
        config,
        folder=folder,
        progress=progress,
        ranks=ranks,
    )
    mae.load_state_dict(dict(trained.last))
    summary = Summary(stage="pretrain-mae", done=1, n_ok=len(images.keys), n_bad=len(images.bad))
    summary.notes += trained.notes
    if measured is not None:
        summary.notes.append(_told(trained.history[-1], measured))
    summary.seconds = time.monotonic() - started
    return mae.cpu().eval(), summary


def make_mae(config: PretrainConfig) -> MaskedAutoencoder:
    """Returns the model as training begins.

    Raises:
        RequestError: unknown model, or a ratio without visible patch.
    """
    torch.manual_seed(config.seed)
    mae = create_mae(config.model)
    if len(set(config.mask_ratio)) != len(config.mask_ratio) or not config.mask_ratio:
        raise RequestError(f"--mask-ratio is given twice, or never: {config.mask_ratio}")
    for ratio in config.mask_ratio:
        num_visible(mae.config.num_patches, ratio)
    return mae


def _steps(
    config: PretrainConfig,
    images: Images,
    rows: np.ndarray,
    mae: MaskedAutoencoder,
    ranks: Processes,
) -> PretrainingSteps:
    order = RecordOrder(
        num_samples=len(rows),
        # Views are drawn, not stored: no two epochs have one in common.
        records_per_sample=config.views * config.epochs,
        seen_per_epoch=config.views,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    return PretrainingSteps(
        images=images,
        rows=rows,
        order=order,
        ranks=ranks,
        accumulate=config.accumulate,
        mask_ratios=config.mask_ratio,
        image_size=mae.config.image_size,
        length=mae.config.num_patches,
    )


def _loss(device: torch.device) -> Callable[[nn.Module, MaskedViews], Tensor]:
    def loss(model: nn.Module, batch: MaskedViews) -> Tensor:
        pixels, visible = (values.to(device, non_blocking=True) for values in batch[:2])
        total: Tensor = model(normalize(pixels), visible) * len(pixels)
        return total * 0 if batch.is_padding else total

    return loss


def _drawing(
    config: PretrainConfig, measured: HeldOutImages, folder: TrainingFolder
) -> Callable[[nn.Module, int], None]:
    def draw(model: nn.Module, epoch: int) -> None:
        if epoch % config.draw_every == 0 or epoch in (1, config.epochs):
            assert isinstance(model, MaskedAutoencoder)
            folder.picture("reconstructions", epoch, measured.draw(model))

    return draw


def _told(row: dict[str, float], measured: HeldOutImages) -> str:
    filled = measured.mean_filled()
    parts = [
        f"{row[name]:.3f} at {name.removeprefix('error_')} % masking (filled with the mean color "
        f"of the visible patches: {error:.3f})"
        for name, error in filled.items()
    ]
    return f"squared error on {len(measured.views)} held-out images: {'; '.join(parts)}"
