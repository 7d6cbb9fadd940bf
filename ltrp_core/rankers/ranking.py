"""Scores of a ranker for whole images, each as if it had been alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ltrp_core.linear import frozen_weights
from ltrp_core.patches import model_images
from ltrp_core.precision import float32_kept
from ltrp_core.rankers.models import Ranker

_AT_ONCE = {"cpu": 1}
_AT_ONCE_ELSEWHERE = 32
"""Images that the ranker sees together. It is constant, for the number of rows decides how a matrix
product is summed up, and scores would depend on the batch. On a CPU one image keeps all cores busy;
an accelerator would idle."""


@torch.no_grad()
def rank_images(ranker: Ranker, images: Tensor) -> Tensor:
    """Returns the ranker scores, float32 (B, L), each as if its image had been alone.

    The ranker always sees the same number of images together, the last group filled up with its
    first image: one on a CPU, 32 elsewhere.

    Args:
        ranker: in evaluation mode, on the device of `images`.
        images: of a floating type, (B, 3, g*p, g*p), normalized; B may be 0.

    Raises:
        RequestError: another shape.
    """
    at_once = _AT_ONCE.get(images.device.type, _AT_ONCE_ELSEWHERE)
    images = model_images(images, ranker.grid, ranker.patch_size, ranker.dtype)
    scores = [torch.empty((0, ranker.grid**2), device=images.device)]
    with frozen_weights(), float32_kept():
        for group in images.split(at_once) if len(images) else ():
            missing = at_once - len(group)
            filled = torch.cat([group, group[:1].expand(missing, -1, -1, -1)]) if missing else group
            scores.append(ranker(filled)[: len(group)].float())
    return torch.cat(scores)
