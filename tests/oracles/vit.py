"""A timm vision transformer in NumPy, float64, token by token: what the method oracles stand on."""

from __future__ import annotations

import math

import numpy as np


def array(tensor):
    return tensor.detach().double().numpy()


def linear(layer, x):
    out = x @ array(layer.weight).T
    return out if layer.bias is None else out + array(layer.bias)


def norm(layer, x):
    rows = []
    for row in np.atleast_2d(x):
        centered = row - row.mean()
        rows.append(centered / math.sqrt((centered**2).mean() + layer.eps))
    return np.array(rows) * array(layer.weight) + array(layer.bias)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def mlp(layer, x):
    return linear(layer.fc2, gelu(linear(layer.fc1, x)))


def softmax(logits):
    weights = [math.exp(x - max(logits)) for x in logits]
    return [w / sum(weights) for w in weights]


def first_tokens(vit, image):
    """(1 + L, D): the class token, then each patch through the kernel, with positions."""
    kernel, bias = array(vit.patch_embed.proj.weight), array(vit.patch_embed.proj.bias)
    p = kernel.shape[-1]
    pixels = array(image)
    rows = [array(vit.cls_token)[0, 0]]
    for top in range(0, pixels.shape[1], p):
        for left in range(0, pixels.shape[2], p):
            patch = pixels[:, top : top + p, left : left + p]
            rows.append((kernel * patch).sum(axis=(1, 2, 3)) + bias)
    return np.array(rows) + array(vit.pos_embed)[0]


def attend(block, x, sizes=None, allowed=None):
    """Attention of every head (H, N, N), keys (H, N, C), and the tokens behind the residual."""
    layer, count = block.attn, len(x)
    qkv = linear(layer.qkv, norm(block.norm1, x)).reshape(count, 3, layer.num_heads, -1)
    heads, outs = [], []
    for h in range(layer.num_heads):
        q, k, v = (qkv[:, part, h] for part in range(3))
        rows = []
        for i in range(count):
            logits = [float(q[i] @ k[j]) / math.sqrt(q.shape[1]) for j in range(count)]
            if sizes is not None:
                logits = [a + math.log(sizes[j]) for j, a in enumerate(logits)]
            if allowed is not None:
                logits = [a if allowed[j] else -math.inf for j, a in enumerate(logits)]
            rows.append(softmax(logits))
        heads.append(rows)
        outs.append(np.array(rows) @ v)
    mixed = linear(layer.proj, np.concatenate(outs, axis=1))
    return np.array(heads), qkv[:, 1].transpose(1, 0, 2), x + mixed


def after_mlp(block, x):
    return x + mlp(block.mlp, norm(block.norm2, x))
