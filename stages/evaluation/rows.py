"""The tables of an evaluation: what is measured of which source, and how sure one may be of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ltrp_core.bootstrap import bootstrap_ratios
from stages.evaluation.sources import (
    REFERENCES,
    label_of,
    sources_of,
    top_only,
    without_prior,
)

MEASURES = ("precision", "recall", "f1", "iou")
IMAGE_COLUMNS = (*MEASURES, "intersection", "kept_pixels", "foreground")
"""What is known of one image: measures, nan where undefined; then pixels, means over the draws."""
_PIXELS = slice(len(MEASURES), len(IMAGE_COLUMNS))
_ENDS = ("", "_low", "_high")

Values = NDArray[np.float64]


class Interval(NamedTuple):
    """A figure and the ends of its 95 % bootstrap interval over images."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FigureRow:
    """Figures and what they are of; the fields of a subclass are the names of a row."""

    figures: Mapping[str, Interval]
    """By measure"""
    once_absent: ClassVar[Mapping[str, Any]] = {}
    """What a row of an older file, which lacks these columns, has there"""

    def __getitem__(self, column: str) -> float:
        """Returns a figure or an end of its interval by its column: `iou`, `iou_low`, `iou_high`.

        Raises:
            KeyError: there is none.
        """
        for place, end in enumerate(_ENDS):
            measure = column.removesuffix(end) if end and column.endswith(end) else column
            if measure in self.figures and measure + end == column:
                return self.figures[measure][place]
        raise KeyError(column)

    def flat(self) -> dict[str, Any]:
        """Returns the columns of a table: the row's names, then three per measure."""
        names = [field.name for field in fields(self) if field.name != "figures"]
        row = {name: getattr(self, name) for name in names}
        for measure, interval in self.figures.items():
            row |= {measure + end: x for end, x in zip(_ENDS, interval, strict=True)}
        return row

    @classmethod
    def from_flat(cls, row: Mapping[str, Any]) -> Self:
        """Returns the row whose columns are `row`; what it may lack is nan."""
        row = {**cls.once_absent, **row}
        names = [field.name for field in fields(cls) if field.name != "figures"]
        nan = float("nan")
        figures = {
            name: Interval(row[name], row.get(f"{name}_low", nan), row.get(f"{name}_high", nan))
            for name in row
            if name not in names and not name.endswith(("_low", "_high"))
        }
        return cls(**{name: row[name] for name in names}, figures=figures)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row(FigureRow):
    categories: str
    source: str
    keep_ratio: float
    kept: int
    num_images: int
    # What was evaluated before there were groups.
    once_absent: ClassVar[Mapping[str, Any]] = {"categories": "all"}


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRow(_Row):
    """One source at one keep ratio.

    `figures` has `MEASURES`, means over the images with foreground, then `pooled_` and each
    measure, of all their pixels together.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferenceRow(_Row):
    """A source minus a reference on the same images; certain where an interval leaves 0 out."""

    reference: str


def source_rows(
    facts: Mapping[str, Any], tables: Mapping[str, Values], *, seed: int, draws: int
) -> list[EvaluationRow]:
    """Returns the row of every source.

    Args:
        facts: what the rows have in common: categories, keep_ratio, kept, num_images.
        tables: `IMAGE_COLUMNS` (N, 7) of the same N images, all with foreground, by source.
        seed: of the bootstrap, like `draws`: see `ltrp_core.bootstrap.bootstrap_interval`.
    """
    ratios: dict[tuple[str, str], tuple[Values, Values]] = {}
    for source, table in tables.items():
        for column, name in enumerate(MEASURES):
            ratios[source, name] = as_ratio(table[:, column])
        both, kept, foreground = table[:, _PIXELS].T
        ratios[source, "pooled_precision"] = both, kept
        ratios[source, "pooled_recall"] = both, foreground
        ratios[source, "pooled_f1"] = 2 * both, kept + foreground
        ratios[source, "pooled_iou"] = both, kept + foreground - both
    figures = with_intervals(ratios, seed, draws)
    return [EvaluationRow(source=source, **facts, figures=figures[source]) for source in tables]


def difference_rows(
    facts: Mapping[str, Any],
    tables: Mapping[str, Values],
    labels: Sequence[str],
    *,
    against: str = "",
    seed: int,
    draws: int,
) -> list[DifferenceRow]:
    """Returns what sources are better by; arguments as above.

    Each selection, and its k best alone, minus each of `REFERENCES`; its k best minus those that it
    would be without its priors; and the first selection minus each other one. Or, `against` one
    source: every selection, its k best alone, and every reference minus that one.
    """
    own = [name for label in labels for name in sources_of(label)]
    if against:
        wanted = [(a, against) for a in (*own, *REFERENCES) if a != against]
    else:
        wanted = [(a, b) for a in own for b in REFERENCES]
        wanted += [(top_only(label), without_prior(label)) for label in labels]
        wanted += [(labels[0], b) for b in labels[1:]]
    pairs = [(a, b) for a, b in wanted if a in tables and b in tables]
    ratios = {
        ((a, b), name): as_ratio(tables[a][:, column] - tables[b][:, column])
        for a, b in pairs
        for column, name in enumerate(MEASURES)
    }
    figures = with_intervals(ratios, seed, draws)
    return [DifferenceRow(source=a, reference=b, **facts, figures=figures[a, b]) for a, b in pairs]


def only_reference(differences: Sequence[DifferenceRow]) -> str | None:
    """Returns the one source that all are compared with, if `--against` chose it; else None.

    Where it did not there are several: center and random are always among them.
    """
    found = {row.reference for row in differences}
    return found.pop() if len(found) == 1 else None


def one_each(differences: Sequence[DifferenceRow]) -> list[DifferenceRow]:
    """Returns the rows of which each selection has one at a keep ratio, references included.

    That is, as it is stored, or its k best alone where it is not.
    """
    there = {(name, row.keep_ratio) for row in differences for name in (row.source, row.reference)}
    return [
        row
        for row in differences
        if row.source == (label := label_of(row.source))
        or (row.source == top_only(label) and (label, row.keep_ratio) not in there)
    ]


def as_ratio(values: Values) -> tuple[Values, Values]:
    """Returns the (N,) above and below of which the mean over defined values is the ratio."""
    is_defined = ~np.isnan(values)
    return np.where(is_defined, values, 0.0), is_defined.astype(np.float64)


def with_intervals(
    ratios: Mapping[tuple[Any, str], tuple[Values, Values]], seed: int, draws: int
) -> dict[Any, dict[str, Interval]]:
    """Returns the interval of each ratio of sums, by the two parts of its name."""
    figures: dict[Any, dict[str, Interval]] = {}
    if not ratios:
        return figures
    above, below = (np.stack(arrays, axis=1) for arrays in zip(*ratios.values(), strict=True))
    low, high = bootstrap_ratios(above, below, seed=seed, draws=draws)
    with np.errstate(invalid="ignore"):
        values = above.sum(axis=0) / below.sum(axis=0)
    for place, (owner, name) in enumerate(ratios):
        interval = Interval(float(values[place]), float(low[place]), float(high[place]))
        figures.setdefault(owner, {})[name] = interval
    return figures
