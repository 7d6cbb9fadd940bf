"""The tables of an evaluation: what is measured of which source, and how sure one may be of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltrp_core.patch_metrics import bootstrap_ratios

RANKER, TOP_K, TEACHER = "ranker", "ranker, top-k only", "teacher"
VARIANCE, CENTER, RANDOM, ORACLE = "patch variance", "center", "random", "oracle"
SOURCES = (RANKER, TOP_K, TEACHER, VARIANCE, CENTER, RANDOM, ORACLE)
COMPARED, REFERENCES = (RANKER, TOP_K), (TEACHER, VARIANCE, CENTER, RANDOM)
"""The differences that are reported: each of the first minus each of the second."""
MEASURES = ("precision", "recall", "f1", "iou")
IMAGE_COLUMNS = (*MEASURES, "intersection", "kept_pixels", "foreground")
"""What is known of one image: measures, nan where undefined; then pixels, means over the draws."""
_PIXELS = slice(len(MEASURES), len(IMAGE_COLUMNS))

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRow:
    """One source at one keep ratio; means over the images with foreground, then pooled over them.

    `low` and `high` are the ends of 95 % bootstrap intervals over images.
    """

    categories: str = "all"
    source: str
    keep_ratio: float
    kept: int
    num_images: int
    precision: float
    precision_low: float
    precision_high: float
    recall: float
    recall_low: float = float("nan")
    recall_high: float = float("nan")
    f1: float
    f1_low: float = float("nan")
    f1_high: float = float("nan")
    iou: float
    iou_low: float = float("nan")
    iou_high: float = float("nan")
    pooled_precision: float
    pooled_precision_low: float = float("nan")
    pooled_precision_high: float = float("nan")
    pooled_recall: float
    pooled_recall_low: float = float("nan")
    pooled_recall_high: float = float("nan")
    pooled_f1: float
    pooled_f1_low: float = float("nan")
    pooled_f1_high: float = float("nan")
    pooled_iou: float
    pooled_iou_low: float = float("nan")
    pooled_iou_high: float = float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferenceRow:
    """A source minus a reference on the same images; certain where an interval leaves 0 out."""

    categories: str
    source: str
    reference: str
    keep_ratio: float
    kept: int
    num_images: int
    precision: float
    precision_low: float
    precision_high: float
    recall: float
    recall_low: float
    recall_high: float
    f1: float
    f1_low: float
    f1_high: float
    iou: float
    iou_low: float
    iou_high: float


def source_rows(
    facts: Mapping[str, Any], tables: Mapping[str, Values], *, seed: int, draws: int
) -> list[EvaluationRow]:
    """Returns the row of every source.

    Args:
        facts: what the rows have in common: categories, keep_ratio, kept, num_images.
        tables: `IMAGE_COLUMNS` (N, 7) of the same N images, all with foreground, by source.
        seed: of the bootstrap, like `draws`: see `ltrp_core.patch_metrics.bootstrap_interval`.
    """
    ratios: dict[tuple[str, str], tuple[Values, Values]] = {}
    for source, table in tables.items():
        for column, name in enumerate(MEASURES):
            ratios[source, name] = _as_ratio(table[:, column])
        both, kept, foreground = table[:, _PIXELS].T
        ratios[source, "pooled_precision"] = both, kept
        ratios[source, "pooled_recall"] = both, foreground
        ratios[source, "pooled_f1"] = 2 * both, kept + foreground
        ratios[source, "pooled_iou"] = both, kept + foreground - both
    figures = _with_intervals(ratios, seed, draws)
    return [EvaluationRow(source=source, **facts, **figures[source]) for source in tables]


def difference_rows(
    facts: Mapping[str, Any], tables: Mapping[str, Values], *, seed: int, draws: int
) -> list[DifferenceRow]:
    """Returns the row of each of `COMPARED` minus each of `REFERENCES`; arguments as above."""
    pairs = [(a, b) for a in COMPARED for b in REFERENCES if a in tables and b in tables]
    ratios = {
        ((a, b), name): _as_ratio(tables[a][:, column] - tables[b][:, column])
        for a, b in pairs
        for column, name in enumerate(MEASURES)
    }
    figures = _with_intervals(ratios, seed, draws)
    return [DifferenceRow(source=a, reference=b, **facts, **figures[a, b]) for a, b in pairs]


def _as_ratio(values: Values) -> tuple[Values, Values]:
    """Returns the (N,) above and below of which the mean over defined values is the ratio."""
    is_defined = ~np.isnan(values)
    return np.where(is_defined, values, 0.0), is_defined.astype(np.float64)


def _with_intervals(
    ratios: Mapping[tuple[Any, str], tuple[Values, Values]], seed: int, draws: int
) -> dict[Any, dict[str, Any]]:
    """Returns name, name_low and name_high of each ratio of sums, by the first of its two names."""
    figures: dict[Any, dict[str, Any]] = {}
    if not ratios:
        return figures
    above, below = (np.stack(arrays, axis=1) for arrays in zip(*ratios.values(), strict=True))
    low, high = bootstrap_ratios(above, below, seed=seed, draws=draws)
    with np.errstate(invalid="ignore"):
        values = above.sum(axis=0) / below.sum(axis=0)
    for place, (owner, name) in enumerate(ratios):
        figures.setdefault(owner, {}).update(
            {
                name: float(values[place]),
                f"{name}_low": float(low[place]),
                f"{name}_high": float(high[place]),
            }
        )
    return figures
