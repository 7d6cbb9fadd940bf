"""What every ranking loss does with its lists first and last: check, scale, order, reduce."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ltrp_core.errors import RequestError, unknown_name
from ltrp_core.lists import check_lists

Reduction = Literal["mean", "none"]
REDUCTIONS = ("mean", "none")


def prepared(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both, checked, in float32 or better; targets without gradient.

    Raises:
        RequestError: wrong or empty shapes, or targets that are not finite.
    """
    check_lists(scores, targets)
    if not bool(targets.isfinite().all()):
        raise RequestError(
            "targets must be finite; found nan or inf. Check the cache they were read from."
        )
    return _at_least_float32(scores), _at_least_float32(targets.detach())


def reduced(costs: Tensor, reduction: Reduction) -> Tensor:
    """Returns the mean of the lists' costs (B,), or for "none" the costs themselves.

    Raises:
        RequestError: an unknown reduction.
    """
    if reduction not in REDUCTIONS:
        raise unknown_name("reduction", reduction, REDUCTIONS)
    return costs.mean() if reduction == "mean" else costs


def shifted(scores: Tensor) -> Tensor:
    """Returns the scores (B, n) less the largest of each list, for losses that differences decide.

    Without it, scores that drift far from 0 would cost the digits of their differences.
    """
    return scores - scores.detach().amax(dim=1, keepdim=True)


def standardized(targets: Tensor) -> Tensor:
    """Returns the targets (B, n) with mean 0 and standard deviation 1 per list, or zeros."""
    centered, deviation, _ = _centered(targets)
    return centered / torch.where(deviation > 0, deviation, 1.0)


def deviation_of(targets: Tensor) -> Tensor:
    """Returns the standard deviation (B, 1) of each list, exactly 0 for a constant one."""
    _, deviation, largest = _centered(targets)
    return deviation * largest


def check_positive(name: str, value: float) -> None:
    """Raises RequestError unless `value` is a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise RequestError(f"{name} must be a finite number above 0; got {value}. Try 1.0.")


def check_not_negative(name: str, value: float, meaning: str) -> None:
    """Raises RequestError unless `value`, which is `meaning`, is finite and at least 0."""
    if not (math.isfinite(value) and value >= 0):
        raise RequestError(f"{name} must be {meaning} >= 0; got {value}. Use 0 for none.")


def checked_top(top: int | None, length: int) -> int:
    """Returns `top`, or all `length` places for None.

    Raises:
        RequestError: fewer than 1 place, or more than the list has.
    """
    if top is None:
        return length
    if not 1 <= top <= length:
        raise RequestError(
            f"top must be from 1 to n = {length} places; got {top}. Leave it out for all of them."
        )
    return top


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _centered(targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the targets scaled to a range of 1 less their mean, that deviation, the range."""
    # To [0, 1] first: a constant list then gives exact zeros, and squares cannot underflow.
    spread = targets - targets.amin(dim=1, keepdim=True)
    largest = spread.amax(dim=1, keepdim=True)
    unit = spread / torch.where(largest > 0, largest, 1.0)
    centered = unit - unit.mean(dim=1, keepdim=True)
    return centered, centered.square().mean(dim=1, keepdim=True).sqrt(), largest
