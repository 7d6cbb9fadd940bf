"""Ranks added the slow way: every value is compared with every other, in fractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction


def rank(values: Sequence[float], place: int) -> Fraction:
    """Returns (r - 1) / (L - 1) of one value: r counts from 1 upwards, equals share the mean."""
    own = values[place]
    lower = sum(1 for value in values if value < own)
    equal = sum(1 for value in values if value == own)
    ranks_of_equals = [lower + 1 + number for number in range(equal)]
    mean = Fraction(sum(ranks_of_equals), equal)
    return (mean - 1) / max(len(values) - 1, 1)


def with_priors(
    scores: Sequence[float],
    maps: Mapping[str, Sequence[float]],
    weights: Mapping[str, Fraction],
) -> list[Fraction]:
    """Returns rank(score) + sum of weight * rank(prior) of every patch of one image."""
    found = []
    for place in range(len(scores)):
        total = rank(scores, place)
        for name, weight in weights.items():
            total += weight * rank(maps[name], place)
        found.append(total)
    return found
