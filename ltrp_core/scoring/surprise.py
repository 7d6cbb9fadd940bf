"""Surprise: how wrong the autoencoder is about a patch that it does not see (ours).

The paper scores a visible patch by what its absence changes elsewhere (Eq. 2). This is the dual
question: what the rest of the image does not tell about a masked patch. Its reconstruction error is
that, made a number: for a Gaussian with one scale, the absolute error orders patches as minus the
log likelihood does. One encoder and one decoder pass score all L - n masked patches of a partition,
where leave-one-out takes n + 1 decoder passes for n scores. Why it is here: docs/labels.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltrp_core.linear import frozen_weights
from ltrp_core.mae import MaskedAutoencoder
from ltrp_core.patches import model_images
from ltrp_core.precision import Precision, computing_in
from ltrp_core.scoring.blocks import (
    check_visible,
    decoder_tokens,
    default_chunk,
    last_block,
    latent,
    masked_patches,
    pair_chunks,
    project,
    whole_block,
)


@torch.no_grad()
def surprise_scores(
    mae: MaskedAutoencoder,
    images: Tensor,
    visible: Tensor,
    *,
    precision: Precision = "float32",
    chunk: int | None = None,
) -> Tensor:
    """Returns the surprise of every masked patch, float32 (B, L - n) or (B, P, L - n).

    Method (ours, not in the paper): mean |R - X| over the 3p² values of a patch, R the
    reconstruction from the n visible patches, X the normalized image. In ascending order of the
    masked patches: `ltrp_core.partitions.masked_patches` of `visible`.

    A score depends on its image and partition alone. On a CPU a chunk is one pair, so it is
    bit-equal whatever the batch; elsewhere it agrees to rounding.

    Cost of a pair, MAE-B and n = 19: 14 billion operations (`ltrp_core.scoring.cost`).

    Args:
        mae: frozen, in eval mode, on the device of `images`; its target is raw pixels.
        images: of a floating type, (B, 3, g*p, g*p), normalized; B may be 0.
        visible: int64 (B, n) or (B, P, n), distinct within a partition.
        precision: of the matrix products (`ltrp_core.precision`).
        chunk: (image, partition) pairs at a time; None = 1 on a CPU, 32 elsewhere.

    Raises:
        RequestError: a precision that the device does not compute in, or indices that are not a
            partition.
    """
    images = model_images(images, mae.grid, mae.patch_size, mae.cls_token.dtype)
    length = mae.config.num_patches
    check_visible(visible, images, length)
    shape = (*visible.shape[:-1], length - visible.shape[-1])
    if visible.numel() == 0:
        return images.new_zeros(shape, dtype=torch.float32)
    with computing_in(precision, images.device), frozen_weights():
        scores = [
            _score_pairs(mae, part, given)
            for part, given in pair_chunks(images, visible, chunk or default_chunk(images.device))
        ]
    return torch.cat(scores).view(shape)


def _score_pairs(mae: MaskedAutoencoder, images: Tensor, visible: Tensor) -> Tensor:
    masked = masked_patches(visible, mae.config.num_patches)
    tokens = decoder_tokens(mae, latent(mae, images, visible), visible, masked)
    *between, last = mae.decoder_blocks
    for block in between:
        tokens = whole_block(block, tokens)
    hidden = mae.decoder_norm(last_block(last, tokens, masked.shape[1]))
    index = masked.unsqueeze(-1)
    own = mae.patchify(images)
    # An error is a mean over hundreds of values: in float32, whatever the products are in.
    with torch.autocast(images.device.type, enabled=False):
        true = own.gather(1, index.expand(-1, -1, own.shape[-1])).float()
    predicted = project(mae.decoder_pred, hidden).float()
    return (predicted - true).abs().mean(dim=-1)
