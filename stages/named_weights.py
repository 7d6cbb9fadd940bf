"""Options of the form NAME=WEIGHT, given repeatedly or with commas between them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from ltrp_core.errors import RequestError, unknown_name

MOST = 100.0
"""Beyond it the ranks of the others could not be told apart."""


def named_weights(given: Sequence[str], known: Collection[str], option: str) -> dict[str, float]:
    """Returns the weights by name, in the order of `known`; a weight of 0 is as if not given.

    Args:
        given: texts such as `border=1` or `border=1,center=0.5`.
        known: the names there are.
        option: what messages call it, such as `--prior`.

    Raises:
        RequestError: another form, an unknown or repeated name, or a weight outside 0 to 100.

    >>> named_weights(["center=0.5", "border=1"], ["border", "center"], "--prior")
    {'border': 1.0, 'center': 0.5}
    """
    weights: dict[str, float] = {}
    for text in [part for one in given for part in one.split(",")]:
        name, _, number = (part.strip() for part in text.partition("="))
        if name not in known:
            raise unknown_name(option.lstrip("-"), name, known)
        if name in weights:
            raise RequestError(f"{option} {name} is given twice")
        try:
            weights[name] = float(number)
        except ValueError as error:
            raise RequestError(
                f"{option} {text!r} is not of the form NAME=WEIGHT, such as {name}=0.5"
            ) from error
        if not (math.isfinite(weights[name]) and 0 <= weights[name] <= MOST):
            raise RequestError(f"{option} {text}: the weight is out of range 0 .. {MOST:g}")
    return {name: weights[name] for name in known if weights.get(name)}


def as_texts(weights: dict[str, float]) -> tuple[str, ...]:
    """Returns weights as they are written down: one text each, whatever was typed."""
    return tuple(f"{name}={weight:.12g}" for name, weight in weights.items())
