"""Tables of a run of `unbiased`: what each source keeps of the objects, as Markdown.

    python studies/unbiased.py RUN --mosaics mosaics > tables.md

A column is a mean over images with such objects, in brackets its 95 % bootstrap interval: recall,
the share of the objects' pixels that is in kept patches. `top - other` is of the same mosaics; what
it is for a method that knows nothing of classes, `center` and `random` say. With `--mosaics` the
same again of those mosaics alone whose top photograph, alone, is of the class of the whole.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ltrp_core.bootstrap import bootstrap_interval
from pipeline.inputs.keys import sample_key
from stages.evaluation.sources import TOP_ONLY

PATH = click.Path(path_type=Path, exists=True)
COLUMNS = {
    "COCO: all": ("coco", "all"),
    "learned": ("coco", "learned"),
    "unseen": ("coco", "unseen"),
    "mosaics: top": ("mosaics-top", "all"),
    "other": ("mosaics-other", "all"),
}
"""Column -> stage of the run and group of categories."""
MINUS = "top - other"

Figures = dict[tuple[float, str], dict[str, float]]
"""(keep ratio, source) -> the measure of each image by its key"""


@click.command()
@click.argument("run", type=PATH)
@click.option("--measure", default="recall", show_default=True)
@click.option("--mosaics", type=PATH, help="what studies/mosaics.py wrote")
def tables(run: Path, measure: str, mosaics: Path | None) -> None:
    """Prints a table for each keep ratio."""
    found = {
        column: read_figures(run / stage, group, measure)
        for column, (stage, group) in COLUMNS.items()
    }
    _print(found, measure, None)
    if mosaics is not None:
        images = json.loads((mosaics / "all.json").read_text())["images"]
        agreed = {sample_key(one["file_name"]) for one in images if one["is_agreed"]}
        of_mosaics = {name: found[name] for name in ("mosaics: top", "other")}
        _print(of_mosaics, f"{measure}, {len(agreed)} mosaics whose class is agreed", agreed)


def read_figures(folder: Path, group: str, measure: str) -> Figures:
    """Returns the measure of every image of an evaluation; images without such objects are out."""
    found: Figures = {}
    for row in pq.read_table(folder / "evaluation_images.parquet").to_pylist():
        # Nothing homogeneous is kept in this run: the k best alone are the selection itself.
        if row["categories"] == group and not row["source"].endswith(TOP_ONLY):
            by_key = found.setdefault((row["keep_ratio"], row["source"]), {})
            if not np.isnan(row[measure]):
                by_key[row["key"]] = row[measure]
    return found


def _print(found: Mapping[str, Figures], what: str, keys: Collection[str] | None) -> None:
    for ratio in dict.fromkeys(ratio for ratio, _ in found["other"]):
        click.echo(f"\n{ratio:.0%} of the patches kept, {what}:\n")
        for line in table(found, ratio, keys):
            click.echo(line)


def table(
    found: Mapping[str, Figures], ratio: float, keys: Collection[str] | None = None
) -> Iterator[str]:
    """Yields the lines of a table, a row a source.

    Args:
        found: by column; `mosaics: top` and `other` are of the same images.
        ratio: share of kept patches.
        keys: of the images that count; None: all.
    """
    yield f"| kept by | {' | '.join([*found, MINUS])} |"
    yield "| --- |" + " --- |" * (len(found) + 1)
    for source in [source for at, source in found["other"] if at == ratio]:
        values = {
            column: {k: v for k, v in rows[ratio, source].items() if keys is None or k in keys}
            for column, rows in found.items()
        }
        figures = [_interval(np.array(list(of.values()))) for of in values.values()]
        top, other = values["mosaics: top"], values["other"]
        minus = [top[key] - other[key] for key in top if key in other]
        yield f"| {source} | {' | '.join([*figures, _interval(np.array(minus), '+')])} |"


def _interval(values: NDArray[np.float64], sign: str = "") -> str:
    low, high = bootstrap_interval(values, seed=0)
    return f"{values.mean():{sign}.3f} [{low:{sign}.3f} {high:{sign}.3f}]"


if __name__ == "__main__":
    tables()
