"""Names written beside the ends of lines, where a legend would have the reader look them up."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

_GAP = 0.075
"""Least distance of two names as a share of the axes, while there is room for it."""


class EndLabel(NamedTuple):
    """A name, the end of its line in data coordinates, and how it is written."""

    text: str
    end: tuple[float, float]
    color: str
    is_bold: bool = False


def label_ends(axes: Any, labels: Sequence[EndLabel]) -> None:
    """Writes each name right of the axes, moved apart where ends are close; limits must be set."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    ends = [(label.end[1] - low) / (high - low) for label in labels]
    gap = min(_GAP, 1.0 / max(len(labels) - 1, 1))
    for label, end, place in zip(labels, ends, _moved_apart(ends, gap), strict=True):
        axes.annotate(
            label.text,
            xy=((label.end[0] - left) / (right - left), end),
            xytext=(1.13, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=label.color,
            va="center",
            parse_math=False,
            annotation_clip=False,
            weight="bold" if label.is_bold else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": label.color,
                "lw": 0.6,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )


def _moved_apart(places: Sequence[float], gap: float) -> list[float]:
    """Returns the places in the same order, from 0 to 1, at least `gap` apart, moved a little.

    Least squares by pooling: labels that would overlap become a block around their own mean. What
    of them is outside is then moved inside, and others only as far as it needs the room.

    Args:
        places: as shares of the height.
        gap: at most 1 / (their number - 1).
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    blocks: list[list[float]] = []
    for rank, index in enumerate(order):
        blocks.append([places[index] - gap * rank])
        while len(blocks) > 1 and fmean(blocks[-2]) >= fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = [fmean(block) for block in blocks for _ in block]
    moved = list(places)
    for rank, index in enumerate(order):
        # Below the axis stand its numbers, above the figure ends.
        highest = 1.0 - gap * (len(order) - 1 - rank)
        moved[index] = min(max(level[rank], 0.0) + gap * rank, highest)
    return moved
