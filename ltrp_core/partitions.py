"""Partitions: which patches of a view the masked autoencoder is given (Sec. 3.2, Tab. 1b)."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import RequestError, unknown_name
from ltrp_core.seeding import random_permutation

Sampler = Literal["iid", "cover"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
Scored = Literal["visible", "masked"]
"""Which patches of a partition have a score."""


def num_visible(length: int, mask_ratio: float) -> int:
    """Returns n = floor(L * (1 - mask_ratio) + 1e-9), the visible patches of a partition.

    The 1e-9 matters: 100 * (1 - 0.9) is 9.99... in floating point.

    Raises:
        RequestError: the ratio leaves no visible or no masked patch.

    >>> [num_visible(196, ratio) for ratio in (0.95, 0.9, 0.8, 0.75, 0.7)]
    [9, 19, 39, 49, 58]
    """
    n = math.floor(length * (1 - mask_ratio) + 1e-9) if math.isfinite(mask_ratio) else 0
    if not 1 <= n < length:
        what = "no visible" if n < 1 else "no masked"
        raise RequestError(
            f"mask ratio {mask_ratio} leaves {what} patch of {length}; "
            f"choose one in (0, {1 - 1 / length:.4f}]"
        )
    return n


def num_scored(length: int, mask_ratio: float, scored: Scored) -> int:
    """Returns how many patches of a partition have a score: n, or L - n; errors as above."""
    n = num_visible(length, mask_ratio)
    return n if scored == "visible" else length - n


def cover_count(length: int, mask_ratio: float) -> int:
    """Returns ceil(L / n): the `cover` partitions that score every patch at least once."""
    return -(-length // num_visible(length, mask_ratio))


def sample_visible(
    key: str,
    view: int,
    count: int,
    length: int,
    mask_ratio: float,
    seed: int,
    sampler: Sampler = "iid",
) -> NDArray[np.int64]:
    """Returns `count` partitions of one view: ascending, distinct indices, int64 (count, n).

    Method: `iid` is the paper's sampler, a fresh random subset each time. `cover` is ours: one
    random permutation of the L patches cut into consecutive groups of n, the last group topped up
    from the start, so that every ceil(L/n) partitions hold every patch. Row r depends on
    (key, view, r, length, mask_ratio, seed, sampler) and not on `count`.

    Args:
        key: the sample's key in its shard.
        view: number of the view of this sample, from 0.

    Raises:
        RequestError: unknown sampler, or a ratio that leaves no visible or no masked patch.
    """
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    n = num_visible(length, mask_ratio)
    rows = np.empty((count, n), dtype=np.int64)
    groups = -(-length // n)
    for partition in range(count):
        if sampler == "iid":
            chosen = _permutation(key, view, f"iid:{partition}", length, seed)[:n]
        else:
            round_number, group = divmod(partition, groups)
            permutation = _permutation(key, view, f"cover:{round_number}", length, seed)
            chosen = np.take(permutation, range(group * n, group * n + n), mode="wrap")
        rows[partition] = np.sort(chosen)
    return rows


def masked_patches(visible: NDArray[Any], length: int) -> NDArray[np.int64]:
    """Returns the masked patches (..., L - n) of partitions, ascending.

    Args:
        visible: integers (..., n) from 0 to L - 1, distinct within a partition.
        length: L.

    Raises:
        RequestError: an index is not of the grid, or stands twice in a partition.

    >>> masked_patches(np.array([[0, 2], [1, 3]]), 4)
    array([[1, 3],
           [0, 2]])
    """
    visible = np.asarray(visible).astype(np.int64)
    n = visible.shape[-1]
    if visible.size and not 0 <= int(visible.min()) <= int(visible.max()) < length:
        raise RequestError(
            f"visible patches must be from 0 to L - 1 = {length - 1}; found {visible.min()} to "
            f"{visible.max()}. Pass the length of the grid that was scored."
        )
    is_masked = np.ones((*visible.shape[:-1], length), dtype=bool)
    np.put_along_axis(is_masked, visible, False, axis=-1)
    if int(is_masked.sum()) != is_masked.size // length * (length - n):
        raise RequestError("a partition holds a patch twice; check the cache")
    return np.nonzero(is_masked)[-1].reshape(*visible.shape[:-1], length - n)


def _permutation(key: str, view: int, name: str, length: int, seed: int) -> NDArray[np.int64]:
    purpose = f"partition:{view}:{name}"
    return random_permutation(length, seed=seed, key=key, purpose=purpose)
