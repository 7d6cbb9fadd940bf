"""Mean attention distance in loops over images, layers, heads and pairs of patches."""

import math

import numpy as np


def attention_of(block, tokens):
    """Attention (heads, N, N) of one image's tokens (N, D), by the formula, in double."""
    width = tokens.shape[1]
    heads = block.attn.num_heads
    size = width // heads
    normed = block.norm1(tokens).double().detach().numpy()
    weight = block.attn.qkv.weight.double().detach().numpy()
    bias = block.attn.qkv.bias.double().detach().numpy()
    queries = normed @ weight[:width].T + bias[:width]
    keys = normed @ weight[width : 2 * width].T + bias[width : 2 * width]
    attention = np.zeros((heads, len(tokens), len(tokens)))
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(tokens)):
            logits = [
                float(queries[i, part] @ keys[j, part]) / math.sqrt(size)
                for j in range(len(tokens))
            ]
            top = max(logits)
            weights = [math.exp(x - top) for x in logits]
            attention[head, i] = [w / sum(weights) for w in weights]
    return attention


def attention_distances(images_tokens, blocks, grid, patch_size):
    """Mean over images of each layer's and head's distance; token 0 is the class token.

    images_tokens: for each image the tokens (1, 1 + L, D) that enter the first block.
    """
    totals = np.zeros((len(blocks), blocks[0].attn.num_heads))
    for start in images_tokens:
        tokens = start
        for layer, block in enumerate(blocks):
            attention = attention_of(block, tokens[0])
            for head in range(attention.shape[0]):
                totals[layer, head] += mean_distance(attention[head], grid, patch_size)
            tokens = block(tokens)
    return totals / len(images_tokens)


def mean_distance(attention, grid, patch_size):
    """Mean over query patches of the attended distance in px, from attention (1 + L, 1 + L)."""
    reached = []
    for i in range(grid * grid):
        near, total = 0.0, 0.0
        for j in range(grid * grid):
            rows = (i // grid - j // grid) * patch_size
            columns = (i % grid - j % grid) * patch_size
            near += attention[1 + i, 1 + j] * math.hypot(rows, columns)
            total += attention[1 + i, 1 + j]
        reached.append(near / total)
    return sum(reached) / len(reached)
