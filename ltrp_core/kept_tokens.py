"""A timm vision transformer that is given some patches only, each with its true position."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ltrp_core.errors import RequestError
from ltrp_core.patches import model_images, patchify

_BEFORE_BLOCKS = frozenset({"cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre"})


class TokenGrid(NamedTuple):
    """How a transformer cuts its images."""

    grid: tuple[int, int]
    """Patches down and across"""
    patch: tuple[int, int]
    """Height and width of a patch in px"""

    def is_of(self, grid: int, patch_size: int) -> bool:
        """Returns whether these are the patches of a square grid."""
        return self == ((grid, grid), (patch_size, patch_size))

    def __str__(self) -> str:
        (rows, columns), (height, width) = self
        return f"{rows} x {columns} patches of {height} x {width} px"


def token_grid(model: nn.Module) -> TokenGrid:
    """Returns the patches of a transformer that can be given some of them.

    It must see a patch in one token and nothing else there, and know its place from that token
    alone: windows, relative positions and convolutions before the tokens need all patches.

    Raises:
        RequestError: it is another kind of model.
    """
    embed: Any = getattr(model, "patch_embed", None)
    is_plain = type(model) is VisionTransformer and type(embed) is PatchEmbed
    vit: Any = model
    if not is_plain or vit.pos_embed is None or embed.proj.kernel_size != embed.proj.stride:
        raise RequestError(
            f"{type(model).__name__} cannot be given some patches only; pass one of timm's "
            "VisionTransformer with absolute positions, such as vit_small_patch16_224"
        )
    return TokenGrid(tuple(embed.grid_size), tuple(embed.proj.stride))


def square_token_grid(model: nn.Module) -> TokenGrid:
    """Returns `token_grid` of a transformer with square images and patches.

    Raises:
        RequestError: it is another kind of model, or one of them is not square.
    """
    sizes = token_grid(model)
    if sizes.grid[0] != sizes.grid[1] or sizes.patch[0] != sizes.patch[1]:
        raise RequestError(f"the transformer has {sizes}; pass one with a square grid")
    return sizes


def can_drop_patches(model: nn.Module) -> bool:
    """Returns whether a model can be given some patches only: see `token_grid`."""
    try:
        token_grid(model)
    except RequestError:
        return False
    return True


def kept_output(vit: nn.Module, images: Tensor, kept: Tensor) -> Tensor:
    """Returns a transformer's output (B, classes) where it is given the patches `kept` alone.

    Class, distillation and register tokens stay. With all patches kept it is the transformer's own
    output, to rounding.

    Args:
        vit: one of those that `token_grid` knows.
        images: of a floating type, (B, 3, g*p, g*p), normalized as the transformer wants them.
        kept: int64 (B, k), distinct, in any order.

    Raises:
        RequestError: images of another shape or type.
    """
    model: Any = vit
    output: Tensor = model.forward_head(kept_features(vit, images, kept))
    return output


def kept_features(vit: nn.Module, images: Tensor, kept: Tensor) -> Tensor:
    """Returns the tokens (B, prefix + k, D) after the last norm, the kept ones in the grid's order.

    Args:
        vit: one of those that `token_grid` knows.
        images: as of `kept_output`.
        kept: as of `kept_output`.

    Raises:
        RequestError: images of another shape or type.
    """
    model: Any = vit
    # In the grid's order, as the transformer has them.
    tokens = embedded(model, images, kept.sort(dim=1).values)
    tokens = model.norm_pre(model.patch_drop(tokens))
    if model.grad_checkpointing:
        tokens = checkpoint_seq(model.blocks, tokens)
    else:
        tokens = model.blocks(tokens)
    features: Tensor = model.norm(tokens)
    return features


def layer_depth(name: str, blocks: int) -> int:
    """Returns at which depth a parameter of a transformer is, as MAE's fine-tuning counts them.

    Layer decay goes by it: 0 is what makes the tokens (class token, registers, positions, patch
    embedding), i + 1 is block i from 0, `blocks` + 1 what comes after them (norm and head).

    Args:
        name: of the parameter, as a transformer of timm's calls it.
        blocks: how many there are.

    >>> [layer_depth(name, 12) for name in ("pos_embed", "blocks.0.norm1.weight", "head.bias")]
    [0, 1, 13]
    """
    part, *rest = name.split(".")
    if part in _BEFORE_BLOCKS:
        return 0
    return int(rest[0]) + 1 if part == "blocks" else blocks + 1


def embedded(vit: Any, images: Tensor, kept: Tensor) -> Tensor:
    """Returns prefix tokens and the embedded patches `kept` (B, k), with their positions.

    Args:
        vit: one of those that `token_grid` knows.
        images: of a floating type, (B, 3, g*p, g*p), normalized as the transformer wants them.
        kept: int64 (B, k).
    """
    projection = vit.patch_embed.proj
    grid, patch_size = vit.patch_embed.grid_size[0], projection.stride[0]
    rows = patchify(model_images(images, grid, patch_size, projection.weight.dtype), patch_size)
    rows = rows.gather(1, kept.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))
    # The convolution's kernel is (D, 3, p, p); ours are patches with the channel fastest.
    kernel = projection.weight.permute(0, 2, 3, 1).flatten(1)
    tokens = vit.patch_embed.norm(F.linear(rows, kernel, projection.bias))
    prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
    prefix = [token.expand(len(images), -1, -1) for token in prefix]
    of_patches = 0 if vit.no_embed_class else vit.num_prefix_tokens
    tokens = tokens + vit.pos_embed[0, of_patches:][kept]
    if not prefix:
        positioned = tokens
    elif of_patches:
        first = torch.cat(prefix, dim=1) + vit.pos_embed[:, :of_patches]
        positioned = torch.cat([first, tokens], dim=1)
    else:
        positioned = torch.cat([*prefix, tokens], dim=1)
    found: Tensor = vit.pos_drop(positioned)
    return found
