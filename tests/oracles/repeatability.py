"""Mean maps and their agreement, view by view and patch by patch, with SciPy's correlations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

Partitions = Sequence[Sequence[int]]
Scores = Sequence[Sequence[float]]


def mean_map(visible: Partitions, score: Scores, length: int) -> tuple[list[float], list[int]]:
    """Returns the mean score of each patch of one view (nan if it has none), and their number."""
    seen: list[list[float]] = [[] for _ in range(length)]
    for patches, values in zip(visible, score):
        for patch, value in zip(patches, values):
            seen[patch].append(value)
    means = [math.fsum(values) / len(values) if values else math.nan for values in seen]
    return means, [len(values) for values in seen]


@dataclass
class ViewAgreement:
    tau: float
    rho: float
    top1: float
    ndcg5: float
    num_patches: int


def ndcg5(scores: Sequence[float], targets: Sequence[float]) -> float:
    """Returns NDCG@5 with gains scaled to [0, 1]; no two scores may be equal."""
    low, high = min(targets), max(targets)
    gains = [(y - low) / (high - low) for y in targets]

    def discounted(order: list[int]) -> float:
        return sum(gains[i] / math.log2(place + 2) for place, i in enumerate(order[:5]))

    given = sorted(range(len(gains)), key=lambda i: -scores[i])
    best = sorted(range(len(gains)), key=lambda i: -gains[i])
    return discounted(given) / discounted(best)


def view_agreement(
    visible: Partitions, score: Scores, length: int, *, per_round: int, min_patches: int
) -> ViewAgreement | None:
    """Returns the agreement of the two halves of one view, None where it is left out."""
    num_rounds = len(visible) // per_round
    middle, end = num_rounds // 2 * per_round, num_rounds * per_round
    first, first_count = mean_map(visible[:middle], score[:middle], length)
    second, second_count = mean_map(visible[middle:end], score[middle:end], length)
    both = [i for i in range(length) if first_count[i] and second_count[i]]
    a, b = [first[i] for i in both], [second[i] for i in both]
    if len(both) < min_patches or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return ViewAgreement(
        tau=float(stats.kendalltau(a, b).statistic),
        rho=float(stats.spearmanr(a, b).statistic),
        top1=float(b[a.index(max(a))] == max(b)),
        ndcg5=ndcg5(a, b),
        num_patches=len(both),
    )
