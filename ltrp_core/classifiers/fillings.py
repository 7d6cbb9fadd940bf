"""What stands where patches are hidden from a classifier that needs whole images."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ltrp_core.classifiers.normalization import Normalization

_BLUR_SHARE = 10 / 224
"""Standard deviation of the blur as a share of the view's side: 10 px of 224 as in Fong and
Vedaldi (2017), "Interpretable Explanations of Black Boxes by Meaningful Perturbation"."""
_REACH = 3.0
"""Standard deviations that the kernel covers to each side."""


def mean_color(pixels: Tensor, normalization: Normalization) -> Tensor:
    """Returns the color that the classifier sees as 0, (B, 3, S, S).

    It is the mean of what the classifier was trained on, and not of the view: that one would tell
    something of the patches that are hidden.
    """
    return normalization.color(pixels).expand_as(pixels)


def blurred(pixels: Tensor, normalization: Normalization) -> Tensor:
    """Returns the view without its details: a Gaussian blur, S * 10 / 224 px wide (one sigma)."""
    from torchvision.transforms.functional import gaussian_blur

    del normalization
    side = pixels.shape[-1]
    sigma = _BLUR_SHARE * side
    # Reflection at the edges cannot reach beyond the view.
    reach = min(math.ceil(_REACH * sigma), side - 1)
    blur: Tensor = gaussian_blur(pixels, [2 * reach + 1] * 2, [sigma, sigma])
    return blur


FILLINGS: dict[str, Callable[[Tensor, Normalization], Tensor]] = {
    "mean": mean_color,
    "blur": blurred,
}
"""By name: a function of the view's pixels, float32 (B, 3, S, S) from 0 to 255."""


def fill(pixels: Tensor, background: Tensor, kept: Tensor, patch_size: int) -> Tensor:
    """Returns the kept patches of views before a background, (B, 3, S, S).

    Args:
        pixels: (B, 3, S, S).
        background: of that shape and type, seen where patches are hidden.
        kept: int64 (B, k).
        patch_size: p in px, divides S.
    """
    grid = pixels.shape[-1] // patch_size
    is_kept = kept.new_zeros((len(pixels), grid**2)).scatter_(1, kept, 1).bool()
    squares = is_kept.view(-1, 1, grid, grid)
    squares = squares.repeat_interleave(patch_size, dim=2).repeat_interleave(patch_size, dim=3)
    return pixels.where(squares, background)
