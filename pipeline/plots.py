"""The report's plots as SVG, each for a light and a dark page, and its heat-map colors.

Figures are made without pyplot: no backend is chosen, no global state is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.end_labels import EndLabel, label_ends
from pipeline.evaluation.styles import (
    REFERENCE_STYLES,
    SELECTED,
    Style,
    are_many,
    band_alpha,
    drawn_sources,
    styles_of,
)
from stages.evaluation.rows import EvaluationRow
from stages.evaluation.sources import (
    CENTER,
    RANDOM,
    TEACHER,
    VARIANCE,
    is_selection,
    label_of,
    labels_in,
)

Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
METRICS = {"precision": "Precision", "recall": "Recall", "f1": "F1", "iou": "IoU"}
MEASURES = {
    "cover_tau": "tau-b of whole maps",
    "tau": "Kendall's tau-b",
    "rho": "Spearman's rho",
    "ndcg5": "NDCG@5",
    "top1": "Top-1 agreement",
}
"""Agreement of a ranker with held-out scores; they share one plot."""
CEILINGS = {"cover_tau": "teacher's own maps", "tau": "teacher's own tau-b"}
"""How repeatable the teacher's own order is, drawn beside the measure of the same name."""
_NOT_PLOTTED = ("epoch", "lr")
"""The axis, and the schedule: an option, not a result."""
INK = {"light": "#3f474f", "dark": "#c3cad1"}
LINES = {"light": "#e3e6e8", "dark": "#343b43"}
_SIZE_INCHES = (4.4, 2.8)
_LINES, _NAME_INCHES = 11, 1.42
"""As many names, as wide as that, find room beside a plot of that size"""
_LINE_INCHES, _LETTER_INCHES, _BOLD_INCHES = 0.2, 0.072, 0.086


_SERIES = (SELECTED, *(REFERENCE_STYLES[n] for n in (TEACHER, VARIANCE, CENTER, RANDOM)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """One plot of the page: a file for each theme."""

    title: str
    alt: str
    light: str
    dark: str
    size: tuple[float, float] = _SIZE_INCHES
    """Width and height in inches"""


class _Line(NamedTuple):
    label: str
    points: list[tuple[float, float]]
    style: Style
    band: list[tuple[float, float]] | None = None
    band_alpha: float = 0.16

    @property
    def is_bold(self) -> bool:
        return self.style.width > 1.5


def plot_evaluation(
    rows: Sequence[EvaluationRow], folder: Path, name: str = "evaluation"
) -> list[Plot]:
    """Writes one plot per metric, each source against the keep ratio, into `folder`.

    The bands are the 95 % bootstrap intervals of the selections. Where there are several, each has
    one line: see `drawn_sources`.

    Args:
        rows: of one group of categories.
        folder: exists.
        name: begins the file names.
    """
    plots = []
    for metric, title in METRICS.items():
        lines = list(_source_lines(rows, metric)) if rows else []
        if lines:
            ends = "; ".join(f"{line.label} {line.points[-1][1]:.3f}" for line in lines)
            ratio = max(row.keep_ratio for row in rows)
            plots.append(
                _write_themes(
                    folder / f"{name}-{metric}",
                    lines,
                    title=title,
                    alt=f"{title} against keep ratio. At {ratio:.0%}: {ends}.",
                    x_label="kept patches, %",
                    is_from_zero=not are_many(labels_in(row.source for row in rows)),
                )
            )
    return plots


def plot_curves(
    rows: Sequence[Mapping[str, float]],
    folder: Path,
    name: str,
    ceiling: Mapping[str, float] = MappingProxyType({}),
) -> list[Plot]:
    """Writes the plots of one training run into `folder`: each figure, then the measures together.

    Args:
        rows: one per epoch; a row need not hold every figure.
        folder: exists.
        name: begins the file names.
        ceiling: measure -> how well two draws of the teacher agree in it; a dotted line each for
            those of `CEILINGS` that `rows` hold.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in _NOT_PLOTTED))
    groups = [[key] for key in keys if key not in MEASURES]
    shared = [key for key in MEASURES if key in keys]
    plots = []
    for number, group in enumerate([*groups, shared] if shared else groups):
        lines = [
            _Line(MEASURES.get(key, key), _finite_points(rows, key), style)
            for key, style in zip(group, _SERIES, strict=False)
        ]
        title = "Agreement on held-out images" if group is shared else group[0].capitalize()
        lost = sum(key in row for row in rows for key in group) - sum(len(x.points) for x in lines)
        if lost:
            title += f" ({lost} value{' is' if lost == 1 else 's are'} not finite)"
        ends = [
            f"{x.label} from {x.points[0][1]:.4g} to {x.points[-1][1]:.4g}"
            for x in lines
            if x.points
        ]
        for line in list(_ceiling_lines(lines, group, ceiling)):
            lines.append(line)
            ends.append(f"{line.label} {line.points[0][1]:.4g}")
        plots.append(
            _write_themes(
                folder / f"{name}-{number}",
                lines,
                title=title,
                alt=f"{title} against epoch: {'; '.join(ends) or 'no finite value'}.",
                x_label="epoch",
            )
        )
    return plots


def _ceiling_lines(
    lines: Sequence[_Line], group: Sequence[str], ceiling: Mapping[str, float]
) -> Iterator[_Line]:
    for line, key in zip(lines, group, strict=False):
        height = ceiling.get(key, math.nan) if key in CEILINGS else math.nan
        if line.points and math.isfinite(height):
            ends = [(line.points[0][0], height), (line.points[-1][0], height)]
            yield _Line(CEILINGS[key], ends, line.style._replace(dash=":", marker="", width=1.2))


def heat_map(scores: NDArray[Any], grid: int) -> NDArray[np.uint8]:
    """Returns the colors of a score map, uint8 (g, g, 3), by the patches' ranks in it.

    Ranks, not values: a teacher's scores and a ranker's have no common unit, and a few large ones
    would leave the rest of the map dark. Equal scores share their mean rank.

    Args:
        scores: (L,), L = grid * grid, finite, higher = matters more.
        grid: patches per side.
    """
    from matplotlib import colormaps
    from scipy.stats import rankdata

    ranks = (rankdata(scores) - 1) / max(len(scores) - 1, 1)
    colors: NDArray[np.uint8] = colormaps["viridis"](ranks, bytes=True)[:, :3]
    return colors.reshape(grid, grid, 3)


def heat_scale(steps: int = 9) -> list[str]:
    """Returns the colors of `heat_map` from low to high, as CSS colors."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](value)) for value in np.linspace(0, 1, steps)]


def _source_lines(rows: Sequence[EvaluationRow], metric: str) -> Iterator[_Line]:
    drawn = drawn_sources(row.source for row in rows)
    labels = labels_in(drawn)
    for source, style in styles_of(row.source for row in rows).items():
        if source not in drawn:
            continue
        own = sorted((r for r in rows if r.source == source), key=lambda r: r.keep_ratio)
        points = [(100 * row.keep_ratio, row[metric]) for row in own]
        points = [point for point in points if math.isfinite(point[1])]
        band = None
        if is_selection(source) and (source == label_of(source) or len(labels) > 1):
            ends = [(r[f"{metric}_low"], r[f"{metric}_high"]) for r in own]
            is_whole = len(points) == len(own) and all(map(math.isfinite, sum(ends, ())))
            band = ends if is_whole else None
        if points:
            yield _Line(source, points, style, band, band_alpha(len(labels)))


def _finite_points(rows: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [
        (float(row.get("epoch", number)), float(row[key]))
        for number, row in enumerate(rows, start=1)
        if key in row and math.isfinite(row[key])
    ]


def write_plot(
    stem: Path,
    paint: Callable[[Any, Theme], None],
    *,
    title: str,
    alt: str,
    box: tuple[float, float, float, float] = (0.11, 0.16, 0.86, 0.8),
    size: tuple[float, float] = _SIZE_INCHES,
) -> Plot:
    """Writes `stem`-light.svg and `stem`-dark.svg.

    Args:
        stem: path without an ending.
        paint: called with the axes and the theme.
        title: stands above the plot on the page.
        alt: what the plot says, in words.
        box: left, bottom, width and height of the axes as shares of the figure.
        size: width and height of the figure in inches.
    """
    files = {theme: stem.with_name(f"{stem.name}-{theme}.svg") for theme in THEMES}
    for theme, path in files.items():
        _write_svg(path, paint, theme, box, size)
    light, dark = files["light"].name, files["dark"].name
    return Plot(title=title, alt=alt, light=light, dark=dark, size=size)


def _write_svg(
    path: Path,
    paint: Callable[[Any, Theme], None],
    theme: Theme,
    box: tuple[float, float, float, float],
    size: tuple[float, float],
) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text as outlines and a fixed salt: the file looks the same everywhere and is reproducible.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": path.name, "font.size": 9.5}):
        figure = Figure(figsize=size)
        paint(figure.add_axes(box), theme)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})


def _write_themes(
    stem: Path,
    lines: Sequence[_Line],
    *,
    title: str,
    alt: str,
    x_label: str,
    is_from_zero: bool = True,
) -> Plot:
    def paint(axes: Any, theme: Theme) -> None:
        _paint_lines(axes, theme, lines, x_label, is_from_zero)

    if len(lines) == 1:
        return write_plot(stem, paint, title=title, alt=alt)
    # Many lines, or long names, need more room beside the axes, which keep their width.
    width, height = _SIZE_INCHES
    names = [len(x.label) * (_BOLD_INCHES if x.is_bold else _LETTER_INCHES) for x in lines]
    wide = width + max(0.0, max(names) - _NAME_INCHES)
    high = height + _LINE_INCHES * max(0, len(lines) - _LINES)
    left, above, below = 0.11 * width / wide, 0.04 * height / high, 0.16 * height / high
    box = (left, below, 0.5 * width / wide, 1 - above - below)
    return write_plot(stem, paint, title=title, alt=alt, box=box, size=(wide, high))


def _paint_lines(
    axes: Any, theme: Theme, lines: Sequence[_Line], x_label: str, is_from_zero: bool
) -> None:
    from matplotlib.ticker import MaxNLocator

    for line in lines:
        _draw_line(axes, line, theme)
    ratios = sorted({x for line in lines for x, _ in line.points})
    if x_label == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    else:
        axes.set_xticks(ratios, [f"{x:g}" for x in ratios])
        if is_from_zero:
            axes.set_ylim(bottom=0)
    axes.margins(x=0.04)
    dress(axes, theme, x_label)
    if len(lines) > 1:
        names = [
            EndLabel(x.label, x.points[-1], getattr(x.style, theme), x.is_bold)
            for x in lines
            if x.points
        ]
        label_ends(axes, names)


def _draw_line(axes: Any, line: _Line, theme: Theme) -> None:
    style, color = line.style, getattr(line.style, theme)
    x, y = [p[0] for p in line.points], [p[1] for p in line.points]
    if line.band is not None:
        low, high = zip(*line.band, strict=True)
        axes.fill_between(x, low, high, color=color, alpha=line.band_alpha, linewidth=0)
    # Dots on thirty epochs or more would hide the line.
    marker = style.marker if len(x) < 30 else None
    axes.plot(x, y, style.dash, color=color, marker=marker, lw=style.width, ms=4.5)


def dress(axes: Any, theme: Theme, x_label: str) -> None:
    """Gives axes the colors of a theme: a grid, numbers and names, no frame."""
    axes.set_xlabel(x_label, color=INK[theme])
    axes.grid(axis="y", color=LINES[theme], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK[theme], length=0, pad=5)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LINES[theme])
