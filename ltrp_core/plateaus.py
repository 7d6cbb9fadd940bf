"""How flat the teacher's order is: neighbors in it that its own noise cannot tell apart.

The paper masks 90 % of an image, for then few patches are visible and most of them matter; of many
visible patches, most could be left out unnoticed, and their order is chance (Sec. 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from ltrp_core.repeatability import mean_map

Map = NDArray[np.float64]


def map_with_noise(visible: NDArray[Any], score: NDArray[Any], length: int) -> tuple[Map, Map]:
    """Returns every patch's mean score over partitions and the standard error of it, (N, L).

    The error is nan where a patch was scored fewer than two times.

    Args:
        visible: integers (N, P, n) from 0 to L - 1.
        score: (N, P, n), finite.
        length: L.

    Raises:
        RequestError: as `ltrp_core.repeatability.mean_map`.
    """
    mean, count = mean_map(visible, score, length)
    rows = np.arange(len(mean))[:, None, None]
    # Differences from the mean first: the squares of large scores would lose their digits.
    centered = score.astype(np.float64) - mean[rows, visible]
    squares, _ = mean_map(visible, centered**2, length)
    error = np.full(mean.shape, np.nan)
    np.divide(squares, count - 1, out=error, where=count > 1)
    return mean, np.sqrt(error)


@dataclass(frozen=True, slots=True)
class Plateaus:
    """How flat the sorted scores of images are, by rank: (N, bins) each, the best patches first."""

    flat: Map
    """Share of neighbors in the order that differ by less than the noise of their difference"""
    width: Map
    """Other patches, of all L - 1, that differ from a patch by less than that; mean over patches"""
    score: Map
    """Mean score; 1 is the image's largest, 0 its smallest"""


def plateaus(mean: Map, error: Map, bins: int = 10) -> Plateaus:
    """Returns how flat the order of each image is.

    The noise of a difference is its standard error, sqrt(e_i^2 + e_j^2).

    Args:
        mean: (N, L), finite.
        error: (N, L), standard errors of `mean`, finite.
        bins: equal parts of the order, from 1 to L - 1.

    Raises:
        RequestError: shapes that differ, values that are not finite, or bins out of range.
    """
    if mean.ndim != 2 or mean.shape != error.shape:
        raise RequestError(f"mean and error must both be (N, L); got {mean.shape}, {error.shape}")
    if not 1 <= bins < mean.shape[1]:
        raise RequestError(f"bins must be from 1 to L - 1 = {mean.shape[1] - 1}; got {bins}")
    if not (np.isfinite(mean).all() and np.isfinite(error).all()):
        raise RequestError("mean and error must be finite; score every patch at least twice")
    order = np.argsort(-mean, axis=1, kind="stable")
    heights = np.take_along_axis(mean, order, axis=1)
    errors = np.take_along_axis(error, order, axis=1)
    steps = heights[:, :-1] - heights[:, 1:]
    is_flat = steps < np.hypot(errors[:, :-1], errors[:, 1:])
    widths = np.stack([_widths(*image) for image in zip(heights, errors, strict=True)])
    spread = heights[:, :1] - heights[:, -1:]
    scaled = (heights - heights[:, -1:]) / np.where(spread > 0, spread, 1.0)
    # The last patch has no neighbor behind it.
    parts = np.array_split(np.arange(mean.shape[1] - 1), bins)
    flat, width, score = (
        np.stack([values[:, part].mean(axis=1) for part in parts], axis=1)
        for values in (is_flat, widths, scaled)
    )
    return Plateaus(flat, width, score)


def _widths(heights: Map, errors: Map) -> NDArray[np.int64]:
    noise = np.hypot(errors[:, None], errors[None, :])
    near = np.abs(heights[:, None] - heights[None, :]) < noise
    np.fill_diagonal(near, False)
    counts: NDArray[np.int64] = near.sum(axis=1)
    return counts
