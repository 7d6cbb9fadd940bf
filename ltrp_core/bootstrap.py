"""How sure one may be of a mean over images: bootstrap intervals, paired where images are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.errors import RequestError
from ltrp_core.seeding import random_bits

_WEIGHTS_AT_ONCE = 8_000_000
"""Weights of resamples held at a time: 64 MB."""


def bootstrap_interval(
    values: NDArray[np.float64] | Tensor, *, seed: int, draws: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval (low, high) of the mean of `values` over images.

    A pure function of its arguments: resample d of N images is the same for every measure and every
    selection, whatever `draws` is.

    Args:
        values: (N,), one per image; nan = undefined for this image and left out, as in `mean`.
        seed: of the resampling.
        draws: resamples, >= 1.
        level: share of the resamples' means inside the interval, within (0, 1).

    Returns:
        (nan, nan) where no value is defined.

    Raises:
        RequestError: wrong shape, infinite values, draws or level out of range.
    """
    _check_bootstrap(draws, level)
    defined = _one_a_image(values)
    defined = defined[~np.isnan(defined)]
    count = len(defined)
    if count == 0:
        return float("nan"), float("nan")
    means = np.empty(draws)
    for draw in range(draws):
        means[draw] = defined[_resample(count, seed, draw)].mean()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_ratios(
    numerators: NDArray[np.float64],
    denominators: NDArray[np.float64] | None = None,
    *,
    seed: int,
    draws: int = 1000,
    level: float = 0.95,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the bootstrap intervals (low (M,), high (M,)) of M ratios of sums over N images.

    The resamples are those of `bootstrap_interval`, so a column with denominators of 1 has its
    interval, and all M together cost little more than one. A mean over the images that define a
    measure has the measure, or 0, above and 1, or 0, below; a pooled measure has its counts.

    Args:
        numerators: (N, M), finite.
        denominators: (N, M), finite and >= 0. None: 1 everywhere, the mean over all images.
        seed: see `bootstrap_interval`, like `draws` and `level`.

    Returns:
        nan for a column that is 0 / 0 in a resample, and without images.

    Raises:
        RequestError: wrong shapes, infinite or undefined values, draws or level out of range.
    """
    _check_bootstrap(draws, level)
    arrays = [numerators] if denominators is None else [numerators, denominators]
    if any(a.ndim != 2 or a.shape != numerators.shape or not np.isfinite(a).all() for a in arrays):
        raise RequestError(
            "numerators and denominators must be finite (N, M), one row per image; got shapes "
            f"{[a.shape for a in arrays]}. Put 0 in both where a measure is undefined."
        )
    count, columns = numerators.shape
    ratios = np.full((draws, columns), np.nan)
    step = max(1, _WEIGHTS_AT_ONCE // max(count, 1))
    for start in range(0, draws if count else 0, step):
        stop = min(start + step, draws)
        # How often each image was drawn: the sums over all resamples are one product of matrices.
        weights = np.stack(
            [np.bincount(_resample(count, seed, d), minlength=count) for d in range(start, stop)]
        ).astype(np.float64)
        sums = weights @ numerators
        below = count if denominators is None else weights @ denominators
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios[start:stop] = sums / below
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def paired_bootstrap(
    a: NDArray[np.float64] | Tensor,
    b: NDArray[np.float64] | Tensor,
    *,
    seed: int,
    draws: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Returns the bootstrap interval (low, high) of mean(a - b) over images that have both.

    Two selections on the same images differ for certain where the interval leaves 0 out; far
    narrower than the two intervals side by side.

    Args:
        a: (N,), a measure of one selection; nan = undefined for this image.
        b: (N,), the same measure of another selection on the same images in the same order.
        seed: see `bootstrap_interval`, like `draws` and `level`.

    Raises:
        RequestError: different or wrong shapes, infinite values, draws or level out of range.
    """
    first, second = _one_a_image(a), _one_a_image(b)
    if first.shape != second.shape:
        raise RequestError(
            f"paired values must be of the same images; got {len(first)} and {len(second)}. "
            "Evaluate both selections on one set."
        )
    return bootstrap_interval(first - second, seed=seed, draws=draws, level=level)


def _resample(count: int, seed: int, draw: int) -> NDArray[np.int64]:
    """Returns the images (count,) of resample `draw`, drawn with replacement."""
    bits = random_bits(count, seed=seed, key="", purpose=f"bootstrap:{draw}")
    # The top 32 bits scaled to 0 .. N-1: no image is favored by more than N / 2^32.
    return (((bits >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32)).astype(np.int64)


def _check_bootstrap(draws: int, level: float) -> None:
    if draws < 1 or not 0.0 < level < 1.0:
        raise RequestError(
            f"draws must be >= 1 and level within (0, 1); got {draws} and {level}. "
            "Try 1000 and 0.95."
        )


def _one_a_image(values: NDArray[np.float64] | Tensor) -> NDArray[np.float64]:
    """Returns the values as float64 (N,), nan allowed."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or np.isinf(array).any():
        raise RequestError(
            f"values must be (N,), one per image, and not infinite; got shape {array.shape}. "
            "Pass one measure of an agreement."
        )
    return array
