"""Priors: what photographs have in common, added to a selector's scores as ranks (ours).

A prior is a selector without weights whose row in `SELECTORS` says what it assumes. Ranks, not
values: a ranker's scores, distances of colors and distances in patches have no common unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ltrp_core.errors import RequestError, unknown_name
from ltrp_core.selectors.base import (
    SELECTORS,
    ScoreSelector,
    Selector,
    SelectorOptions,
    create_selector,
)


def prior_names() -> list[str]:
    """Returns the names of the selectors that may be priors."""
    return [name for name, spec in SELECTORS.items() if spec.assumes]


def normalized_ranks(values: Tensor) -> Tensor:
    """Returns the rank of each value within its row, 0 of the lowest to 1 of the highest.

    (r - 1) / (L - 1), where r is the rank from 1 and equal values share the mean of their ranks;
    0 where L is 1. The order of the patches and the images beside an image change nothing.

    Args:
        values: (B, L), finite.

    Returns:
        float64 (B, L) on the device of `values`.

    Raises:
        RequestError: wrong shape, or a value that has no rank.

    >>> normalized_ranks(torch.tensor([[5.0, 1.0, 5.0, 7.0, 0.0]])).tolist()
    [[0.625, 0.25, 0.625, 1.0, 0.0]]
    """
    return _doubled_ranks(values) / _doubled_span(values)


def _doubled_ranks(values: Tensor) -> Tensor:
    """Returns 2 * (r - 1), whole numbers also where equal values share the mean of their ranks."""
    if values.ndim != 2:
        raise RequestError(f"values to rank must be (B, L); got {tuple(values.shape)}")
    if not bool(values.isfinite().all()):
        raise RequestError(
            "scores must be finite to be ranked; found nan or inf. Check the model that made them."
        )
    values = values.detach().double().contiguous()
    ascending = values.sort(dim=1).values
    below = torch.searchsorted(ascending, values)
    not_above = torch.searchsorted(ascending, values, right=True)
    return (below + not_above - 1).double()


def _doubled_span(values: Tensor) -> int:
    return 2 * max(values.shape[1] - 1, 1)


def with_priors(scores: Tensor, maps: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Returns rank(scores) + sum of weight * rank(prior), float64 (B, L), by `normalized_ranks`.

    Args:
        scores: (B, L) of a selector.
        maps: (B, L) of each prior, by name.
        weights: of each prior, by name.

    Raises:
        RequestError: as `normalized_ranks` does.
    """
    # Whole numbers are divided last, so that sums that are equal tie (to rounding of the weights);
    # product and sum are two steps, so that no device fuses them.
    total = _doubled_ranks(scores)
    for name, weight in weights.items():
        total = total + _doubled_ranks(maps[name]) * weight
    return total / _doubled_span(scores)


class Priors:
    """Priors on the grid of a selector, with their weights."""

    def __init__(self, weights: Mapping[str, float], selector: Selector) -> None:
        """Makes the priors.

        Args:
            weights: by name, each above 0.
            selector: whose scores they are added to.

        Raises:
            RequestError: no such prior, or the selector has no scores to add to.
        """
        for name in weights:
            if name not in prior_names():
                raise unknown_name("prior", name, prior_names())
        if weights and not isinstance(selector, ScoreSelector):
            raise RequestError(
                f"{type(selector).__name__} chooses patches without scores, and --prior adds to "
                "scores; leave --prior out"
            )
        self.weights = dict(weights)
        sizes = SelectorOptions(image_size=selector.image_size, patch_size=selector.patch_size)
        self._selectors = {name: create_selector(name, sizes) for name in weights}

    def add(self, scores: Tensor, images: Tensor, keys: Sequence[str]) -> Tensor:
        """Returns what patches are kept by: see `with_priors`.

        Args:
            scores: (B, L) of the selector.
            images: (B, 3, S, S), normalized by ImageNet's mean and standard deviation.
            keys: (B,) of the samples.
        """
        maps = {
            name: prior.scores(images, keys)
            for name, prior in self._selectors.items()
            if isinstance(prior, ScoreSelector)
        }
        return with_priors(scores, maps, self.weights)
