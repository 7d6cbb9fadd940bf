"""What a classifier of kept patches begins as: a transformer of timm's, or a MAE's encoder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ltrp_core.classifiers.normalization import NORMALIZATIONS, Normalization
from ltrp_core.classifiers.opening import open_model, timm_entry
from ltrp_core.classifiers.trained import PLAIN, Architecture, fitted
from ltrp_core.errors import RequestError
from ltrp_core.kept_tokens import token_grid
from ltrp_core.mae import load_mae, weights_sha256
from ltrp_core.positions import interpolate_positions
from ltrp_core.weight_sources import TIMM, UNTRAINED

_HEAD_STD = 2e-5
"""MAE's fine-tuning: the first logits are all but 0, and say nothing yet."""


class Start(NamedTuple):
    """A classifier before its first step."""

    vit: VisionTransformer
    """It takes images normalized as ImageNet's"""
    architecture: Architecture
    sha256: str
    """Of the file that its weights are from, in hex; empty: no file"""
    notes: list[str]
    """What became of positions and of the scale of the pixels"""


def start_classifier(
    model: str,
    init: str,
    *,
    num_classes: int,
    image_size: int = 0,
    global_pool: str = "token",
    drop_path: float = 0.0,
) -> Start:
    """Returns a transformer that can be trained on kept patches, with a fresh head.

    The head's weights are normal with standard deviation 2e-5, truncated, its biases 0 (MAE's
    fine-tuning). What is random is drawn from torch's default generator.

    Args:
        model: `timm:NAME`; empty: the encoder of the masked autoencoder `init`.
        init: with a model, empty for timm's pretrained weights (from the hub), `random`, or a file
            of its parameters; without one, what `load_mae` takes.
        num_classes: C.
        image_size: side of the views in px; 0: the model's own. Positions are interpolated.
        global_pool: `token` or `avg`.
        drop_path: probability that the last block is left out of an image; that of the first is 0,
            and they rise evenly between.

    Raises:
        CheckpointError: weights that cannot be read or had, or are of another model.
        RequestError: no such model, or one that cannot be given some patches only.
    """
    if model:
        start = _from_timm(model, init, num_classes, image_size, global_pool)
    elif init and init != UNTRAINED:
        start = _from_mae(init, num_classes, image_size, global_pool)
    else:
        raise RequestError(
            "nothing to train: pass --model timm:NAME, or --init with a masked autoencoder, such "
            "as mae_tiny"
        )
    head = start.vit.head
    assert isinstance(head, nn.Linear)
    nn.init.trunc_normal_(head.weight, std=_HEAD_STD)
    nn.init.zeros_(head.bias)
    _set_drop_path(start.vit, drop_path)
    return start


def _from_timm(model: str, init: str, classes: int, image_size: int, pool: str) -> Start:
    if init == UNTRAINED:
        timm_entry(model)  # says what is wrong with a name
        vit: nn.Module = timm.create_model(model.removeprefix(TIMM))
        declared, sha256 = NORMALIZATIONS["imagenet"], ""
    else:
        vit, declared, _ = open_model(model, init)
        sha256 = weights_sha256(Path(init).expanduser()) if init else ""
    theirs = token_grid(vit)
    architecture = Architecture(
        model=model,
        num_classes=classes,
        image_size=image_size or theirs.grid[0] * theirs.patch[0],
        patch_size=theirs.patch[0],
        global_pool=pool,
    )
    notes = []
    if architecture.image_size != theirs.grid[0] * theirs.patch[0]:
        notes.append(f"positions of {theirs.grid[0]} x {theirs.grid[1]} patches interpolated")
    made = fitted(vit, architecture)
    notes += _take_imagenet(made, declared)
    return Start(made, architecture, sha256, notes)


def _from_mae(source: str, classes: int, image_size: int, pool: str) -> Start:
    with warnings.catch_warnings():
        # What the decoder was trained to predict matters to scores, not to an encoder.
        warnings.simplefilter("ignore")
        mae = load_mae(source, normalized_target="warn")
    own = mae.config
    architecture = Architecture(
        model=PLAIN,
        num_classes=classes,
        image_size=image_size or own.image_size,
        patch_size=own.patch_size,
        global_pool=pool,
        width=own.width,
        depth=own.depth,
        heads=own.heads,
        mlp_ratio=own.mlp_ratio,
        norm_eps=own.norm_eps,
    )
    vit = architecture.create()
    state = {name: value for name, value in mae.state_dict().items() if name in vit.state_dict()}
    grid = architecture.image_size // architecture.patch_size
    state["pos_embed"], how = interpolate_positions(state["pos_embed"], grid)
    vit.load_state_dict({**vit.state_dict(), **state})
    notes = [] if how == "kept" else [f"positions of {own.grid} x {own.grid} patches: {how}"]
    return Start(vit, architecture, mae.source.sha256, notes)


def _take_imagenet(vit: VisionTransformer, declared: Normalization) -> list[str]:
    """Makes the embedding take pixels normalized as ImageNet's; returns what to note.

    With x such pixels, the model's own are x * a + b per channel: W(x * a + b) is an embedding with
    weights W * a and a bias larger by the sum of W * b. Exact: patches do not overlap.
    """
    ours = NORMALIZATIONS["imagenet"]
    if declared == ours:
        return []
    projection = vit.patch_embed.proj
    assert isinstance(projection, nn.Conv2d)
    if projection.bias is None:
        return [f"it was trained on pixels as {declared}, and is given ImageNet's"]
    mean, std, own_mean, own_std = (
        torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)
        for values in (declared.mean, declared.std, ours.mean, ours.std)
    )
    weight = projection.weight.detach().double()
    shift: Tensor = (weight * ((own_mean - mean) / std)).sum(dim=(1, 2, 3))
    with torch.no_grad():
        projection.bias.copy_(projection.bias.double() + shift)
        projection.weight.copy_(weight * (own_std / std))
    return [f"patch_embed rescaled: it was trained on pixels as {declared}"]


def _set_drop_path(vit: VisionTransformer, rate: float) -> None:
    last = max(len(vit.blocks) - 1, 1)
    for number, block in enumerate(vit.blocks):
        own = rate * number / last
        for module in list(block.modules()):
            for name in module._modules:
                if name.startswith("drop_path"):
                    setattr(module, name, DropPath(own) if own > 0 else nn.Identity())
