"""Ranking losses of one list, straight from their formulas, in decimals of 100 digits.

With so many digits and an exponent range of a million, products of probabilities need no logarithm
trick and a finite difference is exact for every purpose, even at scores of 1e4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Context, Decimal, localcontext

DIGITS = Context(prec=100, Emin=-999_999, Emax=999_999)
STEP = Decimal("1e-30")

Row = Sequence[Decimal]
Loss = Callable[[Row, Row], Decimal]


def order_of(targets: Row) -> list[int]:
    """Returns the indices by target descending, then index ascending."""
    return sorted(range(len(targets)), key=lambda i: (-targets[i], i))


def listmle_of_order(scores: Row, order: Sequence[int], top: int | None = None) -> Decimal:
    """Returns -log of the product of the probabilities to pick each item next: Eq. (3)."""
    probability = Decimal(1)
    for place, chosen in enumerate(order[:top]):
        left = sum((scores[i].exp() for i in order[place:]), Decimal(0))
        probability *= scores[chosen].exp() / left
    return -probability.ln()


def listmle(scores: Row, targets: Row, top: int | None = None) -> Decimal:
    return listmle_of_order(scores, order_of(targets), top)


def standardized(targets: Row) -> list[Decimal]:
    n = len(targets)
    mean = sum(targets) / n
    variance = sum((y - mean) ** 2 for y in targets) / n
    if max(targets) == min(targets):
        return [Decimal(0)] * n
    return [(y - mean) / variance.sqrt() for y in targets]


def softmax(row: Row) -> list[Decimal]:
    total = sum(x.exp() for x in row)
    return [x.exp() / total for x in row]


def listnet(scores: Row, targets: Row, temperature: Decimal = Decimal(1)) -> Decimal:
    wanted = softmax([y / temperature for y in standardized(targets)])
    given = softmax(scores)
    return -sum((p * q.ln() for p, q in zip(wanted, given)), Decimal(0))


def ranknet(
    scores: Row, targets: Row, sigma: Decimal = Decimal(1), tie: Decimal = Decimal(0)
) -> Decimal:
    costs = [
        (1 + (-sigma * (scores[i] - scores[j])).exp()).ln()
        for i in range(len(scores))
        for j in range(len(scores))
        if targets[i] - targets[j] > tie
    ]
    return sum(costs, Decimal(0)) / len(costs) if costs else Decimal(0)


def regression(scores: Row, targets: Row) -> Decimal:
    errors = [(s - y) ** 2 for s, y in zip(scores, standardized(targets))]
    return sum(errors, Decimal(0)) / len(errors)


def gains_of(targets: Row) -> list[Decimal]:
    """Returns which share of the others each item beats."""
    others = max(1, len(targets) - 1)
    return [Decimal(sum(other < y for other in targets)) / others for y in targets]


def dcg(gains: Row, places: Row, top: int | None = None) -> Decimal:
    """Returns the discounted gain at places counted from 1, whole or not."""
    total = Decimal(0)
    for gain, place in zip(gains, places):
        if top is None or place <= top:
            total += gain * Decimal(2).ln() / (1 + place).ln()
    return total


def best_dcg(gains: Row, top: int | None = None) -> Decimal:
    places = [Decimal(place) for place in range(1, len(gains) + 1)]
    return dcg(sorted(gains, reverse=True), places, top)


def approx_ndcg(scores: Row, targets: Row, temperature: Decimal = Decimal("0.1")) -> Decimal:
    gains = gains_of(targets)
    if not any(gains):
        return Decimal(0)
    ranks = [
        1 + sum(1 / (1 + ((s - t) / temperature).exp()) for j, t in enumerate(scores) if j != i)
        for i, s in enumerate(scores)
    ]
    return 1 - dcg(gains, ranks) / best_dcg(gains)


def places_of(scores: Row, targets: Row) -> list[Decimal]:
    """Returns places from 1: score descending, target ascending; equal in both share their mean."""
    items = list(zip(scores, targets))
    order = sorted(items, key=lambda item: (-item[0], item[1]))
    return [Decimal(2 * order.index(item) + 1 + order.count(item)) / 2 for item in items]


def lambda_loss(
    scores: Row,
    targets: Row,
    sigma: Decimal = Decimal(1),
    top: int | None = None,
    mu: Decimal = Decimal(10),
    places: Row | None = None,
) -> Decimal:
    """Returns NDCG-Loss2++; `places` replace those of the scores, to differentiate the rest."""
    gains = gains_of(targets)
    places = places_of(scores, targets) if places is None else places
    now = dcg(gains, places, top)
    total = Decimal(0)
    for i in range(len(scores)):
        for j in range(len(scores)):
            if targets[i] <= targets[j]:
                continue
            swapped = list(places)
            swapped[i], swapped[j] = places[j], places[i]
            weight = abs(dcg(gains, swapped, top) - now)
            if top is None or min(places[i], places[j]) <= top:
                gap = abs(places[i] - places[j])
                bound = dcg([Decimal(1)], [gap]) - dcg([Decimal(1)], [gap + 1])
                weight += mu * bound * (gains[i] - gains[j])
            total += weight * (1 + (-sigma * (scores[i] - scores[j])).exp()).ln() / Decimal(2).ln()
    return total / best_dcg(gains, top) if total else total


def plateau_listmle(scores: Row, targets: Row, noise: Decimal = Decimal("0.1")) -> Decimal:
    mean = sum(targets) / len(targets)
    deviation = (sum((y - mean) ** 2 for y in targets) / len(targets)).sqrt()
    cost = Decimal(0)
    for s, y in zip(scores, targets):
        rivals = [scores[k] for k in range(len(scores)) if targets[k] < y - noise * deviation]
        cost -= (s.exp() / (s.exp() + sum((t.exp() for t in rivals), Decimal(0)))).ln()
    return cost


def value(loss: Loss, scores: Sequence[float], targets: Sequence[float]) -> float:
    """Returns the loss of one list of floats."""
    with localcontext(DIGITS):
        return float(loss([Decimal(s) for s in scores], [Decimal(y) for y in targets]))


def gradient(loss: Loss, scores: Sequence[float], targets: Sequence[float]) -> list[float]:
    """Returns the derivatives by the scores of one list, from central differences."""
    with localcontext(DIGITS):
        exact, wanted = [Decimal(s) for s in scores], [Decimal(y) for y in targets]
        slopes = []
        for i in range(len(exact)):
            up = [s + STEP * (j == i) for j, s in enumerate(exact)]
            down = [s - STEP * (j == i) for j, s in enumerate(exact)]
            slopes.append(float((loss(up, wanted) - loss(down, wanted)) / (2 * STEP)))
        return slopes
