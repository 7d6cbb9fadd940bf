"""Fine-tuning of a classifier that sees only the kept patches: what are they worth to a model?"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ltrp_core.classifiers import Architecture, Start, start_classifier
from ltrp_core.errors import RequestError
from ltrp_core.kept_tokens import kept_output, layer_depth
from ltrp_core.views import Crop, normalize
from stages.devices import resolve_device
from stages.protocols import Progress, Summary, TrainingFolder
from stages.training.choosing import Chooser
from stages.training.classifier_config import TrainClassifierConfig
from stages.training.ddp import Processes
from stages.training.held_out_classes import TOP1, Choose, HeldOutClasses
from stages.training.hold_out import split_by_hash
from stages.training.labeled_views import LabeledImages, LabeledSteps, LabeledViews, ViewMaker
from stages.training.loading import Loader
from stages.training.loop import Task, Trained, fit
from stages.training.mixing import Mixing
from stages.training.order import RecordOrder
from stages.weights import check_same_weights


@dataclass(slots=True)
class TrainedClassifier:
    """What came out."""

    vit: VisionTransformer
    """In evaluation mode on the CPU, with the weights that are kept"""
    last: Mapping[str, Tensor]
    """State of the last epoch"""
    architecture: Architecture
    trained: Trained
    kept_epoch: int
    init_sha256: str
    """Of the file that it was started from, in hex; empty: no file"""
    notes: list[str]
    summary: Summary
    keep: int = 0
    """k; L: the full image"""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Images that were trained and validated on"""


def run(
    config: TrainClassifierConfig,
    *,
    data: LabeledImages,
    validation: LabeledImages | None,
    folder: TrainingFolder,
    progress: Progress,
    ranks: Processes | None = None,
    device: str = "",
    loader_processes: int = 0,
    weights_sha256: str | None = None,
) -> TrainedClassifier:
    """Trains a vision transformer that is given the kept patches alone, at their true places.

    Args:
        data: what is trained on; those that have no class are left out.
        validation: what is validated on; None: a part of `data`, by key.
        folder: opened for this config and these images.
        ranks: which of the processes that train together this is.
        device: where this rank computes; empty: what `config.device` says.
        loader_processes: read and decode ahead; 0 = when a step needs it.
        weights_sha256: what the selector's weights must be.

    Raises:
        CheckpointError: weights that cannot be used, or are others than the first rank's.
        RequestError: options that do not fit each other, or no image left to train on.
    """
    started = time.monotonic()
    ranks = ranks or Processes()
    target = resolve_device(device or config.device)
    start = make_classifier(config, len(data.classes))
    _check_same_start(config, start, ranks)
    chooser = Chooser.make(config, start.architecture, data, str(target), weights_sha256)
    train, measured_on, held_out = _split(config, data, validation)
    views = ViewMaker(data, config.crop, start.architecture.image_size, config.seed)
    steps = _steps(config, views, train, ranks)
    measured = None
    if len(held_out):
        held_views = _held_out_views(config, views, measured_on)
        measured = HeldOutClasses(held_views, held_out, chooser, ranks, loader_processes)
    model = ClassifierStep(start.vit).to(target)
    trained = fit(
        _task(config, model, steps, chooser, measured, loader_processes, len(data.classes)),
        config,
        folder=folder,
        progress=progress,
        ranks=ranks,
    )
    made = _made(config, start, trained, data)
    made.keep = chooser.keep
    made.counts = {"trained on": len(train), "validated on": len(held_out)}
    made.summary.seconds = time.monotonic() - started
    return made


def make_classifier(config: TrainClassifierConfig, num_classes: int) -> Start:
    """Returns the classifier as training begins.

    Raises:
        CheckpointError: weights that cannot be used.
        RequestError: no such model, or one that cannot be given some patches only.
    """
    torch.manual_seed(config.seed)
    return start_classifier(
        config.model,
        config.init,
        num_classes=num_classes,
        image_size=config.image_size,
        global_pool=config.global_pool,
        drop_path=config.drop_path,
    )


def _check_same_start(config: TrainClassifierConfig, start: Start, ranks: Processes) -> None:
    first = ranks.broadcast_object(start.sha256)
    check_same_weights("--init", config.init, start.sha256, first, "on the first worker's machine")


class ClassifierStep(nn.Module):
    """A transformer called with images and kept patches; what wraps it sees one `forward`."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Returns at which depth a parameter is, by its name: what timm's layer decay asks for."""
        del coarse
        blocks = len(self.vit.blocks)
        return lambda name: layer_depth(name.removeprefix("vit."), blocks)

    def no_weight_decay(self) -> set[str]:
        """Returns the parameters that are not decayed though they are no vectors."""
        return {f"vit.{name}" for name in self.vit.no_weight_decay()}

    def forward(self, images: Tensor, kept: Tensor | None) -> Tensor:
        """Returns the logits (b, C).

        Args:
            images: float32 (b, 3, S, S), normalized as ImageNet's.
            kept: int64 (b, k); None: the full image.
        """
        logits: Tensor = self.vit(images) if kept is None else kept_output(self.vit, images, kept)
        return logits


def _made(
    config: TrainClassifierConfig, start: Start, trained: Trained, data: LabeledImages
) -> TrainedClassifier:
    """Returns what came out, the transformer with the weights that are kept."""
    summary = Summary(stage="train-classifier", done=1, n_ok=len(data.images.keys))
    summary.n_bad = len(data.images.bad)
    last = _of_vit(trained.last)
    is_best = config.keep == "best" and TOP1 in trained.history[-1]
    start.vit.load_state_dict(_of_vit(trained.best) if is_best else last)
    return TrainedClassifier(
        vit=start.vit.cpu().eval(),
        last=last,
        architecture=start.architecture,
        trained=trained,
        kept_epoch=trained.best_epoch if is_best else len(trained.history),
        init_sha256=start.sha256,
        notes=[*start.notes, *_left_out(data), *trained.notes],
        summary=summary,
    )


def _split(
    config: TrainClassifierConfig, data: LabeledImages, validation: LabeledImages | None
) -> tuple[NDArray[np.int64], LabeledImages, NDArray[np.int64]]:
    """Returns the rows that are trained on; what is validated on, and its rows."""
    rows = data.rows
    if not len(rows):
        raise RequestError(
            "no image has a label; pass shards with .cls or .json members, or class folders"
        )
    if validation is not None:
        named = validation.by_names_of(data.classes)
        if not len(named.rows):
            raise RequestError("no image of --validation-shards has a label; leave them out")
        return rows, named, named.rows
    keys = [data.images.keys[row] for row in rows.tolist()]
    train, held_out = split_by_hash(keys, config.holdout, config.seed)
    return rows[train], data, rows[held_out]


def _held_out_views(
    config: TrainClassifierConfig, views: ViewMaker, data: LabeledImages
) -> ViewMaker:
    crop: Crop = "eval" if config.crop == "train" else config.crop
    return dataclasses.replace(views, data=data, crop=crop)


def _steps(
    config: TrainClassifierConfig, views: ViewMaker, rows: NDArray[np.int64], ranks: Processes
) -> LabeledSteps:
    order = RecordOrder(
        num_samples=len(rows),
        # Views are drawn, not stored: no two epochs have one in common.
        records_per_sample=config.epochs,
        seen_per_epoch=1,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    return LabeledSteps(views, rows, order, ranks, config.accumulate)


def _task(
    config: TrainClassifierConfig,
    model: ClassifierStep,
    steps: LabeledSteps,
    choose: Choose,
    measured: HeldOutClasses | None,
    processes: int,
    num_classes: int,
) -> Task:
    device = next(model.parameters()).device
    keys, rows, order = steps.views.data.images.keys, steps.rows, steps.order
    is_judged = measured is not None and (config.keep == "best" or config.patience)
    return Task(
        name="train-classifier",
        model=model,
        steps_per_epoch=order.steps_per_epoch,
        batches=Loader(steps, config.epochs, processes=processes, pin=device.type == "cuda"),
        loss=_loss(config, device, choose, num_classes),
        keys=lambda epoch, step: [keys[row] for row in rows[order.step(epoch, step).sample]],
        validate=measured.measure if measured is not None else None,
        judged_by=TOP1 if is_judged else "",
        patience=config.patience if is_judged else 0,
    )


def _loss(
    config: TrainClassifierConfig, device: torch.device, choose: Choose, num_classes: int
) -> Callable[[nn.Module, LabeledViews], Tensor]:
    mixing = Mixing(config.mixup, config.cutmix, num_classes)

    def loss(model: nn.Module, batch: LabeledViews) -> Tensor:
        images = normalize(batch.pixels.to(device, non_blocking=True))
        target = batch.label.to(device, non_blocking=True)
        if mixing.is_on:
            images, target = mixing(images, target)
        logits = model(images, choose(images, batch)).float()
        smoothing = config.label_smoothing
        total = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="sum")
        return total * 0 if batch.is_padding else total

    return loss


def _of_vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("vit."): value for name, value in state.items()}


def _left_out(data: LabeledImages) -> list[str]:
    count = len(data.numbers) - len(data.rows)
    return [f"left out {count} image(s) without a label"] if count else []
