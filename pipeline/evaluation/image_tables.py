"""What `evaluate images` found, as tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.figures import draw_figure
from pipeline.evaluation.text_tables import (
    INTERVALS,
    aligned,
    figure_cell,
    markdown,
    table_of_images,
    write_parquet,
    write_rows,
)
from pipeline.files import replace_text
from pipeline.parsing import read_parquet
from stages.evaluate_images import ImageEvaluation
from stages.evaluation.image_rows import (
    FULL_IMAGE,
    MEASURES,
    NOTHING_KEPT,
    ImageDifferenceRow,
    ImageRow,
)

NAME = "classification"
_TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "probability": "true class's probability",
    "drop": "its drop",
}
_PANELS = {"top1": "Top-1", "drop": "Drop of the true class's probability"}
_SIZE_INCHES = (10.0, 3.6)
_HIDDEN = {
    "none": "sees the kept patches only",
    "mean": "hidden patches filled with its mean color",
    "blur": "hidden patches blurred",
}


def write_image_tables(folder: Path, evaluation: ImageEvaluation) -> None:
    """Writes an evaluation into `folder`, made if missing.

    `classification` (one row per filling, keep ratio and source) and `classification_differences`
    as .csv and .parquet, both together as `classification.txt` and `.md`,
    `classification_images.parquet` (every image), and a figure `classification-FILLING` as .png and
    .svg.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = _tables(evaluation.rows, evaluation.differences, evaluation.against)
    text = ["\n".join([title, *aligned(cells), INTERVALS]) for title, cells in tables]
    page = [f"{title} {INTERVALS}\n\n{markdown(cells)}" for title, cells in tables]
    replace_text(folder / f"{NAME}.txt", "\n\n".join(text) + "\n")
    replace_text(folder / f"{NAME}.md", "\n\n".join(page) + "\n")
    for name, rows in ((NAME, evaluation.rows), (f"{NAME}_differences", evaluation.differences)):
        write_rows(folder / name, [row.flat() for row in rows])
    images = table_of_images(
        evaluation.keys,
        ("filling", "source", "keep_ratio"),
        evaluation.images,
        MEASURES,
        known={"class": evaluation.classes},
    )
    write_parquet(folder / f"{NAME}_images.parquet", images)
    for group in _by_filling(evaluation.rows):
        _draw(folder / f"{NAME}-{group[0].filling}", group)


def read_image_rows(folder: Path) -> list[ImageRow]:
    """Returns the rows that `write_image_tables` wrote into `folder`."""
    table = read_parquet(folder / f"{NAME}.parquet")
    return [ImageRow.from_flat(values) for values in table.to_pylist()]


Table = tuple[str, list[tuple[str, ...]]]
"""A title, and rows of cells, the first of them the head"""


def _tables(
    rows: Sequence[ImageRow], differences: Sequence[ImageDifferenceRow], against: str
) -> list[Table]:
    tables: list[Table] = []
    for group in _by_filling(rows):
        head = ("kept", "source", *_TITLES.values())
        cells = [(f"{row.keep_ratio:g}", row.source, *_figures(row)) for row in group]
        title = f"{_title(group[0])}: mean over {group[0].num_images} images"
        tables.append((title, [head, *cells]))
    for group in _by_filling(differences):
        if against:
            head = ("kept", "source", *_TITLES.values())
            cells = [(f"{row.keep_ratio:g}", row.source, *_figures(row, sign="+")) for row in group]
            title = f"{_title(group[0])}: each minus {against}, image by image"
            tables.append((title, [head, *cells]))
            continue
        for source in dict.fromkeys(row.source for row in group):
            head = ("kept", "minus", *_TITLES.values())
            cells = [
                (f"{row.keep_ratio:g}", row.reference, *_figures(row, sign="+"))
                for row in group
                if row.source == source
            ]
            title = f"{_title(group[0])}: {source} minus each other, image by image"
            tables.append((title, [head, *cells]))
    return tables


def _title(row: Any) -> str:
    return f"{row.classifier}, {_HIDDEN[row.filling]}"


def _figures(row: Any, sign: str = "") -> list[str]:
    return [figure_cell(row.figures[name], sign) for name in MEASURES]


def _by_filling(rows: Sequence[Any]) -> list[list[Any]]:
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(row.filling, []).append(row)
    return list(groups.values())


def _draw(stem: Path, rows: Sequence[ImageRow]) -> None:
    levels: Mapping[str, ImageRow] = {
        row.source: row for row in rows if row.source in (FULL_IMAGE, NOTHING_KEPT)
    }
    draw_figure(
        stem,
        [row for row in rows if row.source not in levels],
        _PANELS,
        title=f"{_title(rows[0])}, {rows[0].num_images} images",
        shape=(1, len(_PANELS)),
        size=_SIZE_INCHES,
        across=levels,
    )
