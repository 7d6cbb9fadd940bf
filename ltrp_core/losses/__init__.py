"""Learning-to-rank losses between ranker scores and pseudo-scores; `LOSSES` is their table.

The paper's four are in `paper`, those of later work and our own in `newer`; `lists` is what all of
them do first and last. A loss from outside joins by a row: `LOSSES["mine"] = LossSpec(function)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ltrp_core.errors import unknown_name
from ltrp_core.losses.lists import Reduction
from ltrp_core.losses.newer import approx_ndcg, lambda_loss, plateau_listmle
from ltrp_core.losses.paper import listmle, listnet, ranknet, regression

__all__ = [
    "LOSSES",
    "LossSpec",
    "Reduction",
    "approx_ndcg",
    "lambda_loss",
    "listmle",
    "listnet",
    "loss_by_name",
    "plateau_listmle",
    "ranknet",
    "regression",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSpec:
    """One row of `LOSSES`: a loss and what may be asked of it."""

    function: Callable[..., Tensor]
    """`function(scores, targets, *, reduction)`, with the options that the other fields name."""
    takes_top: bool = False
    """Whether it has `top`, the number of first places that count (`--loss-top`)."""

    def __call__(self, scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
        """Returns what the function does: a scalar, or (B,) with `reduction="none"`."""
        return self.function(scores, targets, **options)


LOSSES: dict[str, LossSpec] = {
    "listmle": LossSpec(function=listmle, takes_top=True),
    "listnet": LossSpec(function=listnet),
    "ranknet": LossSpec(function=ranknet),
    "regression": LossSpec(function=regression),
    "approx_ndcg": LossSpec(function=approx_ndcg),
    "lambda_loss": LossSpec(function=lambda_loss, takes_top=True),
    "plateau_listmle": LossSpec(function=plateau_listmle),
}
"""The paper's four first, then those of `ltrp_core.losses.newer`."""


def loss_by_name(name: str) -> LossSpec:
    """Returns the row of the loss called `name` in `LOSSES`.

    Raises:
        RequestError: there is none; the message lists the nearest names.
    """
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    return LOSSES[name]
