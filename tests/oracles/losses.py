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


def listmle_of_order(scores: Row, order: Sequence[int]) -> Decimal:
    """Returns -log of the product of the probabilities to pick each item next: Eq. (3)."""
    probability = Decimal(1)
    for place, chosen in enumerate(order):
        left = sum((scores[i].exp() for i in order[place:]), Decimal(0))
        probability *= scores[chosen].exp() / left
    return -probability.ln()


def listmle(scores: Row, targets: Row) -> Decimal:
    return listmle_of_order(scores, order_of(targets))


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
