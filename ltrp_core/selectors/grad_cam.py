"""Grad-CAM: the patches that speak for the class which a classifier sees (Selvaraju et al., 2017).

Of a vision transformer at the first norm of the last block (patch tokens), of a convolutional
network at its last feature map. Differs from the code that the LTRP authors compared with: no ReLU,
so what speaks against the class has an order, too (positive values keep theirs), and no way over
224 px and back, which smooths the map.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltrp_core.errors import RequestError
from ltrp_core.kept_tokens import can_drop_patches
from ltrp_core.selectors.base import PATCH_SIZE, SelectorOptions, SelectorSpec
from ltrp_core.selectors.network import (
    DEIT_SMALL,
    NetworkScores,
    Opened,
    open_timm,
    opened_vit,
    weights_path,
)


class GradCamSelector(NetworkScores):
    """Gradients of the best class by the features of patches."""

    def __init__(self, opened: Opened, options: SelectorOptions) -> None:
        """Freezes the classifier."""
        super().__init__(opened, options)
        self.faithful = options.faithful
        self._is_transformer = can_drop_patches(opened.module)

    def score(self, image: Tensor) -> Tensor:
        """Returns sum_c w_c A_c, where w_c is the mean gradient of the best logit by channel c."""
        with torch.enable_grad():
            if self._is_transformer:
                features, logits = _of_tokens(self.network.module, image)
            else:
                features, logits = _of_map(self.network.module, image)
            best = logits.gather(1, logits.argmax(dim=1, keepdim=True)).sum()
            (gradients,) = torch.autograd.grad(best, features)
        found = features.detach()
        if self._is_transformer:
            prefix = found.shape[1] - self.grid**2
            found, gradients = found[:, prefix:], gradients[:, prefix:]
            cam = (found * gradients.mean(dim=1, keepdim=True)).sum(dim=2)
        else:
            cam = (found * gradients.mean(dim=(2, 3), keepdim=True)).sum(dim=1)
            cam = _resized(cam, self.grid).flatten(1)
        return self._smoothed(cam) if self.faithful else cam

    def _smoothed(self, cam: Tensor) -> Tensor:
        """Returns the map as the released code has it: ReLU, and to the image's size and back."""
        cam = _from_0_to_1(cam.relu()).view(1, self.grid, self.grid)
        large = _from_0_to_1(_resized(cam, self.image_size).relu().flatten(1))
        return _resized(large.view(1, self.image_size, -1), self.grid).flatten(1)


def _of_tokens(model: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the tokens (1, N, D) behind the last block's first norm, and the logits."""
    seen: list[Tensor] = []

    def watch(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[0]

    handle = model.blocks[-1].norm1.register_forward_hook(watch)
    try:
        logits: Tensor = model(image)
    finally:
        handle.remove()
    return seen[0], logits


def _of_map(model: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the last feature map (1, C, h, w) and the logits."""
    with torch.no_grad():
        features = model.forward_features(image)
    features = features.detach().requires_grad_()
    return features, model.forward_head(features)


def _resized(maps: Tensor, side: int) -> Tensor:
    """Returns maps (B, h, w) as (B, side, side), bilinear between the middles of their cells."""
    if maps.shape[-2:] == (side, side):
        return maps
    return F.interpolate(maps[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]


def _from_0_to_1(values: Tensor) -> Tensor:
    shifted = values - values.amin(dim=1, keepdim=True)
    return shifted / (1e-7 + shifted.amax(dim=1, keepdim=True))


def make(options: SelectorOptions) -> GradCamSelector:
    """Returns Grad-CAM of a classifier of timm's.

    Raises:
        CheckpointError: the weights cannot be used.
        RequestError: a model without a head or without a map of features, or other sizes.
    """
    module, normalization = open_timm(options, DEIT_SMALL)
    model: Any = module
    if not getattr(model, "num_classes", 0):
        raise RequestError(
            "grad-cam explains a class, and this model has no classification head; take weights "
            "with one"
        )
    if can_drop_patches(module):
        return GradCamSelector(opened_vit(module, normalization, options), options)
    return GradCamSelector(_convolutional(module, normalization, options), options)


def _convolutional(module: Any, normalization: Any, options: SelectorOptions) -> Opened:
    """Returns a convolutional network, on the grid that is asked for."""
    side = options.image_size or 224
    try:
        with torch.no_grad():
            features = module.eval().forward_features(torch.zeros(1, 3, side, side))
        is_map = features.ndim == 4 and features.shape[1] == module.num_features
    except (AttributeError, RuntimeError, AssertionError, ValueError):
        is_map = False
    if not is_map:
        raise RequestError(
            f"grad-cam needs a map of features, and {type(module).__name__} gives none at {side} "
            "px; take one of timm's VisionTransformer or a convolutional network"
        )
    return Opened(module, normalization, side, options.patch_size or PATCH_SIZE)


GRAD_CAM = SelectorSpec(
    make=make,
    help="what speaks for the class that a classifier sees (Grad-CAM)",
    weights_file=weights_path,
    paper="Selvaraju et al., ICCV 2017",
    uses_labels=True,
    takes="a classifier of timm's: a vision transformer or a convolutional network",
    model=DEIT_SMALL,
    faithful="ReLU, and a bilinear way to the image's size and back",
    keeps_homogeneous=False,
)
