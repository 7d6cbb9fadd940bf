"""How much a reconstruction changed, per image: l1, psnr, ssim (Eq. 2, Tab. 1c).

Every function takes the difference `d = R - R_i`, never the two reconstructions: the differences
are small, and forming them after rounding costs rank fidelity. All are written so that a small
change is not computed as the difference of two large numbers. Higher = more changed.

The units of `psnr` and `ssim` are RGB in [0, 1] (ImageNet mean and standard deviation undone, not
clamped), so the data range is 1 whatever the batch holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from ltrp_core.precision import float32_kept

IMAGENET_MEAN: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
IMAGENET_STD: tuple[float, ...] = IMAGENET_DEFAULT_STD

_SMALLEST_MSE = 1e-20
"""-PSNR of two equal images would be minus infinity; this floor makes it -200 dB."""
_SSIM_K1, _SSIM_K2, _SSIM_SIGMA, _SSIM_WINDOW = 0.01, 0.03, 1.5, 11


def l1(difference: Tensor) -> Tensor:
    """Returns mean |R - R_i| (...,) over the positions and values of `difference` (..., q, 3p²).

    In the units of the network's output (normalized pixels). The paper's choice, Tab. 1c.
    """
    return difference.abs().mean(dim=(-2, -1))


def psnr(difference: Tensor) -> Tensor:
    """Returns -PSNR (...,) in dB over the positions of `difference` (..., q, 3p²): Tab. 1c.

    Negative, so that higher = more changed; never below -200 dB.
    """
    std = difference.new_tensor(IMAGENET_STD).repeat(difference.shape[-1] // 3)
    error = (difference * std).square().mean(dim=(-2, -1))
    return 10.0 * error.clamp_min(_SMALLEST_MSE).log10()


def ssim(reference: Tensor, difference: Tensor) -> Tensor:
    """Returns 1 - SSIM (B, n) between reference and reference - difference: Tab. 1c.

    Wang et al. (2004): 11 x 11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1,
    mean over channels and the pixels whose window lies inside the image.

    Args:
        reference: images (B, 3, H, W) in normalized units.
        difference: (B, n, 3, H, W) in the same units; 0 where nothing changed.
    """
    std = reference.new_tensor(IMAGENET_STD).view(3, 1, 1)
    mean = reference.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    x = (reference * std + mean).unsqueeze(1)
    d = difference * std
    y = x - d
    mean_x, mean_y, mean_d = _smooth(x), _smooth(y), _smooth(d)
    var_x = _smooth(x.square()) - mean_x.square()
    var_y = _smooth(y.square()) - mean_y.square()
    var_d = _smooth(d.square()) - mean_d.square()
    # 2ab = a² + b² - (a - b)² turns both factors of SSIM into 1 - (something of d): with them
    # 1 - SSIM = luminance + structure - luminance * structure has no cancellation in it.
    luminance = mean_d.square() / (mean_x.square() + mean_y.square() + _SSIM_K1**2)
    structure = var_d / (var_x + var_y + _SSIM_K2**2)
    return (luminance + structure - luminance * structure).mean(dim=(-3, -2, -1))


@dataclass(frozen=True, slots=True)
class DistanceSpec:
    """One row of `DISTANCES`."""

    function: Callable[..., Tensor]
    """`function(difference)`, or `function(reference, difference)` of whole images"""
    of_images: bool = False
    """Whether it compares images, not positions one by one"""


DISTANCES: dict[str, DistanceSpec] = {
    "l1": DistanceSpec(l1),
    "psnr": DistanceSpec(psnr),
    "ssim": DistanceSpec(ssim, of_images=True),
}
"""By name: Tab. 1c. A distance from outside joins by a row."""


def _smooth(images: Tensor) -> Tensor:
    """Returns the Gaussian-weighted local means (..., H-10, W-10) of `images` (..., H, W)."""
    offsets = torch.arange(_SSIM_WINDOW, dtype=torch.float64) - _SSIM_WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / _SSIM_SIGMA) ** 2)
    kernel = (weights / weights.sum()).to(images)
    flat = images.reshape(-1, 1, *images.shape[-2:])
    with float32_kept():
        flat = F.conv2d(F.conv2d(flat, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return flat.view(*images.shape[:-2], *flat.shape[-2:])
