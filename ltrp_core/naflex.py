"""A timm vision transformer as timm's NaFlexVit, which takes any patches with their places."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ltrp_core.errors import RequestError
from ltrp_core.kept_tokens import token_grid

_POOLS = ("token", "avg")


def naflex_input(patches: Tensor, kept: Tensor, grid: int) -> dict[str, Tensor]:
    """Returns what NaFlexVit takes of images of which some patches were kept.

    One slot more than patches, the last one: an anchor at the last corner of the grid that is not
    valid. NaFlexVit takes the grid from the largest coordinate, so that without it the positions of
    patches that are not kept down to the last row and column would be stretched.

    Args:
        patches: of a floating type, (..., k, 3p²), normalized, channel fastest: see `patchify`.
        kept: int64 (..., k), their indices on the grid.
        grid: g, patches along a side.

    Returns:
        `patches` (..., k + 1, 3p²), `patch_coord` int64 (..., k + 1, 2), row and column, and
        `patch_valid` bool (..., k + 1).
    """
    last = kept.new_full((*kept.shape[:-1], 1), grid**2 - 1)
    places = torch.cat([kept, last], dim=-1)
    row = places.div(grid, rounding_mode="floor")
    valid = torch.ones_like(places, dtype=torch.bool)
    valid[..., -1] = False
    anchor = torch.zeros_like(patches[..., :1, :])
    return {
        "patches": torch.cat([patches, anchor], dim=-2),
        "patch_coord": torch.stack([row, places - grid * row], dim=-1),
        "patch_valid": valid,
    }


def as_naflex(vit: nn.Module) -> nn.Module:
    """Returns a copy of a timm VisionTransformer as NaFlexVit, with the same outputs to rounding.

    Given `naflex_input` it answers as `kept_output` of the transformer does; given images as the
    transformer itself. timm's own conversion (`use_naflex=True`) leaves out what the table of
    positions holds for the class token; here it is folded into the token. Positions are looked up
    by `patch_coord`, where NaFlexVit's default counts the patches of a whole grid off.

    Args:
        vit: one of those that `token_grid` knows, pooled by its class token or by the mean. Its
            weights and its mode (training or not) are copied.

    Raises:
        RequestError: another kind of model, another pooling, or a timm without NaFlexVit.
    """
    grid, patch = token_grid(vit)
    model: Any = vit
    if not isinstance(vit, VisionTransformer) or model.global_pool not in _POOLS:
        pool = getattr(vit, "global_pool", None)
        raise RequestError(f"a ViT pooled by {pool!r} has no NaFlex form here; pass token or avg")
    naflex: Any = _empty(model, grid, patch)
    for name in ("norm_pre", "blocks", "norm", "fc_norm", "head_drop", "head"):
        setattr(naflex, name, copy.deepcopy(getattr(model, name)))
    embeds = naflex.embeds
    embeds.norm = copy.deepcopy(model.patch_embed.norm)
    embeds.pos_drop = copy.deepcopy(model.pos_drop)
    with torch.no_grad():
        kernel = model.patch_embed.proj.weight
        embeds.proj.weight.copy_(kernel.permute(0, 2, 3, 1).flatten(1))
        if embeds.proj.bias is not None:
            embeds.proj.bias.copy_(model.patch_embed.proj.bias)
        of_prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        embeds.pos_embed.copy_(model.pos_embed[:, of_prefix:].unflatten(1, grid))
        first = 0
        for name in ("cls_token", "reg_token"):
            token = getattr(model, name)
            if token is not None:
                after = first + token.shape[1]
                folded = token + model.pos_embed[:, first:after] if of_prefix else token
                getattr(embeds, name).copy_(folded)
                first = after
    naflex.train(vit.training)
    result: nn.Module = naflex
    return result


def _empty(vit: Any, grid: tuple[int, int], patch: tuple[int, int]) -> nn.Module:
    """Returns a NaFlexVit of the same embedding, without blocks and head of its own."""
    try:
        from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
    except ImportError as error:
        raise RequestError("this timm has no NaFlexVit; install timm 1.0.31 or newer") from error

    config = NaFlexVitCfg(
        patch_size=patch,
        embed_dim=vit.embed_dim,
        depth=0,
        class_token=vit.cls_token is not None,
        reg_tokens=vit.num_reg_tokens,
        pos_embed_grid_size=grid,
        pos_embed_use_grid_sample=True,
        pre_norm=vit.patch_embed.proj.bias is None,
        global_pool=vit.global_pool,
        pool_include_prefix=bool(getattr(vit, "pool_include_prefix", False)),
        patch_drop_rate=float(getattr(vit.patch_drop, "prob", 0.0)),
    )
    weight = vit.patch_embed.proj.weight
    made: nn.Module = NaFlexVit(
        config, num_classes=vit.num_classes, device=weight.device, dtype=weight.dtype
    )
    return made
