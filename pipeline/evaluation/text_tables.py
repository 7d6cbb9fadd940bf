"""Tables as files and as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.files import atomic_write, replace_text

INTERVALS = "[ ]: 95 % bootstrap intervals over images"


def figure_cell(figure: tuple[float, float, float], sign: str = "") -> str:
    """Returns `0.412 [.398 .431]` of a value and the ends of its interval; `sign` may be `+`."""
    value, low, high = figure
    ends = " ".join(f"{end:{sign}.3f}".replace("0.", ".", 1) for end in (low, high))
    return f"{value:{sign}.3f} [{ends}]"


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


def write_rows(stem: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the same rows as `stem`.csv and `stem`.parquet."""
    write_csv(stem.with_name(f"{stem.name}.csv"), rows)
    write_parquet(stem.with_name(f"{stem.name}.parquet"), pa.Table.from_pylist(list(rows)))


def table_of_images(
    keys: Sequence[str],
    names: Sequence[str],
    tables: Mapping[tuple[Any, ...], NDArray[np.float64]],
    columns: Sequence[str],
    known: Mapping[str, Sequence[int]] | None = None,
) -> pa.Table:
    """Returns one row per image and table; keys and text are dictionary-encoded.

    Args:
        keys: (N,) of the images.
        names: what the parts of a table's name are.
        tables: by name, (N, len(columns)).
        columns: of the tables.
        known: further columns (N,) of every image.
    """
    count = len(keys)
    values = np.concatenate(list(tables.values()))
    places = np.tile(np.arange(count, dtype=np.int32), len(tables))
    made = {"key": pa.DictionaryArray.from_arrays(places, pa.array(keys, pa.string()))}
    made |= {name: pa.array(np.asarray(one)[places]) for name, one in (known or {}).items()}
    for name, parts in zip(names, zip(*tables, strict=True), strict=True):
        if isinstance(parts[0], str):
            distinct = list(dict.fromkeys(parts))
            of_table = np.repeat([distinct.index(part) for part in parts], count)
            made[name] = pa.DictionaryArray.from_arrays(
                of_table.astype(np.int32), pa.array(distinct)
            )
        else:
            made[name] = pa.array(np.repeat(parts, count))
    return pa.table(made | {name: values[:, i] for i, name in enumerate(columns)})
