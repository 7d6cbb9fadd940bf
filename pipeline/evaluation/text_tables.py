"""Tables as files and as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import atomic_write, replace_text


def aligned(cells: Sequence[Sequence[str]], *, rules: bool = True) -> list[str]:
    """Returns lines of equal columns, with `rules` where the first cell changes."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines, previous = [], ""
    for line in cells:
        if rules and previous and line[0] != previous:
            lines.append("-" * (sum(widths) + 2 * len(widths) - 2))
        previous = line[0]
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        lines.append("  ".join(padded).rstrip())
    return lines


def markdown(cells: Iterable[Sequence[str]]) -> str:
    """Returns a table; the first row is its head."""
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    lines.insert(1, "|" + " --- |" * (lines[0].count(" | ") + 1))
    return "\n".join(lines)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows that have the same columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_text(path, text.getvalue())


def write_parquet(path: Path, table: pa.Table) -> None:
    """Writes a table, whole or not at all."""
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)
