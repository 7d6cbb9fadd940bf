"""Border contrast: what differs in color from the edge of the image (Yang et al., CVPR 2013; ours).

The boundary prior of classical saliency: photographers leave the edge to the background. It looks
at nothing but colors, and is the strongest free heuristic that we know on photographs of objects;
it fails where an object touches the edge, and edge patches themselves score 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ltrp_core.distances import IMAGENET_STD
from ltrp_core.errors import RequestError
from ltrp_core.patches import patchify
from ltrp_core.selectors.base import (
    PlainSelector,
    SelectorSpec,
)


def border_contrast(images: Tensor, patch_size: int) -> Tensor:
    """Returns how far each patch's mean color is from the nearest edge patch's, (B, L) >= 0.

    The Euclidean distance in RGB from 0 to 1, float32; 0 on the edge of the grid.

    Args:
        images: (B, 3, S, S), normalized by ImageNet's mean and standard deviation.
        patch_size: p in pixels.

    Raises:
        RequestError: wrong shape, or sides that p does not divide.

    >>> image = torch.zeros(1, 3, 12, 12)
    >>> image[..., 4:8, 4:8] = 1.0
    >>> border_contrast(image, 4)[0].view(3, 3).round(decimals=2)
    tensor([[0.0000, 0.0000, 0.0000],
            [0.0000, 0.3900, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """
    if images.shape[-1] != images.shape[-2]:
        raise RequestError(f"images must be square; got {tuple(images.shape)}. Crop them.")
    patches = patchify(images.float(), patch_size)
    colors = patches.unflatten(2, (-1, 3)).mean(dim=2) * images.new_tensor(IMAGENET_STD).float()
    edge = colors[:, edge_places(colors.shape[1], images.device)]
    squared = (colors.unsqueeze(2) - edge.unsqueeze(1)).square().sum(dim=3)
    return squared.amin(dim=2).sqrt()


def edge_places(length: int, device: torch.device) -> Tensor:
    """Returns which of L = g * g patches are at the edge of the grid, bool (L,), row by row.

    Raises:
        RequestError: L is no square.
    """
    grid = math.isqrt(length)
    if grid * grid != length:
        raise RequestError(f"{length} patches are no square grid; pass g * g, row by row")
    place = torch.arange(length, device=device)
    row, column = place // grid, place % grid
    return (torch.minimum(row, column) == 0) | (torch.maximum(row, column) == grid - 1)


class BorderSelector(PlainSelector):
    """The patches that differ most from the edge of the image."""

    def scores(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        """Returns the border contrast of each patch."""
        del keys
        return border_contrast(images, self.patch_size)


BORDER = SelectorSpec(
    make=BorderSelector,
    help="most unlike the edge of the image first",
    assumes="objects do not touch the edge of the image; hurts close-ups, crops and crowds",
)
