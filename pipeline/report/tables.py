"""The evaluation on the page: one table per group of categories, one block per keep ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.plots import METRICS, plot_evaluation
from stages.evaluation.rows import DifferenceRow, EvaluationRow, one_each, only_reference
from stages.evaluation.sources import (
    BORDER,
    CENTER,
    ORACLE,
    RANDOM,
    TEACHER,
    VARIANCE,
    label_of,
    labels_in,
    without_prior,
)

_MEANINGS = {
    TEACHER: "the k best by the masked autoencoder's own mean score, which the ranker learned from",
    BORDER: "the k patches whose color is farthest from any at the edge of the image",
    VARIANCE: "the k patches whose pixels vary most",
    CENTER: "the k patches closest to the middle",
    RANDOM: "k patches at random, mean of many draws",
    ORACLE: "patches by how much of an object they hold: knows the labels, the upper bound",
}
_GROUPS = {
    "all": "All categories",
    "learned": "Categories that are labels of ImageNet-1K",
    "unseen": "Categories that ImageNet-1K has no label of",
    "unseen-strict": "Categories far from every label of ImageNet-1K",
}


def _meaning(source: str) -> str:
    """Returns what a source keeps, in words."""
    if source in _MEANINGS:
        return _MEANINGS[source]
    if source == label_of(source):
        return "the selection as stored: the best patches by its scores, then homogeneous ones"
    if source == without_prior(label_of(source)):
        return f"the k best patches by the selector's own scores, of {label_of(source)}"
    return f"the k best patches by the scores of {label_of(source)}"


def evaluation_context(
    rows: Sequence[EvaluationRow], differences: Sequence[DifferenceRow], folder: Path
) -> dict[str, Any]:
    """Writes the plots into `folder`; returns what the template is filled with."""
    groups = []
    for number, name in enumerate(dict.fromkeys(row.categories for row in rows)):
        own = [row for row in rows if row.categories == name]
        groups.append(
            {
                "name": _GROUPS.get(name, name),
                "num_images": sorted({row.num_images for row in own}),
                "plots": plot_evaluation(own, folder, f"e{number}"),
                "blocks": _blocks(own),
                "differences": _differences([d for d in differences if d.categories == name]),
            }
        )
    return {
        "groups": groups,
        "metrics": list(METRICS.values()),
        "meanings": {s: _meaning(s) for s in dict.fromkeys(r.source for r in rows)},
    }


def _blocks(rows: Sequence[EvaluationRow]) -> list[dict[str, Any]]:
    """Returns one block per keep ratio, the best label-free figures of each marked."""
    blocks = []
    for ratio in sorted({row.keep_ratio for row in rows}):
        own = [row for row in rows if row.keep_ratio == ratio]
        best = {}
        for metric in METRICS:
            values = [row[metric] for row in own if row.source != ORACLE]
            # As printed: two that read alike are both the best.
            best[metric] = max((f"{v:.3f}" for v in values if math.isfinite(v)), default="")
        lines = [
            {
                "source": row.source,
                "is_oracle": row.source == ORACLE,
                "cells": [_cell(row, metric, best[metric]) for metric in METRICS],
            }
            for row in own
        ]
        blocks.append({"label": f"{100 * ratio:g} %", "k": own[0].kept, "lines": lines})
    return blocks


def _differences(rows: Sequence[DifferenceRow]) -> list[dict[str, Any]]:
    """Returns tables: a title, the head of the names, and one block per keep ratio.

    One of each selection as it is stored, and what priors add to the k best alone: without priors
    nothing else is known. Or one of all, where one source was chosen to compare with.
    """
    chosen = only_reference(rows)
    if chosen is not None:
        title = f"Each minus {chosen}, image by image"
        named = [(row.source, row) for row in one_each(rows)]
        return [{"title": title, "first": "Source", "blocks": _difference_blocks(named)}]
    own = {
        label: [row for row in rows if row.source == label or row.reference == without_prior(label)]
        for label in labels_in(row.source for row in rows)
    }
    return [
        {
            "title": f"{label[:1].upper()}{label[1:]} minus each reference, image by image",
            "first": "Minus",
            "blocks": _difference_blocks([(_reference(row), row) for row in of_label]),
        }
        for label, of_label in own.items()
        if of_label
    ]


def _reference(row: DifferenceRow) -> str:
    return row.reference + ("" if row.source == label_of(row.source) else " (top-k only)")


def _difference_blocks(rows: Sequence[tuple[str, DifferenceRow]]) -> list[dict[str, Any]]:
    """Returns one block per keep ratio, a line for each row under its name."""
    blocks: dict[float, dict[str, Any]] = {}
    for name, row in rows:
        empty = {"label": f"{100 * row.keep_ratio:g} %", "k": row.kept, "lines": []}
        cells = []
        for metric in METRICS:
            low, high = (row[f"{metric}_{end}"] for end in ("low", "high"))
            cells.append(
                {
                    "text": f"{row[metric]:+.3f}",
                    "interval": f"{low:+.3f} to {high:+.3f}",
                    "best": low > 0 or high < 0,
                }
            )
        line = {"source": name, "is_oracle": False, "cells": cells}
        blocks.setdefault(row.keep_ratio, empty)["lines"].append(line)
    return [blocks[ratio] for ratio in sorted(blocks)]


def _cell(row: EvaluationRow, metric: str, best: str) -> dict[str, Any]:
    text = f"{row[metric]:.3f}"
    low, high = (row[f"{metric}_{end}"] for end in ("low", "high"))
    interval = f"{low:.3f}\N{EN DASH}{high:.3f}" if math.isfinite(low + high) else None
    return {"text": text, "interval": interval, "best": row.source != ORACLE and text == best}
