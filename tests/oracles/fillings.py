"""Views with hidden patches, pixel by pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d


def hidden_behind(
    view: NDArray[np.uint8], kept: list[int], patch_size: int, background: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the view (3, S, S), and `background` of that shape where a patch is not kept."""
    side = view.shape[1]
    seen = background.astype(np.float64).copy()
    for row in range(side):
        for column in range(side):
            patch = (row // patch_size) * (side // patch_size) + column // patch_size
            if patch in kept:
                seen[:, row, column] = view[:, row, column]
    return seen


def blurred(view: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Returns a view blurred by sigma = 10 px of 224, over three sigma, mirrored at the edges."""
    sigma = 10 / 224 * view.shape[1]
    radius = int(np.ceil(3 * sigma))
    down = gaussian_filter1d(view.astype(np.float64), sigma, axis=1, mode="mirror", radius=radius)
    return gaussian_filter1d(down, sigma, axis=2, mode="mirror", radius=radius)
