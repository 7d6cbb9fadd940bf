"""DPC-KNN of one image by loops over integers and 50-digit decimals, straight from the formulas."""

from __future__ import annotations

from decimal import Decimal, localcontext


def dpc_knn(
    points: list[list[int]], unit: Decimal, clusters: int, neighbors: int
) -> tuple[list[int], list[int]]:
    """Returns (assignment, centers) of `points`, whose coordinates are integers times `unit`."""
    with localcontext() as context:
        context.prec = 50
        length, channels = len(points), len(points[0])
        squared = [[_squared(p, q) for q in points] for p in points]
        nearest = [sum(sorted(row)[:neighbors]) for row in squared]
        largest = max(max(row) for row in squared)
        gamma = []
        for i in range(length):
            denser = [j for j in range(length) if (nearest[j], j) < (nearest[i], i)]
            delta2 = min((squared[i][j] for j in denser), default=largest)
            rho = (-(nearest[i] * unit * unit) / (neighbors * channels)).exp()
            gamma.append(rho * (delta2 * unit * unit / channels).sqrt())
        centers = sorted(range(length), key=lambda i: (-gamma[i], i))[:clusters]
    assignment = []
    for i in range(length):
        if i in centers:
            assignment.append(centers.index(i))
        else:
            assignment.append(min(range(clusters), key=lambda c: (squared[i][centers[c]], c)))
    return assignment, centers


def _squared(a: list[int], b: list[int]) -> int:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
