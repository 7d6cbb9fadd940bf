"""Leave-one-out scores by brute force: one whole reconstruction a removed patch, in float64."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from skimage.metrics import structural_similarity

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def reconstruction_without_token(mae, latent, visible, removed=None):
    """R (L, 3p²) of one image, decoder token `removed` (index into visible) absent; NaN there."""
    length = mae.config.num_patches
    embedded = mae.decoder_embed(latent)
    tokens, places = [embedded[0] + mae.decoder_pos_embed[0, 0]], [None]
    for patch in range(length):
        if removed is not None and patch == visible[removed]:
            continue
        seen = [j for j, v in enumerate(visible.tolist()) if v == patch]
        content = embedded[1 + seen[0]] if seen else mae.mask_token[0, 0]
        tokens.append(content + mae.decoder_pos_embed[0, 1 + patch])
        places.append(patch)
    hidden = torch.stack(tokens)[None]
    for block in mae.decoder_blocks:
        hidden = block(hidden)
    predicted = mae.decoder_pred(mae.decoder_norm(hidden))[0]
    result = torch.full((length, predicted.shape[-1]), math.nan, dtype=predicted.dtype)
    for row, patch in enumerate(places):
        if patch is not None:
            result[patch] = predicted[row]
    return result


def reconstruction_with_attention_mask(mae, latent, visible, removed):
    """The released code's way: the token stays, its row and column are masked in every block."""
    embedded = mae.decoder_embed(latent)
    tokens = mae.mask_token[0].repeat(mae.config.num_patches, 1)
    tokens[visible] = embedded[1:]
    hidden = torch.cat([embedded[:1], tokens])[None] + mae.decoder_pos_embed
    gone = 1 + int(visible[removed])
    for block in mae.decoder_blocks:
        attn = block.attn
        normed = block.norm1(hidden)
        q, k, v = attn.qkv(normed).reshape(1, -1, 3, attn.num_heads, attn.head_dim).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        logits = q @ k.transpose(-2, -1) * attn.head_dim**-0.5
        logits[..., gone, :] = -math.inf
        logits[..., :, gone] = -math.inf
        weights = logits.softmax(-1)
        weights = torch.where(weights.isnan(), torch.zeros_like(weights), weights)
        hidden = hidden + attn.proj((weights @ v).transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.norm2(hidden))
    result = mae.decoder_pred(mae.decoder_norm(hidden))[0, 1:]
    result[visible[removed]] = math.nan
    return result


def distance(mae, pixels, before, after, visible, metric, region):
    """F(R, R_i) of one image from the definitions; `after` is NaN where it has no prediction."""
    is_masked = np.ones(len(before), dtype=bool)
    is_masked[visible] = False
    exists = ~np.isnan(after).any(axis=1)
    compared = is_masked if region == "masked" else exists
    if metric == "l1":
        return np.abs(before[compared] - after[compared]).mean()
    tiled = np.tile(STD, before.shape[1] // 3)
    if metric == "psnr":
        error = ((before[compared] - after[compared]) * tiled) ** 2
        return -10 * math.log10(1 / error.mean())
    rest = pixels if region == "masked" else before
    pictures = []
    for predicted in (before, after):
        whole = np.where(compared[:, None], predicted, rest)
        image = mae.unpatchify(torch.from_numpy(whole)[None])[0].permute(1, 2, 0).numpy()
        pictures.append(image * STD + MEAN)
    _, full = structural_similarity(
        *pictures,
        data_range=1.0,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return 1 - full[5:-5, 5:-5].mean()


@torch.no_grad()
def leave_one_out(mae, images, visible, phase="decoder", metric="l1", region="masked"):
    """(B, n) float64 scores."""
    mae = copy.deepcopy(mae).double()
    images = images.double()
    scores = []
    for image, seen in zip(images, visible, strict=True):
        pixels = mae.patchify(image[None])[0].numpy()
        latent = mae.encode(image[None], seen[None])[0]
        before = mae.decode(latent[None], seen[None])[0].numpy()
        row = []
        for j in range(len(seen)):
            if phase == "decoder":
                after = reconstruction_without_token(mae, latent, seen, j).numpy()
            else:
                others = torch.cat([seen[:j], seen[j + 1 :]])[None]
                after = mae.decode(mae.encode(image[None], others), others)[0].numpy()
            row.append(distance(mae, pixels, before, after, seen.numpy(), metric, region))
        scores.append(row)
    return np.array(scores)


@torch.no_grad()
def surprise(mae, images, visible):
    """(B, L - n) float64: the mean absolute error of each masked patch, in ascending order."""
    mae = copy.deepcopy(mae).double()
    images = images.double()
    rows = []
    for image, seen in zip(images, visible, strict=True):
        true = mae.patchify(image[None])[0].numpy()
        made = mae.decode(mae.encode(image[None], seen[None]), seen[None])[0].numpy()
        row = []
        for patch in range(mae.config.num_patches):
            if patch in seen.tolist():
                continue
            errors = [abs(r - x) for r, x in zip(made[patch], true[patch], strict=True)]
            row.append(sum(errors) / len(errors))
        rows.append(row)
    return np.array(rows)
