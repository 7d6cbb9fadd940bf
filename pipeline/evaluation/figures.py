"""The evaluation as one figure per group of categories: Fig. 5, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.evaluation.end_labels import EndLabel, label_ends
from pipeline.evaluation.styles import are_many, band_alpha, drawn_sources, styles_of
from pipeline.plots import METRICS
from stages.evaluation.rows import EvaluationRow
from stages.evaluation.sources import labels_in

_SIZE_INCHES = (8.4, 5.6)
_DOTS_PER_INCH = 150
_LEGEND_LINES = 10
"""More lines than these are named at their ends, in a figure with room for that"""
_LABELS_INCHES, _LINE_INCHES = 2.6, 0.2
_INK, _BAND_ALPHA = "#22272c", 0.14


def write_figures(folder: Path, rows: Sequence[EvaluationRow]) -> list[Path]:
    """Writes `evaluation-GROUP.png` and `.svg` for every group of categories; returns the files.

    Four panels: precision, recall, F1 and IoU of every source against the share of kept patches;
    the bands are the 95 % bootstrap intervals. Of several selections each has one line; the names
    of many stand at the lines' ends.
    """
    files = []
    for group in dict.fromkeys(row.categories for row in rows):
        own = [row for row in rows if row.categories == group]
        files += _write_figure(folder / f"evaluation-{group}", own)
    return files


def _write_figure(stem: Path, rows: Sequence[EvaluationRow]) -> list[Path]:
    title = f"{rows[0].categories} categories, {rows[0].num_images} images"
    return draw_figure(stem, rows, METRICS, title=title, shape=(2, 2), size=_SIZE_INCHES)


def draw_figure(
    stem: Path,
    rows: Sequence[Any],
    panels: Mapping[str, str],
    *,
    title: str,
    shape: tuple[int, int],
    size: tuple[float, float],
    across: Mapping[str, Any] = MappingProxyType({}),
) -> list[Path]:
    """Writes `stem`.png and .svg: a panel per measure, a line per drawn source; returns both.

    Args:
        stem: path without an ending.
        rows: with `source`, `keep_ratio` and the measures' columns.
        panels: title by measure.
        title: of the figure.
        shape: rows and columns of panels.
        size: of the figure in inches; larger if it has many lines.
        across: rows that are one level at every keep ratio, by their label.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    files = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".png", ".svg")]
    drawn = drawn_sources(row.source for row in rows)
    count = len(drawn) + len(across)
    is_named_at_ends = count > _LEGEND_LINES
    if is_named_at_ends:
        wide = size[0] + (shape[1] - 1) * _LABELS_INCHES
        size = wide, max(size[1], shape[0] * (_LINE_INCHES * count + 0.9))
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": stem.name, "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(*shape, sharex=True, squeeze=False)
        for panel, (metric, words) in zip(axes.ravel(), panels.items(), strict=True):
            _draw_panel(panel, rows, metric, across, is_named_at_ends)
            panel.set_title(words, loc="left")
        for panel in axes[-1]:
            panel.set_xlabel("kept patches, %")
        if not is_named_at_ends:
            handles, labels = axes[0, 0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside right upper", frameon=False)
        figure.suptitle(title, x=0.01, ha="left")
        figure.savefig(files[0], dpi=_DOTS_PER_INCH, metadata={"Software": None})
        figure.savefig(files[1], metadata={"Date": None})
    return files


def _draw_panel(
    axes: Any,
    rows: Sequence[Any],
    metric: str,
    across: Mapping[str, Any],
    is_named_at_ends: bool,
) -> None:
    for dash, (label, row) in zip(cycle(("--", ":")), across.items(), strict=False):
        axes.axhline(row[metric], color=_INK, ls=dash, lw=1.2, label=label)
    names, bottom = _draw_lines(axes, rows, metric)
    ratios = sorted({100 * row.keep_ratio for row in rows})
    axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    if not are_many(labels_in(row.source for row in rows)):
        axes.set_ylim(bottom=bottom)
    axes.grid(axis="y", color="#e3e6e8", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    if is_named_at_ends:
        edge = axes.get_xlim()[1]
        label_ends(
            axes, [*names, *(EndLabel(x, (edge, row[metric]), _INK) for x, row in across.items())]
        )


def _draw_lines(axes: Any, rows: Sequence[Any], metric: str) -> tuple[list[EndLabel], float]:
    """Draws the sources that have a line; returns their names and the lowest end of a band."""
    names, bottom = [], 0.0
    drawn = drawn_sources(row.source for row in rows)
    alpha = min(_BAND_ALPHA, band_alpha(len(labels_in(drawn))))
    for source, style in styles_of(row.source for row in rows).items():
        own = sorted((row for row in rows if row.source == source), key=lambda r: r.keep_ratio)
        own = [row for row in own if math.isfinite(row[metric])]
        if not own or source not in drawn:
            continue
        x = [100 * row.keep_ratio for row in own]
        low, high = ([row[f"{metric}_{end}"] for row in own] for end in ("low", "high"))
        bottom = min(bottom, *(end for end in low if math.isfinite(end)), 0.0)
        if style.marker:  # references beside many selections are but thin gray lines
            axes.fill_between(x, low, high, color=style.light, alpha=alpha, linewidth=0)
        axes.plot(
            x,
            [row[metric] for row in own],
            style.dash,
            color=style.light,
            marker=style.marker,
            lw=style.width,
            ms=4,
            label=source,
        )
        names.append(EndLabel(source, (x[-1], own[-1][metric]), style.light, style.width > 1.5))
    return names, bottom
