"""The references that stand beside every patch-level figure, at the same k (Sec. 4.1; ours).

`random` (the mean of 20 draws) is what no knowledge gives, `center` what photographers' habits
give, patch variance and border contrast (`ltrp_core.selectors.border`) what pixels alone give, and
`oracle` is the upper bound. One more, the
autoencoder itself, is the mean score over `cover` partitions and comes from the cache. Keep the k
best by `ltrp_core.selection.top_patches`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltrp_core.errors import RequestError
from ltrp_core.patch_metrics import PatchCoverage
from ltrp_core.patches import patchify
from ltrp_core.seeding import random_uniform


def random_scores(key: str, length: int, *, draw: int, seed: int) -> Tensor:
    """Returns uniform scores in [0, 1), float64 (L,) on the CPU: the `random` reference.

    A pure function of the arguments (`ltrp_core.seeding`): the order of the images, the batches and
    the machine change nothing. Report the mean over draws 0 to 19.

    Args:
        key: the sample's key in its shard.
        length: L, >= 1.
        draw: number of the draw, from 0.
        seed: of the run.

    Raises:
        RequestError: `length` < 1.
    """
    if length < 1:
        raise RequestError(f"length must be at least 1 patch; got {length}. Pass grid * grid.")
    purpose = f"random-reference:{draw}"
    return torch.from_numpy(random_uniform(length, seed=seed, key=key, purpose=purpose))


def center_scores(grid: int) -> Tensor:
    """Returns minus the distance to the middle of the image, in patches, float32 (L,): `center`.

    Args:
        grid: g, the side of the square grid, >= 1; L = g * g.

    Raises:
        RequestError: `grid` < 1.

    >>> center_scores(3)[[1, 4, 7]]
    tensor([-1.,  0., -1.])
    """
    if grid < 1:
        raise RequestError(f"grid must be at least 1 patch a side; got {grid}.")
    # Twice the offset is an integer, so patches at equal distances tie exactly.
    doubled = 2 * torch.arange(grid) - (grid - 1)
    squared = doubled.square().unsqueeze(1) + doubled.square().unsqueeze(0)
    return squared.flatten().float().sqrt() / -2 + 0


def patch_variance(images: Tensor, patch_size: int) -> Tensor:
    """Returns the variance of the pixels of each patch, mean over channels, (B, L) >= 0.

    The population variance, in squared units of `images`; float32 (float64 for float64 images), and
    exactly 0 for a flat patch.

    Args:
        images: (B, 3, H, W) of any dtype, H and W multiples of `patch_size`.
        patch_size: p in pixels.

    Raises:
        RequestError: wrong shape, or sides that p does not divide.
    """
    images = images if images.dtype == torch.float64 else images.float()
    patches = patchify(images, patch_size)
    pixels = patches.reshape(*patches.shape[:2], -1, 3).transpose(2, 3).contiguous()
    return pixels.var(dim=3, correction=0).mean(dim=2)


def oracle_scores(coverage: PatchCoverage) -> Tensor:
    """Returns the share of each patch that is foreground, float64 (B, L), 0 to 1: `oracle`.

    Of all p * p pixels, so that the k best hold the most foreground that k patches can: recall is
    an upper bound always, and precision, F1 and IoU are where no pixel is ignored.
    """
    area = coverage.patch_size * coverage.patch_size
    return coverage.foreground_pixels.double() / area
