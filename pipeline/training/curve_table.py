"""The curve of a training run as a table for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pipeline.plots import MEASURES

_ROWS = 12


def format_curve(
    rows: Sequence[Mapping[str, float]], measures: Collection[str] = tuple(MEASURES)
) -> str:
    """Returns a text table: one row per epoch, or evenly spaced ones where there are many.

    Args:
        rows: of a curve.
        measures: that have a column, where the last row has them.
    """
    if not rows:
        return ""
    names = ["epoch", "loss", "lr", *(name for name in measures if name in rows[-1])]
    last = len(rows) - 1
    shown = sorted({round(i * last / min(_ROWS - 1, last)) if last else 0 for i in range(_ROWS)})
    cells = [names] + [
        [_cell(name, rows[i].get(name)) for name in names] for i in shown if i <= last
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    )


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if name == "epoch" else f"{value:.3g}" if name == "lr" else f"{value:.4f}"
