"""A timm vision transformer, block by block: for methods that drop or merge tokens on the way."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ltrp_core.attention import attended, queries_keys_values
from ltrp_core.errors import RequestError
from ltrp_core.kept_tokens import embedded, token_grid

STAGES = 3
"""How often token-reduction methods drop tokens: before, or in, the blocks at 1/4, 1/2 and 3/4."""


class Attended(NamedTuple):
    """What the first half of a block makes of its tokens."""

    tokens: Tensor
    """(B, N, D), with what was there before"""
    weights: Tensor
    """Attention (B, heads, N, N), float32"""
    keys: Tensor
    """(B, heads, N, D / heads)"""


def check_class_token(vit: nn.Module, method: str) -> None:
    """Checks that the only token of a vision transformer beside the patches is the class token.

    Raises:
        RequestError: it has others, or none, or it has too few blocks.
    """
    model: Any = vit
    if model.num_prefix_tokens != 1 or model.cls_token is None:
        raise RequestError(
            f"{method} needs a transformer with a class token and no other beside the patches; "
            f"this one has {model.num_prefix_tokens}: take another --model"
        )
    if len(model.blocks) <= STAGES:
        raise RequestError(f"{method} needs more than {STAGES} blocks; take another --model")


def cuts(vit: nn.Module) -> list[int]:
    """Returns the numbers of the blocks at 1/4, 1/2 and 3/4 of the depth: 3, 6, 9 of 12."""
    model: Any = vit
    depth = len(model.blocks)
    return [depth * stage // (STAGES + 1) for stage in range(1, STAGES + 1)]


def first_tokens(vit: nn.Module, images: Tensor) -> Tensor:
    """Returns the class token and all patches (B, 1 + L, D), as the first block gets them."""
    model: Any = vit
    rows, columns = token_grid(vit).grid
    every = torch.arange(rows * columns, device=images.device).expand(len(images), -1)
    tokens: Tensor = model.norm_pre(embedded(vit, images, every))
    return tokens


def attend(block: nn.Module, tokens: Tensor, bias: Tensor | None = None) -> Attended:
    """Returns the first half of a block.

    Args:
        block: of timm.
        tokens: (B, N, D).
        bias: added to the logits of attention, of a shape that fits (B, heads, N, N).
    """
    plain: Any = block
    found = queries_keys_values(plain.attn, plain.norm1(tokens))
    logits = found.queries.float() @ found.keys.float().transpose(-2, -1)
    weights = (logits if bias is None else logits + bias).softmax(dim=-1)
    mixed = plain.ls1(attended(plain.attn, weights, found.values))
    return Attended(tokens + mixed, weights, found.keys)


def after_mlp(block: nn.Module, tokens: Tensor) -> Tensor:
    """Returns the second half of a block."""
    plain: Any = block
    result: Tensor = tokens + plain.ls2(plain.mlp(plain.norm2(tokens)))
    return result


def by_stage(stage: Tensor, last: Tensor) -> Tensor:
    """Returns all patches (L,) in order: stages survived, then the last score, then the index.

    Args:
        stage: (L,), how many reductions a patch has survived.
        last: (L,), its score at the last one that it was judged at.
    """
    order = last.argsort(descending=True, stable=True)
    return order[stage[order].argsort(descending=True, stable=True)]
