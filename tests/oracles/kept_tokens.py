"""A vision transformer with hidden patches, the slow way: every token is there, none looks at one.

All patches are embedded, and attention to hidden ones is masked, block by block and head by head;
their tokens are thrown away before pooling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def masked_logits(vit: Any, image: Tensor, kept: list[int]) -> Tensor:
    """Returns the logits (C,) of one image (3, S, S), normalized."""
    tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(image[None])))
    prefix = vit.num_prefix_tokens
    visible = [*range(prefix), *(prefix + patch for patch in kept)]
    hidden = [token for token in range(tokens.shape[1]) if token not in visible]
    for block in vit.blocks:
        tokens = tokens + block.ls1(_attention(block.attn, block.norm1(tokens)[0], hidden)[None])
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    return vit.forward_head(vit.norm(tokens)[:, sorted(visible)])[0]


def _attention(layer: Any, tokens: Tensor, hidden: list[int]) -> Tensor:
    width = tokens.shape[1] // layer.num_heads
    query, key, value = layer.qkv(tokens).chunk(3, dim=1)
    heads = []
    for head in range(layer.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].T / width**0.5
        scores[:, hidden] = -torch.inf
        heads.append(scores.softmax(dim=1) @ value[:, part])
    return layer.proj(torch.cat(heads, dim=1))
