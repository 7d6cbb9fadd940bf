"""The evaluation as a table: text for the terminal, Markdown, CSV and Parquet for the rest."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.receipts import replace_text
from stages.evaluate_patches import EvaluationRow

_COLUMNS = ("keep ratio", "source", "precision", "95 % interval", "recall", "F1", "IoU")


def format_table(rows: Sequence[EvaluationRow]) -> str:
    """Returns the table as aligned text, one block a keep ratio."""
    cells = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
    lines, previous = [], ""
    for line in cells:
        if previous and line[0] != previous:
            lines.append("-" * (sum(widths) + 2 * len(widths) - 2))
        previous = line[0]
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    images = rows[0].num_images
    return "\n".join(
        [f"mean over {images} images with foreground", *(line.rstrip() for line in lines)]
    )


def write_tables(folder: Path, rows: Sequence[EvaluationRow]) -> None:
    """Writes `evaluation.txt`, `.md`, `.csv` and `.parquet` into `folder`, made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    values = [dataclasses.asdict(row) for row in rows]
    replace_text(folder / "evaluation.txt", format_table(rows) + "\n")
    replace_text(folder / "evaluation.md", _markdown([_COLUMNS, *(_cells(row) for row in rows)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(values[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(values)
    replace_text(folder / "evaluation.csv", text.getvalue())
    temporary = folder / ".evaluation.parquet"
    pq.write_table(pa.Table.from_pylist(values), temporary, write_page_checksum=True)
    temporary.replace(folder / "evaluation.parquet")


def read_rows(folder: Path) -> list[EvaluationRow]:
    """Returns the rows that `write_tables` wrote into `folder`."""
    table = pq.read_table(folder / "evaluation.parquet", page_checksum_verification=True)
    return [EvaluationRow(**values) for values in table.to_pylist()]


def _cells(row: EvaluationRow) -> tuple[str, ...]:
    return (
        f"{row.keep_ratio:g}",
        row.source,
        f"{row.precision:.3f}",
        f"{row.precision_low:.3f} - {row.precision_high:.3f}",
        f"{row.recall:.3f}",
        f"{row.f1:.3f}",
        f"{row.iou:.3f}",
    )


def _markdown(cells: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    lines.insert(1, "|" + " --- |" * len(_COLUMNS))
    return "\n".join(lines) + "\n"
