"""The attention of timm's vision transformers, computed beside the model from queries and keys.

Its fused kernels give no attention away; here it is that of the same weights, whatever kernel runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from timm.layers import Attention
from torch import Tensor


class QueriesKeysValues(NamedTuple):
    """What a layer makes of its tokens, each (B, heads, N, D / heads)."""

    queries: Tensor
    """Scaled: their products with keys are the logits"""
    keys: Tensor
    values: Tensor


def queries_keys_values(layer: Attention, tokens: Tensor) -> QueriesKeysValues:
    """Returns queries, keys and values of a timm layer for its `tokens` (B, N, D)."""
    batch, count, _ = tokens.shape
    qkv = layer.qkv(tokens).reshape(batch, count, 3, layer.num_heads, -1)
    queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return QueriesKeysValues(layer.q_norm(queries) * layer.scale, layer.k_norm(keys), values)


def attention_weights(layer: Attention, tokens: Tensor) -> Tensor:
    """Returns the attention of a timm layer to its `tokens` (B, N, D), float32 (B, heads, N, N)."""
    found = queries_keys_values(layer, tokens)
    return (found.queries.float() @ found.keys.float().transpose(-2, -1)).softmax(dim=-1)


def attended(layer: Attention, weights: Tensor, values: Tensor) -> Tensor:
    """Returns what a timm layer puts out, (B, N, D).

    Args:
        layer: whose projection is taken.
        weights: attention (B, heads, N, N).
        values: (B, heads, N, D / heads).
    """
    mixed = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)
    plain: Any = layer  # newer layers of timm have a norm before the projection, older ones none
    norm = getattr(plain, "norm", None)
    projected: Tensor = layer.proj(mixed if norm is None else norm(mixed))
    return projected
