"""A vision transformer that was trained on kept patches: what it is built from, and its folder."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ltrp_core.errors import CheckpointError, RequestError
from ltrp_core.kept_tokens import token_grid
from ltrp_core.mae.files import read_file
from ltrp_core.parsing import parse_json
from ltrp_core.weight_checks import check_finite, check_same
from ltrp_core.weight_sources import TIMM
from ltrp_core.weights_folder import described_input, write_weights

WEIGHTS, CONFIG = "classifier.safetensors", "config.json"
"""The two files of a classifier's folder."""
FORMAT = "ltrp-classifier"
PLAIN = "vit"
"""The `model` of one that has the sizes of a masked autoencoder's encoder, and no name of timm's"""
_REMEDY = "pass a folder that train-classifier wrote"


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """What a classifier of kept patches is built from; it stands in config.json as it is."""

    model: str
    """`timm:NAME`, or `vit`, which the sizes at the end describe"""
    num_classes: int
    """C"""
    image_size: int
    """Side of the views in px"""
    patch_size: int
    """p in px"""
    global_pool: str = "token"
    """`token`: the class token's features; `avg`: the mean of the kept patches'"""
    width: int = 0
    depth: int = 0
    heads: int = 0
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6

    def create(self) -> VisionTransformer:
        """Returns the transformer with random weights, drawn from torch's default generator.

        Raises:
            RequestError: timm has no such model, it has other patches or no class token to pool, or
                it cannot be given some patches only.
        """
        side = self.image_size
        if self.model == PLAIN:
            norm: Any = functools.partial(nn.LayerNorm, eps=self.norm_eps)
            vit: nn.Module = VisionTransformer(
                img_size=side,
                patch_size=self.patch_size,
                embed_dim=self.width,
                depth=self.depth,
                num_heads=self.heads,
                mlp_ratio=self.mlp_ratio,
                norm_layer=norm,
            )
        else:
            vit = timm.create_model(self.model.removeprefix(TIMM))
        return fitted(vit, self)


def fitted(vit: nn.Module, architecture: Architecture) -> VisionTransformer:
    """Returns a transformer, in place, with the input, pooling and fresh head of an architecture.

    Positions that it has learned are interpolated where the grid is another one.

    Raises:
        RequestError: it has other patches or no class token to pool, or it cannot be given some
            patches only.
    """
    theirs = token_grid(vit)
    assert isinstance(vit, VisionTransformer)
    side, patch_size = architecture.image_size, architecture.patch_size
    if theirs.patch != (patch_size, patch_size) or side % patch_size or side < patch_size:
        raise RequestError(
            f"{architecture.model} has {theirs}, and asked for are views of {side} x {side} px of "
            f"{patch_size} px patches; take another model, or an image size of whole patches"
        )
    if architecture.global_pool == "token" and not vit.has_class_token:
        raise RequestError(f"{architecture.model} has no class token; pass --global-pool avg")
    if not theirs.is_of(side // patch_size, patch_size):
        vit.set_input_size(img_size=(side, side))
    vit.reset_classifier(architecture.num_classes, architecture.global_pool)
    return vit


class TrainedClassifier(NamedTuple):
    """What a folder holds."""

    vit: VisionTransformer
    """On the CPU in evaluation mode; it takes images normalized as ImageNet's"""
    classes: tuple[str, ...]
    """(C,) names, by number"""
    config: Mapping[str, Any]
    """What config.json says"""


def save_classifier(
    vit: VisionTransformer,
    architecture: Architecture,
    classes: Sequence[str],
    folder: str | os.PathLike[str],
    extra: Mapping[str, Any],
) -> None:
    """Writes `classifier.safetensors` and `config.json` into `folder`, made if it is missing.

    Args:
        vit: built by `architecture`, on any device.
        architecture: what `load_classifier` builds it from.
        classes: (C,) names, by number.
        folder: where to; files of an earlier classifier are replaced, each in one step.
        extra: anything JSON can hold, kept beside the rest.

    Raises:
        CheckpointError: a weight is not finite; nothing is written then.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    described = {
        "format": FORMAT,
        "classifier": dataclasses.asdict(architecture),
        "classes": list(classes),
        "input": described_input(architecture.image_size),
        "versions": {"torch": str(torch.__version__), "timm": timm.__version__},
        "extra": dict(extra),
    }
    state = {key: value.detach().cpu().contiguous() for key, value in vit.state_dict().items()}
    write_weights(target / WEIGHTS, state, target / CONFIG, described)


def load_classifier(folder: str | os.PathLike[str]) -> TrainedClassifier:
    """Returns what `save_classifier` wrote; torch's default generator is left as it was.

    Give the transformer some patches by `ltrp_core.SelectedPatches`, or `kept_output`.

    Raises:
        CheckpointError: a file is missing, damaged or foreign; names it.
    """
    path = Path(folder).expanduser()
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise CheckpointError(f"no classifier in {path}: {name} is missing; {_REMEDY}")
    remedy = "copy it again or train the classifier again"
    config = parse_json(
        (path / CONFIG).read_bytes(), str(path / CONFIG), error=CheckpointError, remedy=remedy
    )
    try:
        if config["format"] != FORMAT:
            raise ValueError(f"its format is {config['format']!r}")
        architecture = Architecture(**config["classifier"])
        classes = tuple(str(name) for name in config["classes"])
        if len(classes) != architecture.num_classes:
            raise ValueError(f"{len(classes)} names for {architecture.num_classes} classes")
        with torch.random.fork_rng(devices=[]):
            vit = architecture.create()
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{path / CONFIG} describes no classifier ({error}); {_REMEDY}"
        ) from error
    state: Mapping[str, Tensor] = read_file(path / WEIGHTS).state
    check_same("the classifier in config.json", path / WEIGHTS, vit.state_dict(), state)
    check_finite(path / WEIGHTS, state)
    vit.load_state_dict(dict(state))
    return TrainedClassifier(vit.eval(), classes, config)
