"""How each source of an evaluation is drawn, on every plot and figure alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stages.evaluation.sources import (
    BORDER,
    CENTER,
    ORACLE,
    RANDOM,
    TEACHER,
    VARIANCE,
    is_selection,
    label_of,
    labels_in,
    top_only,
    without_prior,
)


class Style(NamedTuple):
    """How a line is drawn: color on each page, dash, marker, width in points."""

    light: str
    dark: str
    dash: str = "-"
    marker: str = "o"
    width: float = 1.5


# Okabe and Ito's colors, lightened for the dark page; dash and marker differ as well.
SELECTED = Style("#0072b2", "#56b4e9", width=2.6)
"""The first selection."""
_FURTHER = (
    Style("#8a6d00", "#e6c229", marker="P", width=2.0),
    Style("#7b3fa0", "#c39bd8", marker="X", width=2.0),
    Style("#b3123f", "#f0718f", marker="p", width=2.0),
    Style("#00707f", "#5cc8d6", marker="h", width=2.0),
    Style("#5b4636", "#c4a78f", marker="8", width=2.0),
    Style("#c2410c", "#ff8a50", marker="^", width=2.0),
    Style("#2f7d32", "#6fd07a", marker="D", width=2.0),
    Style("#1b2a8f", "#9fb0ff", marker="v", width=2.0),
    Style("#c2188b", "#ff7ad1", marker="<", width=2.0),
    Style("#5d7300", "#c6e04a", marker=">", width=2.0),
    Style("#3d1e3d", "#f5e9f5", marker="*", width=2.0),
)
"""Selections beside the first one; they come round again after the last, with another dash."""
_MANY = 5
"""With as many selections references are thin and gray, for want of colors; there is no oracle,
which would press all others together; and the axis shows what there is, not all from 0."""
_DASHES = ("-", "-.", ":")
_DASHED = (("--", "s"), (":", "d"))  # the k best alone, then those without priors
REFERENCE_STYLES = {
    TEACHER: Style("#c65000", "#ee8a45", marker="^"),
    BORDER: Style("#4f7a1c", "#a2cf63", "--", "<"),
    VARIANCE: Style("#008562", "#2fc59a", marker="D"),
    CENTER: Style("#a8497f", "#dd8fbb", marker="v"),
    RANDOM: Style("#6d7278", "#9da3a9", ":", "x"),
    ORACLE: Style("#22272c", "#eceff1", "-.", "*"),
}
_GRAY_DASHES = {TEACHER: "-", BORDER: "--", VARIANCE: "-.", CENTER: ":", RANDOM: ":", ORACLE: "-"}
_GRAY = ("#6d7278", "#9da3a9")


def drawn_sources(sources: Iterable[str]) -> list[str]:
    """Returns the sources that have a line.

    One selection has all of its lines. Of several each has one: as it is stored, or its k best
    alone where it is stored at none of the keep ratios. Beside many there is no oracle. The tables
    have all.
    """
    names = list(dict.fromkeys(sources))
    labels = labels_in(names)
    if len(labels) < 2:
        return names
    left_out = {ORACLE} if are_many(labels) else set()
    own = {label if label in names else top_only(label) for label in labels}
    return [name for name in names if name in own or not (is_selection(name) or name in left_out)]


def are_many(labels: Sequence[str]) -> bool:
    """Returns whether there are so many selections that references step back."""
    return len(labels) >= _MANY


def band_alpha(num_selections: int) -> float:
    """Returns how dense the bands of intervals are: the fainter, the more of them overlap."""
    return 0.16 if num_selections < 3 else 0.1 if num_selections < _MANY else 0.05


def styles_of(sources: Iterable[str]) -> dict[str, Style]:
    """Returns how each source of an evaluation is drawn: selections by their place, in order."""
    names = list(dict.fromkeys(sources))
    labels = labels_in(names)
    found: dict[str, Style] = {}
    for name in names:
        if not is_selection(name):
            found[name] = REFERENCE_STYLES[name]
            if are_many(labels):
                found[name] = Style(*_GRAY, _GRAY_DASHES[name], "", 1.0)
            continue
        place = labels.index(label_of(name))
        turn, number = divmod(place - 1, len(_FURTHER))
        style = SELECTED if place == 0 else _FURTHER[number]
        style = style._replace(dash=_DASHES[max(turn, 0) % len(_DASHES)])
        if are_many(labels) and place:
            style = style._replace(width=1.6)
        if name != label_of(name):
            dash, marker = _DASHED[name == without_prior(label_of(name))]
            style = style._replace(dash=dash, marker=marker, width=1.5)
        found[name] = style
    return found
