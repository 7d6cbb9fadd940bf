"""How far the heads of a vision transformer look: mean attention distance, Fig. 8.

The measure is that of Dosovitskiy et al. (ICLR 2021, Fig. 7), which the paper plots by layer and
head. Heads that look near and far side by side are what it holds for diverse representations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ltrp_core.attention import attention_weights
from ltrp_core.errors import RequestError
from ltrp_core.kept_tokens import token_grid
from ltrp_core.mae import MaskedAutoencoder
from ltrp_core.rankers import Ranker

Watched = MaskedAutoencoder | Ranker | VisionTransformer
"""A model whose heads can be watched; timm's are of a square grid."""


@torch.no_grad()
def attention_distances(model: Watched, images: Tensor) -> Tensor:
    """Returns the mean attention distance of every head in px, float64 (layers, heads): Fig. 8.

    Method: over all L patches of an image, `D = mean over queries i of sum_j a_ij d_ij / sum_j
    a_ij`, where a_ij is the attention of patch i to patch j and d_ij the Euclidean distance of
    their centers in pixels; then the mean over the images. Tokens that are nowhere (the class
    token) are left out on both sides, so what a patch gives them makes no head look near. Attention
    is computed beside the model from its own queries and keys: whether its kernels are fused or
    not does not matter.

    Of a masked autoencoder this is the encoder, which is shown the whole image. Evenly spread
    attention gives 0.52 of the side of the image, attention to itself 0.

    Args:
        model: in eval mode, on the device of `images`.
        images: float (B, 3, g*p, g*p), normalized, B >= 1.

    Raises:
        RequestError: no images, or the model has no self-attention among all patches (it is no
            plain vision transformer).
    """
    if len(images) == 0:
        raise RequestError("attention distances need at least one image; got none")
    grid, patch_size = patches_of(model)
    length = grid**2
    between = _distances(grid, patch_size).to(images.device)
    prefix = _prefix_tokens(model)
    layers: list[Tensor] = []

    def look(attention: Tensor) -> None:
        if attention.shape[-1] != prefix + length:
            raise RequestError(
                f"{_name(model)} attends among {attention.shape[-1]} tokens, not among all "
                f"{length} patches; attention distances are of plain vision transformers"
            )
        weights = attention[..., prefix:, prefix:].double()
        reached = (weights * between).sum(dim=-1) / weights.sum(dim=-1)
        layers.append(reached.mean(dim=(0, 2)))

    with _watched(_attention_layers(model), look):
        if isinstance(model, MaskedAutoencoder):
            every = torch.arange(length, device=images.device).expand(len(images), -1)
            model.encode(images, every)
        else:
            model(images)
    return torch.stack(layers)


def patches_of(model: Watched) -> tuple[int, int]:
    """Returns g and p: patches along a side, and the side of one in px."""
    if isinstance(model, VisionTransformer):
        sizes = token_grid(model)
        return sizes.grid[0], sizes.patch[0]
    return model.grid, model.patch_size


def _attention_layers(model: Watched) -> list[Attention]:
    seen: nn.Module = model.blocks if isinstance(model, MaskedAutoencoder) else model
    layers = [module for module in seen.modules() if isinstance(module, Attention)]
    if not layers or len({layer.num_heads for layer in layers}) > 1:
        raise RequestError(
            f"{_name(model)} has no plain self-attention layers; attention distances are of "
            "vision transformers such as vit_small"
        )
    return layers


def _prefix_tokens(model: Watched) -> int:
    """Returns how many tokens before the patches are nowhere: the class token, registers."""
    for module in model.modules():
        own: Any = getattr(module, "num_prefix_tokens", None)
        if own is not None:
            return int(own)  # a timm model's
    return 1


@contextmanager
def _watched(layers: Sequence[Attention], look: Callable[[Tensor], None]) -> Iterator[None]:
    """Calls `look` with the attention (B, heads, N, N) of each layer whenever it runs."""

    def before(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Attention)
        look(attention_weights(layer, arguments[0]))

    handles = [layer.register_forward_pre_hook(before) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _distances(grid: int, patch_size: int) -> Tensor:
    """Returns the distances of patch centers in px, float64 (L, L)."""
    line = torch.arange(grid, dtype=torch.float64) * patch_size
    centers = torch.cartesian_prod(line, line)
    return torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")


def _name(model: Watched) -> str:
    if isinstance(model, MaskedAutoencoder):
        return "the masked autoencoder"
    if isinstance(model, VisionTransformer):
        return "the vision transformer"
    return f"ranker {model.config['name']!r}"
