"""Which k patches to keep: the best by score, and a few for the homogeneous regions (Sec. 3.4).

Scores alone would drop sky and grass altogether; Tab. 1e keeps 20 % of the budget for the patches
that stand for the largest clusters. Always exactly k distinct indices, the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ltrp_core.clustering import Clusters, find_clusters_at
from ltrp_core.errors import RequestError

_NEIGHBORS = 5


def num_kept(keep_ratio: float, length: int) -> int:
    """Returns k = floor(keep_ratio * length + 0.5), the patches to keep of `length`: Sec. 3.4.

    Raises:
        RequestError: k is not from 1 to `length`.

    >>> num_kept(0.7, 196)
    137
    """
    if not math.isfinite(keep_ratio):
        raise RequestError(f"keep ratio must be a number within (0, 1]; got {keep_ratio}.")
    keep = _round_half_up(keep_ratio * length)
    if not 1 <= keep <= length:
        raise RequestError(
            f"keep ratio {keep_ratio} of {length} patches is k = {keep}; k must be from 1 to "
            f"{length}. Choose a ratio within (0, 1]."
        )
    return keep


def check_keep(keep: int, length: int) -> None:
    """Checks k of L patches.

    Raises:
        RequestError: it is not from 1 to L.
    """
    if not 1 <= keep <= length:
        raise RequestError(
            f"k out of range: k must be from 1 to L = {length}; got {keep}. "
            "Use num_kept() to turn a ratio into k."
        )


def num_homogeneous(homogeneous: float, keep: int) -> int:
    """Returns h = floor(homogeneous * k + 0.5): how many of k kept patches stand for regions.

    The last h of what `select_patches` returns.

    >>> num_homogeneous(0.2, 49)
    10
    """
    return _round_half_up(homogeneous * keep)


def top_patches(scores: Tensor, keep: int) -> Tensor:
    """Returns the `keep` best patches, int64 (B, keep): score descending, then index ascending.

    Args:
        scores: (B, L), finite, higher = matters more.
        keep: k, from 1 to L.

    Raises:
        RequestError: wrong shape, non-finite scores, or k out of range.

    >>> top_patches(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 3).tolist()
    [[1, 2, 3]]
    """
    _check_scores(scores, keep)
    return _by_score(scores)[:, :keep]


@torch.no_grad()
def select_patches(
    scores: Tensor, keep: int, *, patches: Tensor | None = None, homogeneous: float = 0.2
) -> Tensor:
    """Returns the kept patches, int64 (B, keep), distinct: the best, then the homogeneous ones.

    Method (Sec. 3.4, Tab. 1e): h = floor(homogeneous * k + 0.5). The k - h best by score; then
    DPC-KNN puts all patches in k clusters, and each cluster, largest first (the earlier center of
    equals), gives the patch closest to its center among those not selected yet (the lower index of
    equals); clusters with none left are passed over; stop at h. Differs from the released code,
    which draws a random member, drops the cluster if that one is taken, and breaks at ratio 1.

    Args:
        scores: (B, L), finite, higher = matters more.
        keep: k, from 1 to L; see `num_kept`.
        patches: (B, L, C), raw normalized pixels of every patch, on the device of `scores`. None:
            there is nothing to cluster, so all k patches are taken by score.
        homogeneous: the share of k from homogeneous regions, 0 to 1. 0: by score alone.

    Returns:
        Columns 0 to k - h - 1 by score descending, then index ascending; the other h by cluster
        size descending.

    Raises:
        RequestError: wrong shapes, non-finite scores or patches, k or `homogeneous` out of range.

    >>> scores = torch.tensor([[9.0, 8.0, 7.0, 2.0, 1.0, 3.0]])
    >>> pixels = torch.tensor([[[5.0], [-5.0], [5.0], [0.0], [0.0], [0.0]]])
    >>> select_patches(scores, 3, patches=pixels, homogeneous=0.4).tolist()
    [[0, 1, 3]]
    """
    return select_patches_at(scores, [keep], patches=patches, homogeneous=homogeneous)[0]


@torch.no_grad()
def select_patches_at(
    scores: Tensor,
    keeps: Sequence[int],
    *,
    patches: Tensor | None = None,
    homogeneous: float = 0.2,
) -> list[Tensor]:
    """Returns `select_patches` for each of several k, with the distances of the patches found once.

    Raises:
        RequestError: as `select_patches` does.
    """
    for keep in keeps:
        _check_scores(scores, keep)
    if not 0.0 <= homogeneous <= 1.0:
        raise RequestError(
            f"homogeneous must be a share from 0 to 1; got {homogeneous}. The paper's is 0.2."
        )
    best_first = _by_score(scores)
    if patches is None:
        return [best_first[:, :keep] for keep in keeps]
    _check_patches(patches, scores)
    counts = {keep: num_homogeneous(homogeneous, keep) for keep in keeps}
    clustered = [keep for keep, count in counts.items() if count]
    kept = {keep: best_first[:, : keep - count] for keep, count in counts.items()}
    if clustered:
        neighbors = min(_NEIGHBORS, scores.shape[1])
        found = find_clusters_at(patches, clustered, neighbors)
        for keep, clusters in zip(clustered, found, strict=True):
            others = _representatives(clusters, kept[keep], counts[keep])
            kept[keep] = torch.cat([kept[keep], others], dim=1)
    return [kept[keep] for keep in keeps]


def _representatives(clusters: Clusters, taken: Tensor, count: int) -> Tensor:
    """Returns `count` patches (B, count) not in `taken`, one from each of the largest clusters.

    Patches are sorted by (size of cluster, distance to center, index); the first of each cluster is
    its representative. One round is enough: at most k - h clusters lie wholly within `taken`.
    """
    assignment, centers, squared_distance = clusters
    num_clusters = centers.shape[1]
    sizes = torch.zeros_like(centers)
    sizes.scatter_add_(1, assignment, torch.ones_like(assignment))
    largest_first = sizes.argsort(dim=1, descending=True, stable=True)
    place = largest_first.argsort(dim=1).gather(1, assignment)
    place.scatter_(1, taken, num_clusters)  # after every cluster

    patch = squared_distance.argsort(dim=1, stable=True)
    patch = patch.gather(1, place.gather(1, patch).argsort(dim=1, stable=True))
    place = place.gather(1, patch)
    is_first = place < num_clusters
    is_first[:, 1:] &= place[:, 1:] != place[:, :-1]
    first = is_first.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return patch.gather(1, first[:, :count])


def _by_score(scores: Tensor) -> Tensor:
    """Returns all patches (B, L), score descending, then index ascending."""
    # Adding 0 turns -0.0 into 0.0, which a radix sort could otherwise tell apart.
    return (scores.detach() + 0).argsort(dim=1, descending=True, stable=True)


def _round_half_up(x: float) -> int:
    return math.floor(x + 0.5)


def _check_scores(scores: Tensor, keep: int) -> None:
    """Raises RequestError unless `keep` of the scores can be ordered and taken."""
    if scores.ndim != 2:
        raise RequestError(
            f"scores must be (B, L); got {tuple(scores.shape)}. Pass one row per image."
        )
    check_keep(keep, scores.shape[1])
    if not bool(scores.isfinite().all()):
        raise RequestError(
            "scores must be finite; found nan or inf. Check the model that produced them."
        )


def _check_patches(patches: Tensor, scores: Tensor) -> None:
    """Raises RequestError unless `patches` describes the patches that `scores` ranks."""
    if patches.ndim != 3 or patches.shape[:2] != scores.shape or patches.device != scores.device:
        raise RequestError(
            f"patches must be (B, L, C) with (B, L) = {tuple(scores.shape)} on {scores.device}; "
            f"got {tuple(patches.shape)} on {patches.device}. Pass the pixels of every patch."
        )
