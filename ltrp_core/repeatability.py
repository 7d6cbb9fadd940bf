"""How repeatable the teacher's own scores are: a yardstick for rankers (ours, not in the paper).

A pseudo-score depends on the partition it was measured in. Two halves of a view's partitions are
two independent draws of the same teacher on the same pixels: what they disagree about, one draw of
labels cannot teach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.errors import RequestError
from ltrp_core.ranking_metrics import kendall_tau_b, ndcg, spearman_rho, top1_agreement

Map = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeatability:
    """Agreement of two halves of each view's partitions, means over the views compared."""

    tau: float
    """Kendall's tau-b of the two maps, over the patches both halves scored"""
    rho: float
    """Spearman's rho of the same"""
    top1: float
    """share of views whose best patch by the first half is the best by the second"""
    ndcg5: float
    """NDCG@5 of the first half's order, by the second half's scores"""
    num_views: int
    """views compared; where 0, the figures above are nan"""
    num_left_out: int
    """views with too few patches in both halves, or where a half scored all of them the same"""
    num_patches: float
    """patches compared in a view, mean over the views compared"""


def mean_map(visible: NDArray[Any], score: NDArray[Any], length: int) -> tuple[Map, Counts]:
    """Returns every patch's mean score over partitions and how often it was scored, (..., L).

    The map is float64, nan where a patch was never visible; sums run in the order of the
    partitions, so it is the same on every run and does not depend on the other views.

    Args:
        visible: integers (..., P, n) from 0 to L - 1.
        score: (..., P, n), finite; half precision is summed in double.
        length: L.

    Raises:
        RequestError: shapes that differ or have no partition axis, indices that are not integers
            or not of the grid, or scores that are not finite.

    >>> mean_map(np.array([[0, 1], [1, 2]]), np.array([[1.0, 2.0], [4.0, 5.0]]), 4)
    (array([ 1.,  3.,  5., nan]), array([1, 2, 1, 0]))
    """
    visible, score = np.asarray(visible), np.asarray(score)
    _check_partitions(visible, score, length)
    leading = visible.shape[:-2]
    num_views = int(np.prod(leading))
    # One cell a view and patch.
    first_cells = np.arange(num_views, dtype=np.int64) * length
    cells = (first_cells[:, None] + visible.reshape(num_views, -1)).ravel()
    count = np.bincount(cells, minlength=num_views * length)
    total = np.bincount(cells, score.ravel(), minlength=num_views * length)
    mean = np.full(len(total), np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean.reshape(*leading, length), count.reshape(*leading, length)


def label_repeatability(
    visible: NDArray[Any],
    score: NDArray[Any],
    length: int,
    *,
    groups: int | None = None,
    min_patches: int = 8,
) -> Repeatability:
    """Returns how well two halves of each view's partitions agree on the order of its patches.

    Method: the mean map of the first P // 2 partitions against that of the rest, over the patches
    that both scored. So the figure is the agreement of two independent draws, each of half of the
    partitions. It grows with P: means over all P would agree more, single partitions less. It is
    the ceiling of predicting one such draw from another, not of a ranker that averages over many
    images: one that knew the expected score would agree with either half better than they do with
    each other (for rho, about the square root of it).

    Args:
        visible: integers (N, V, P, n) from 0 to L - 1; other leading axes will do.
        score: (N, V, P, n), finite.
        length: L.
        groups: for `cover` partitions ceil(L / n), the partitions of a round: the halves are then
            whole rounds, so that each scores every patch; partitions of a last round that is not
            complete are left out. None for `iid`.
        min_patches: a view with fewer patches in both halves is left out and counted; >= 2.

    Raises:
        RequestError: fewer than 2 partitions (or rounds) a view, or wrong arrays as in `mean_map`.

    >>> visible = np.array([[[0, 1, 2], [0, 1, 2]]])
    >>> score = np.array([[[0.3, 0.2, 0.1], [0.5, 0.4, 0.3]]])
    >>> label_repeatability(visible, score, 3, min_patches=2).tau
    1.0
    """
    visible, score = np.asarray(visible), np.asarray(score)
    if min_patches < 2:
        raise RequestError(f"min_patches must be at least 2 to have an order; got {min_patches}")
    _check_partitions(visible, score, length)
    middle, end = _halves(visible.shape[-2], groups)
    first, _ = mean_map(visible[..., :middle, :], score[..., :middle, :], length)
    second, _ = mean_map(visible[..., middle:end, :], score[..., middle:end, :], length)
    measures, num_patches = _agreements(
        torch.from_numpy(first.reshape(-1, length)),
        torch.from_numpy(second.reshape(-1, length)),
        min_patches,
    )
    # tau is undefined where either half is constant, the others only where the second is.
    is_compared = measures[0].isfinite()
    num_views = int(is_compared.sum())
    tau, rho, top1, ndcg5 = measures[:, is_compared].mean(dim=1).tolist()
    return Repeatability(
        tau=tau,
        rho=rho,
        top1=top1,
        ndcg5=ndcg5,
        num_views=num_views,
        num_left_out=len(is_compared) - num_views,
        num_patches=float(num_patches[is_compared].double().mean()),
    )


def _halves(num_partitions: int, groups: int | None) -> tuple[int, int]:
    """Returns where the second half starts and where it ends."""
    if groups is not None and groups < 1:
        raise RequestError(f"groups must be ceil(L / n) partitions per round, >= 1; got {groups}")
    num_rounds = num_partitions // (groups or 1)
    if num_rounds < 2:
        wanted = 2 * (groups or 1)
        what = "partitions" if groups is None else f"rounds of {groups} partitions"
        raise RequestError(
            f"repeatability compares two halves: at least 2 {what} a view are needed; found "
            f"{num_partitions} partition(s). Score with --partitions {wanted} or more."
        )
    return num_rounds // 2 * (groups or 1), num_rounds * (groups or 1)


def _agreements(first: Tensor, second: Tensor, min_patches: int) -> tuple[Tensor, Tensor]:
    """Returns tau, rho, top-1, NDCG@5 of each view, float64 (4, views), and patches compared."""
    is_common = ~(first.isnan() | second.isnan())
    num_common = is_common.sum(dim=1)
    # Patches scored twice to the front, in the order of the grid: views with as many of them are
    # then lists of one length.
    order = is_common.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    first, second = first.gather(1, order), second.gather(1, order)
    measures = first.new_full((4, len(first)), torch.nan)
    for size in num_common.unique().tolist():
        if size < min_patches:
            continue
        rows = (num_common == size).nonzero().squeeze(1)
        scores, targets = first[rows, :size], second[rows, :size]
        measures[:, rows] = torch.stack(
            [
                kendall_tau_b(scores, targets),
                spearman_rho(scores, targets),
                top1_agreement(scores, targets),
                ndcg(scores, targets, top=5),
            ]
        )
    return measures, num_common


def _check_partitions(visible: NDArray[Any], score: NDArray[Any], length: int) -> None:
    """Raises RequestError unless these are scores of patches of a grid of `length`."""
    if visible.ndim < 2 or visible.size == 0 or score.shape != visible.shape:
        raise RequestError(
            f"visible and score must both be (..., P, n), not empty; got {visible.shape} and "
            f"{score.shape}. Pass the arrays of one cache unit."
        )
    if not np.issubdtype(visible.dtype, np.integer):
        raise RequestError(
            f"visible must be integers; got {visible.dtype}. Were visible and score swapped?"
        )
    low, high = int(visible.min()), int(visible.max())
    if low < 0 or high >= length:
        raise RequestError(
            f"visible must be from 0 to L - 1 = {length - 1}; found {low} to {high}. Pass the "
            "length of the grid that the scores were measured on."
        )
    if not np.isfinite(score).all():
        raise RequestError("score must be finite; found nan or inf. Check the cache.")
