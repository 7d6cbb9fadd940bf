"""The passes of a frozen autoencoder, with exact shortcuts: what all kinds of scores are made of.

Tokens are ordered [masked | class | visible], so what the last block must produce is one slice;
the last block attends and projects only where the result is read.

`block` is one of timm's: norm1, attn (qkv, proj), norm2, mlp. Shape suffixes: R = (image,
partition) pairs of a chunk, S = sequence, W = decoder width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltrp_core.errors import RequestError
from ltrp_core.linear import Activation, inference_linear
from ltrp_core.mae import MaskedAutoencoder


def default_chunk(device: torch.device) -> int:
    """Returns the (image, partition) pairs that are scored at a time on a kind of device."""
    return 1 if device.type == "cpu" else 32


def pair_chunks(images: Tensor, visible: Tensor, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the images (R, 3, S, S) and visible patches (R, n) of some pairs after another.

    Args:
        images: (B, 3, S, S).
        visible: (B, n) or (B, P, n); pairs come in its order.
        chunk: R, at most.
    """
    partitions = visible.shape[1] if visible.ndim == 3 else 1
    pairs = visible.reshape(-1, visible.shape[-1])
    owner = torch.arange(len(images), device=images.device).repeat_interleave(partitions)
    for rows, part in zip(owner.split(chunk), pairs.split(chunk), strict=True):
        yield images[rows], part


def latent(mae: MaskedAutoencoder, images: Tensor, visible: Tensor) -> Tensor:
    """Returns what `mae.encode` does."""
    tokens = mae.embed(images, visible)
    for block in mae.blocks:
        tokens = whole_block(block, tokens)
    return mae.norm(tokens)


def decoder_tokens(
    mae: MaskedAutoencoder, latent: Tensor, visible: Tensor, masked: Tensor
) -> Tensor:
    """Returns the decoder's input (R, 1+L, W) in the order [masked | class | visible]."""
    head = mae.mask_token + mae.decoder_pos_embed[0, 1:][masked]
    tail = mae.decoder_embed(latent) + mae.decoder_pos_embed[0][with_class(visible)]
    return torch.cat([head, tail], dim=1)


def project(layer: Any, x: Tensor, activation: Activation = "none") -> Tensor:
    """Returns what a linear layer makes of rows, and the activation behind it."""
    return inference_linear(x, layer.weight, layer.bias, activation)


def qkv_of(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys, values, each (R, heads, S, width / heads)."""
    qkv = project(block.attn.qkv, block.norm1(tokens)).unflatten(-1, (3, block.attn.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns the attended values (R, S, width), heads side by side."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def finish(block: Any, tokens: Tensor, attended: Tensor) -> Tensor:
    """Returns the block's output, given its attention before the output projection."""
    tokens = tokens + project(block.attn.proj, attended)
    hidden = project(block.mlp.fc1, block.norm2(tokens), "gelu")
    return tokens + project(block.mlp.fc2, hidden)


def whole_block(block: Any, tokens: Tensor) -> Tensor:
    """Returns the block's output at all tokens."""
    return finish(block, tokens, attend(*qkv_of(block, tokens)))


def last_block(block: Any, tokens: Tensor, reads: int | None) -> Tensor:
    """Returns the block's output at the first `reads` tokens; keys and values come from all."""
    qkv, heads = block.attn.qkv, block.attn.num_heads
    width = tokens.shape[-1]
    normed = block.norm1(tokens)
    q = inference_linear(normed[:, :reads], qkv.weight[:width], qkv.bias[:width])
    kv = inference_linear(normed, qkv.weight[width:], qkv.bias[width:])
    q = q.unflatten(-1, (heads, -1)).transpose(1, 2)
    k, v = kv.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    return finish(block, tokens[:, :reads], attend(q, k, v))


def with_class(visible: Tensor) -> Tensor:
    """Returns the rows (R, 1+n) of a position table: the class token's, then the patches'."""
    return F.pad(visible + 1, (1, 0))


def masked_patches(visible: Tensor, length: int) -> Tensor:
    """Returns the masked patches (R, L-n), ascending."""
    is_masked = torch.ones(len(visible), length, dtype=torch.bool, device=visible.device)
    is_masked.scatter_(1, visible, False)
    return is_masked.nonzero()[:, 1].view(len(visible), -1)


def check_visible(visible: Tensor, images: Tensor, length: int) -> None:
    """Checks that `visible` holds partitions of `length` patches, of as many images.

    Raises:
        RequestError: another type or shape, or indices that repeat or are not of the grid.
    """
    n = visible.shape[-1]
    if visible.ndim not in (2, 3) or len(visible) != len(images) or visible.dtype != torch.int64:
        raise RequestError(
            f"visible must be int64 (B, n) or (B, P, n) with B = {len(images)}; got "
            f"{visible.dtype} {tuple(visible.shape)}. Pass the indices from sample_visible()."
        )
    if not 1 <= n < length:
        raise RequestError(
            f"a partition needs 1 <= n < L = {length} visible patches; got n = {n}. "
            "Choose another mask ratio."
        )
    if visible.numel() == 0:
        return
    ordered = visible.sort(dim=-1).values
    if ordered.min() < 0 or ordered.max() >= length or bool((ordered.diff() == 0).any()):
        raise RequestError(
            f"visible patches must be distinct indices in 0..{length - 1}; got "
            f"{int(ordered.min())}..{int(ordered.max())}, duplicates "
            f"{bool((ordered.diff() == 0).any())}. Pass the indices from sample_visible()."
        )
