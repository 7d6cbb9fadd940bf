"""Options of `train-classifier`: MAE's fine-tuning, of some patches of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ltrp_core.errors import RequestError
from ltrp_core.selectors import SelectorOptions, selector_names, selector_spec
from ltrp_core.selectors.base import ITS_OWN, check_options, settled_homogeneous
from stages.options import option
from stages.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainClassifierConfig(TrainingConfig):
    """Options of `train-classifier`; the defaults are those of MAE's fine-tuning, but for images
    that are augmented by a random resized crop and a flip alone."""

    model: str = option(
        "", help="timm:NAME, a vision transformer; empty: the encoder that --init names"
    )
    init: str = option(
        "",
        help="start from: a MAE (mae_tiny, the file of pretrain-mae, the authors' .pth); with "
        "--model a file of its parameters, or random; empty: timm's pretrained ones, of the hub",
    )
    keep_ratio: float = option(
        1.0, low=0.0, high=1.0, help="share of kept patches; 1: the full image"
    )
    selector: str = option(
        "",
        names=selector_names,
        help="chooses the patches of each view as it is drawn, in training too; or --selections",
    )
    weights: str = option(
        "", help="of --selector, where it has any: see `select`", changes_numbers=False
    )
    homogeneous: float = option(
        ITS_OWN,
        low=ITS_OWN,
        high=1.0,
        help="share of the kept from homogeneous regions; -1: as `select` has it",
    )
    crop: Literal["train", "eval", "resize"] = option(
        "train",
        help="of the views that are trained on: train, a random resized crop and flip; eval, the "
        "center; resize, the whole image. With --selections: theirs. Validation: eval, or resize",
    )
    image_size: int = option(
        0, low=0, help="side of the views in px; 0: the selections', else the model's"
    )
    global_pool: Literal["token", "avg"] = option(
        "token", help="what the head is given: the class token, or the mean of the kept patches"
    )
    drop_path: float = option(
        0.1, low=0.0, high=0.9, help="probability that an image skips the last block; less before"
    )
    label_smoothing: float = option(0.1, low=0.0, high=0.9, help="share spread over all classes")
    mixup: float = option(
        0.0, low=0.0, help="alpha of mixup; 0: off. The patches are chosen of the mixed view"
    )
    cutmix: float = option(
        0.0, low=0.0, help="alpha of CutMix; 0: off. With mixup each step takes one of both"
    )
    epochs: int = option(50, low=1, help="passes over the images")
    base_lr: float = option(
        1e-3, low=0.0, help="learning rate for a batch of 256; scaled to the batch"
    )
    min_lr: float = option(1e-6, low=0.0, help="learning rate at the end")
    warmup_epochs: float = option(
        5.0, low=0.0, help="epochs of linear warm-up, at most a quarter of all"
    )
    layer_decay: float = option(
        0.75, low=0.01, high=1.0, help="learning rate of a layer relative to the next one"
    )
    clip_grad: float = option(0.0, low=0.0, help="largest norm of the gradient; 0 = any")
    holdout: float = option(
        0.1,
        low=0.0,
        high=0.9,
        help="share of the images that is validated on, by key; not with --validation-shards",
    )
    keep: Literal["best", "last"] = option(
        "best", help="epoch whose weights come out: the best top-1 on validation, or the last"
    )
    patience: int = option(0, low=0, help="epochs without a better one until it ends; 0 = never")

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        if self.weights and not self.selector:
            raise RequestError("--weights are those of --selector; name it, or leave them out")
        if self.selector:
            spec = selector_spec(self.selector)
            check_options(self.selector, spec, SelectorOptions(weights=self.weights))
        keeps = bool(self.selector) and selector_spec(self.selector).keeps_homogeneous
        object.__setattr__(self, "homogeneous", settled_homogeneous(self.homogeneous, keeps))

    @property
    def betas(self) -> tuple[float, float]:
        """Of Adam and its relatives: MAE's fine-tuning."""
        return 0.9, 0.999
