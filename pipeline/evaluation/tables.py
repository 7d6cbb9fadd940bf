"""The evaluation as tables: text for the terminal, Markdown, CSV and Parquet for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ltrp_core.errors import RequestError
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
from stages.evaluate_patches import Evaluation
from stages.evaluation.rows import (
    IMAGE_COLUMNS,
    MEASURES,
    DifferenceRow,
    EvaluationRow,
    one_each,
    only_reference,
)
from stages.evaluation.sources import label_of, labels_in, top_only, without_prior

Table = tuple[str, list[tuple[str, ...]]]
"""A title, and rows of cells, the first of them the head"""
_TITLES = {"precision": "precision", "recall": "recall", "f1": "F1", "iou": "IoU"}


def format_table(rows: Sequence[EvaluationRow]) -> str:
    """Returns the means over images as aligned text, one block per group and keep ratio."""
    return "\n".join(
        line
        for group in _groups(rows)
        for line in (_title(group), *aligned(_mean_cells(group)), INTERVALS)
    )


def format_differences(rows: Sequence[DifferenceRow]) -> str:
    """Returns the paired differences as aligned text, one block per selection and keep ratio.

    Where one source was chosen to compare with, all stand in one table. Those of the k best alone
    only where a selection is not stored; the files have all.
    """
    return "\n".join(
        line
        for title, cells in _difference_tables(rows)
        for line in (title, *aligned(cells), INTERVALS)
    )


def write_tables(folder: Path, evaluation: Evaluation) -> None:
    """Writes the tables of an evaluation into `folder`, made if missing.

    `evaluation` (one row per group of categories, keep ratio and source), `evaluation_differences`
    (selections minus references, image by image) as .csv and .parquet, both together as
    `evaluation.txt` and `.md`, and `evaluation_images.parquet` (the same, of every image).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, differences = evaluation.rows, evaluation.differences
    text = [format_table(rows)]
    if differences:
        text.append(format_differences(differences))
    replace_text(folder / "evaluation.txt", "\n\n".join(text) + "\n")
    replace_text(folder / "evaluation.md", _markdown_page(rows, differences))
    for name, table in (("evaluation", rows), ("evaluation_differences", differences)):
        write_rows(folder / name, [row.flat() for row in table])
    write_parquet(folder / "evaluation_images.parquet", _images(evaluation))


def read_rows(folder: Path, categories: str | None = None) -> list[EvaluationRow]:
    """Returns the rows of one group of categories that `write_tables` wrote into `folder`.

    Args:
        folder: `--out` of `evaluate patches`.
        categories: the group; None: the first that was evaluated, `all` if it was.

    Raises:
        RequestError: that group was not evaluated.
    """
    table = read_parquet(folder / "evaluation.parquet")
    rows = [EvaluationRow.from_flat(values) for values in table.to_pylist()]
    groups = list(dict.fromkeys(row.categories for row in rows))
    if categories is not None and categories not in groups:
        raise RequestError(f"{folder} holds {', '.join(groups)}, not {categories}")
    return [row for row in rows if row.categories == (categories or groups[0])]


def read_differences(folder: Path) -> list[DifferenceRow]:
    """Returns the differences that `write_tables` wrote into `folder`."""
    table = read_parquet(folder / "evaluation_differences.parquet")
    return [DifferenceRow.from_flat(values) for values in table.to_pylist()]


def read_groups(folder: Path) -> list[str]:
    """Returns the groups of categories that were evaluated into `folder`, in their order."""
    table = read_parquet(folder / "evaluation.parquet", columns=["categories"])
    return list(dict.fromkeys(table["categories"].to_pylist()))


def _images(evaluation: Evaluation) -> pa.Table:
    """Returns one row per image, group, source and keep ratio."""
    names = ("categories", "source", "keep_ratio")
    return table_of_images(evaluation.keys, names, evaluation.images, IMAGE_COLUMNS)


def _groups(rows: Sequence[Any]) -> list[list[Any]]:
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(row.categories, []).append(row)
    return list(groups.values())


def _by_selection(rows: Sequence[DifferenceRow]) -> list[list[DifferenceRow]]:
    return [
        [row for row in group if label_of(row.source) == label]
        for group in _groups(rows)
        for label in labels_in(row.source for row in group)
    ]


def _title(rows: Sequence[EvaluationRow]) -> str:
    return f"{rows[0].categories} categories: mean over {rows[0].num_images} images with foreground"


def _difference_title(rows: Sequence[DifferenceRow]) -> str:
    name = label_of(rows[0].source)
    return f"{rows[0].categories} categories: {name} minus each reference, image by image"


def _difference_tables(rows: Sequence[DifferenceRow]) -> list[Table]:
    chosen = only_reference(rows)
    if chosen is None:
        return [(_difference_title(own), _difference_cells(own)) for own in _by_selection(rows)]
    header = ("kept", "source", *(_TITLES[name] for name in MEASURES))
    tables = []
    for group in _groups(rows):
        cells = [
            (f"{row.keep_ratio:g}", row.source, *_figures(row, sign="+")) for row in one_each(group)
        ]
        title = f"{group[0].categories} categories: each minus {chosen}, image by image"
        tables.append((title, [header, *cells]))
    return tables


def _mean_cells(rows: Sequence[EvaluationRow]) -> list[tuple[str, ...]]:
    header = ("kept", "source", *(_TITLES[name] for name in MEASURES))
    return [header, *((f"{row.keep_ratio:g}", row.source, *_figures(row)) for row in rows)]


def _pooled_cells(rows: Sequence[EvaluationRow]) -> list[tuple[str, ...]]:
    header = ("kept", "source", *(f"pooled {_TITLES[name]}" for name in MEASURES))
    return [
        header,
        *((f"{row.keep_ratio:g}", row.source, *_figures(row, prefix="pooled_")) for row in rows),
    ]


def _difference_cells(rows: Sequence[DifferenceRow]) -> list[tuple[str, ...]]:
    """Returns a selection's differences, or those of its k best where that is all there is.

    What priors add is always that of the k best: without priors nothing else is known.
    """
    header = ("kept", "minus", *(_TITLES[name] for name in MEASURES))
    label = label_of(rows[0].source)
    stored = {row.keep_ratio for row in rows if row.source == label}
    lines = [
        (
            f"{row.keep_ratio:g}",
            row.reference + ("" if row.source == label else " (top-k only)"),
            *_figures(row, sign="+"),
        )
        for row in rows
        if row.source == label
        or row.reference == without_prior(label)
        or (row.keep_ratio not in stored and row.source == top_only(label))
    ]
    return [header, *lines]


def _figures(row: Any, prefix: str = "", sign: str = "") -> list[str]:
    """Returns `0.412 [.398 .431]` of each measure."""
    cells = []
    for name in MEASURES:
        cells.append(figure_cell(row.figures[prefix + name], sign))
    return cells


def _markdown_page(rows: Sequence[EvaluationRow], differences: Sequence[DifferenceRow]) -> str:
    parts = []
    for group in _groups(rows):
        parts += [f"{_title(group)} {INTERVALS}", markdown(_mean_cells(group))]
        parts += ["Pooled over the same images", markdown(_pooled_cells(group))]
    for title, cells in _difference_tables(differences):
        parts += [title, markdown(cells)]
    return "\n\n".join(parts) + "\n"
