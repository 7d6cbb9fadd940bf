"""The report's plots that are no lines: how scores are distributed, how far heads look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.styles import REFERENCE_STYLES, SELECTED, Style
from pipeline.plots import INK, Plot, Theme, dress, write_plot
from pipeline.report.cache_figures import ScoreFigures
from stages.report import AttentionProfile

_MODELS = (REFERENCE_STYLES["teacher"], SELECTED)
_EVEN = 0.5214
"""Mean distance of two points of a unit square: what attention that is spread evenly reaches."""


def plot_scores(figures: ScoreFigures, folder: Path, name: str) -> Plot:
    """Writes the histogram of a cache's scores into `folder`."""
    color = SELECTED

    def paint(axes: Any, theme: Theme) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        share = 100 * figures.counts / max(figures.num_scores, 1)
        axes.stairs(share, figures.edges, fill=True, color=getattr(color, theme), alpha=0.85)
        axes.axvline(figures.quartiles[2], color=INK[theme], linewidth=1, linestyle="--")
        axes.annotate(
            f"median {figures.quartiles[2]:.3g}",
            xy=(figures.quartiles[2], 1),
            xycoords=("data", "axes fraction"),
            xytext=(5, -9),
            textcoords="offset points",
            color=INK[theme],
        )
        if figures.is_log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(figures.edges[0], figures.edges[-1])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("share of scores, %", color=INK[theme])
        axes.tick_params(which="minor", length=0)
        dress(axes, theme, figures.name + (", logarithmic" if figures.is_log else ""))

    least, quarter, half, three, most = figures.quartiles
    return write_plot(
        folder / name,
        paint,
        title=f"Distribution of the {figures.name}s",
        alt=(
            f"Histogram of {figures.num_scores} {figures.name}s from {least:.3g} to {most:.3g}; "
            f"quartiles {quarter:.3g}, {half:.3g} and {three:.3g}."
        ),
        box=(0.13, 0.16, 0.84, 0.79),
    )


def plot_attention(profiles: Sequence[AttentionProfile], folder: Path) -> list[Plot]:
    """Writes a plot a model, a dot a head: layer against distance (Fig. 8), all on one scale."""
    top = max((profile.distances.max() for profile in profiles), default=1.0)
    even = max((_EVEN * profile.image_size for profile in profiles), default=0.0)
    plots = []
    for number, profile in enumerate(profiles):
        style = _MODELS[number % len(_MODELS)]
        plots.append(
            _plot_profile(profile, style, 1.2 * max(top, even), folder / f"heads-{number}")
        )
    return plots


def _plot_profile(profile: AttentionProfile, style: Style, top: float, stem: Path) -> Plot:
    layers, heads = profile.distances.shape

    def paint(axes: Any, theme: Theme) -> None:
        from matplotlib.ticker import MaxNLocator

        color = getattr(style, theme)
        number = np.arange(1, layers + 1)
        axes.axhline(_EVEN * profile.image_size, color=INK[theme], linewidth=0.8, linestyle=":")
        axes.annotate(
            "dotted: attention that is spread evenly",
            xy=(1, 1),
            xycoords="axes fraction",
            xytext=(-2, -2),
            textcoords="offset points",
            ha="right",
            va="top",
            color=INK[theme],
            fontsize=8.5,
        )
        mean = profile.distances.mean(axis=1)
        axes.plot(number, mean, color=color, linewidth=1, alpha=0.5)
        axes.plot(
            np.repeat(number, heads),
            profile.distances.ravel(),
            "o",
            color=color,
            markersize=5.5,
            alpha=0.75,
            markeredgewidth=0,
        )
        axes.set_xlim(0.4, layers + 0.6)
        axes.set_ylim(0, top)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        axes.set_ylabel("mean attention distance, px", color=INK[theme])
        dress(axes, theme, "layer")

    spans = "; ".join(
        f"layer {layer + 1}: {profile.distances[layer].min():.0f} to "
        f"{profile.distances[layer].max():.0f}"
        for layer in range(layers)
    )
    return write_plot(
        stem,
        paint,
        title=f"{profile.name}: {layers} layers of {heads} heads",
        alt=f"Mean attention distance in pixels of the heads of the {profile.name}. {spans}.",
        box=(0.12, 0.16, 0.85, 0.79),
    )
