"""The tables of `evaluate images`: how well a classifier does with the patches that were kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.evaluation.rows import FigureRow, Values, as_ratio, with_intervals

FULL_IMAGE, NOTHING_KEPT = "full image", "nothing kept"
"""Sources beside the selections: what they lose against, and what the filling alone gives away."""
MEASURES = ("top1", "top5", "probability", "drop")
"""Of one image: whether its class is the first, or among the first five, 0 or 1; the probability of
its class by the classifier's softmax; and how much of that the hidden patches cost."""
_TOP = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row(FigureRow):
    classifier: str
    filling: str
    """What stood in the hidden patches; `none`: the classifier was given the kept tokens alone"""
    source: str
    keep_ratio: float
    kept: int
    num_images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRow(_Row):
    """One source at one keep ratio: means of `MEASURES` over images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDifferenceRow(_Row):
    """A source minus a reference on the same images; certain where an interval leaves 0 out."""

    reference: str


def image_measures(logits: Tensor, classes: Tensor, full: Tensor | None = None) -> Values:
    """Returns `MEASURES` (B, 4) of B images, float64.

    Of classes with equal logits the one of the lower number is the first. The drop is the true
    class's probability on the full image minus that on the kept patches; below 0 where they do
    better.

    Args:
        logits: (B, C), finite.
        classes: int64 (B,), the true ones.
        full: logits of the full images; None: these are.
    """
    logits = logits.double().cpu()
    true = logits.gather(1, classes[:, None])
    is_before = torch.arange(logits.shape[1]) < classes[:, None]
    rank = ((logits > true) | ((logits == true) & is_before)).sum(dim=1)
    probability = _probability(logits, classes)
    of_full = probability if full is None else _probability(full.double().cpu(), classes)
    columns = [(rank < 1).double(), (rank < _TOP).double(), probability, of_full - probability]
    values: Values = torch.stack(columns, dim=1).numpy()
    return values


def _probability(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.softmax(dim=1).gather(1, classes[:, None])[:, 0]


def image_rows(
    facts: Mapping[str, Any], tables: Mapping[str, Values], *, seed: int, draws: int
) -> list[ImageRow]:
    """Returns the row of every source.

    Args:
        facts: what the rows have in common: every field but source and figures.
        tables: `MEASURES` (N, 4) of the same N images, by source.
        seed: of the bootstrap, like `draws`: see `ltrp_core.bootstrap.bootstrap_interval`.
    """
    figures = with_intervals(_ratios(tables), seed, draws)
    return [ImageRow(source=source, **facts, figures=figures[source]) for source in tables]


def image_differences(
    facts: Mapping[str, Any],
    tables: Mapping[str, Values],
    pairs: Sequence[tuple[str, str]],
    *,
    seed: int,
    draws: int,
) -> list[ImageDifferenceRow]:
    """Returns what the first of each pair is better by, where both are there; see `image_rows`."""
    there = [(a, b) for a, b in pairs if a in tables and b in tables]
    figures = with_intervals(
        _ratios({(a, b): tables[a] - tables[b] for a, b in there}), seed, draws
    )
    return [
        ImageDifferenceRow(source=a, reference=b, **facts, figures=figures[a, b]) for a, b in there
    ]


def _ratios(tables: Mapping[Any, Values]) -> dict[tuple[Any, str], tuple[Values, Values]]:
    return {
        (owner, name): as_ratio(np.asarray(table)[:, column])
        for owner, table in tables.items()
        for column, name in enumerate(MEASURES)
    }
