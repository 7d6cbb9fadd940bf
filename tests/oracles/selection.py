"""Selection of one image by sets and loops, straight from the text of Sec. 3.4."""

from __future__ import annotations

import math
from collections.abc import Sequence


def select(
    scores: Sequence[float],
    keep: int,
    homogeneous: float,
    assignment: Sequence[int],
    centers: Sequence[int],
    points: Sequence[Sequence[int]],
) -> list[int]:
    """Returns the kept patches in order, given the clusters of the integer `points`."""
    wanted = math.floor(homogeneous * keep + 0.5)
    kept: list[int] = []
    while len(kept) < keep - wanted:
        left = set(range(len(scores))) - set(kept)
        best = max(scores[i] for i in left)
        kept.append(min(i for i in left if scores[i] == best))
    clusters = {c: {i for i in range(len(scores)) if assignment[i] == c} for c in set(assignment)}
    for c in sorted(clusters, key=lambda c: (-len(clusters[c]), c)):
        if len(kept) == keep:
            break
        left = clusters[c] - set(kept)
        if left:
            kept.append(min(left, key=lambda i: (_squared(points[i], points[centers[c]]), i)))
    return kept


def _squared(a: Sequence[int], b: Sequence[int]) -> int:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
