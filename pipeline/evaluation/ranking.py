"""Runs `evaluate ranking`: two caches in, tables and a figure out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from ltrp_core.errors import DamagedFileError, RequestError
from pipeline.evaluation.text_tables import aligned, markdown, write_parquet, write_rows
from pipeline.files import replace_text
from pipeline.parsing import read_parquet
from pipeline.store.kinds import CACHES, open_cache_of
from stages import evaluate_ranking
from stages.evaluate_ranking import AgreementRow, PlateauRow, RankingConfig
from stages.protocols import Progress, Summary

_TITLES = {"tau": "Kendall tau-b", "rho": "Spearman rho"}
_WIDTH_INCHES, _HEIGHT_INCHES = 6.4, 3.6


Table = tuple[str, list[tuple[str, ...]]]
"""A title, and rows of cells, the first of them the head"""


def read_tables(folder: Path) -> list[Table]:
    """Returns the tables that `run_evaluate_ranking` wrote into `folder`.

    Raises:
        RequestError: there are none.
    """
    try:
        rows = {name: read_parquet(folder / f"{name}.parquet") for name in ("agreement", "plateau")}
        agreement = [AgreementRow(**row) for row in rows["agreement"].to_pylist()]
        plateau = [PlateauRow(**row) for row in rows["plateau"].to_pylist()]
    except (OSError, TypeError, DamagedFileError) as error:
        raise RequestError(
            f"{folder} is no --out folder of `evaluate ranking` ({' '.join(str(error).split())})"
        ) from error
    return _tables(agreement, plateau)


def run_evaluate_ranking(
    config: RankingConfig, first: str | Path, second: str | Path, out: Path, progress: Progress
) -> Summary:
    """Compares the score maps of two caches; writes into `out`.

    `agreement` and `plateau` as .csv and .parquet, both together as `ranking.txt` and `.md`,
    `ranking_images.parquet` (the measures of every image), and `plateau.png` and `.svg`.
    """
    found, summary = evaluate_ranking.run(
        config,
        first=open_cache_of("FIRST", first, *CACHES),
        second=open_cache_of("SECOND", second, *CACHES),
        progress=progress,
    )
    out.mkdir(parents=True, exist_ok=True)
    tables = _tables(found.agreement, found.plateau)
    text = "\n\n".join("\n".join([title, *aligned(cells, rules=False)]) for title, cells in tables)
    page = "\n\n".join(f"{title}\n\n{markdown(cells)}" for title, cells in tables)
    replace_text(out / "ranking.txt", f"{text}\n[ ]: 95 % bootstrap intervals over images\n")
    replace_text(out / "ranking.md", page + "\n")
    for name, rows in (("agreement", found.agreement), ("plateau", found.plateau)):
        write_rows(out / name, [dataclasses.asdict(row) for row in rows])
    write_parquet(out / "ranking_images.parquet", pa.table(found.images))
    if found.plateau:
        _draw(found.plateau, out / "plateau")
    summary.output = str(out)
    return summary


def _tables(agreement: Sequence[AgreementRow], plateau: Sequence[PlateauRow]) -> list[Table]:
    tables = [("how the two orders agree", _agreement_cells(agreement))]
    if plateau:
        title = "how flat the teacher's order is, best patches first"
        tables.append((title, _plateau_cells(plateau)))
    return tables


def _agreement_cells(rows: Sequence[AgreementRow]) -> list[tuple[str, ...]]:
    cells: list[tuple[str, ...]] = [("measure", "mean", "interval", "by chance", "images")]
    for row in rows:
        name = _TITLES.get(row.measure, row.measure.replace("ndcg", "NDCG@"))
        if row.keep_ratio is not None:
            name = f"overlap of the best {100 * row.keep_ratio:g} %"
        chance = "" if row.by_chance != row.by_chance else f"{row.by_chance:.3f}"
        interval = f"[{row.low:.3f} {row.high:.3f}]"
        cells.append((name, f"{row.mean:.3f}", interval, chance, str(row.num_images)))
    return cells


def _plateau_cells(rows: Sequence[PlateauRow]) -> list[tuple[str, ...]]:
    cells: list[tuple[str, ...]] = [
        (
            "cache",
            "tenth",
            "neighbors within noise",
            "interval",
            "patches within noise",
            "mean score",
        )
    ]
    for row in rows:
        interval = f"[{row.flat_low:.3f} {row.flat_high:.3f}]"
        cells.append(
            (row.source, str(row.tenth), f"{row.flat:.3f}", interval, f"{row.width:.1f}",
             f"{row.score:.3f}")
        )  # fmt: skip
    return cells


def _draw(rows: Sequence[PlateauRow], stem: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": stem.name, "font.size": 9}):
        figure = Figure(figsize=(_WIDTH_INCHES, _HEIGHT_INCHES), layout="constrained")
        axes = figure.subplots()
        for source in dict.fromkeys(row.source for row in rows):
            own = [row for row in rows if row.source == source]
            x = [row.tenth for row in own]
            low, high = [row.flat_low for row in own], [row.flat_high for row in own]
            axes.fill_between(x, low, high, alpha=0.15, linewidth=0, color="#0060a8")
            axes.plot(x, [row.flat for row in own], marker="o", ms=4, color="#0060a8",
                      label=f"neighbors within noise, {source} cache")  # fmt: skip
            axes.plot(x, [row.score for row in own], "--", color="#c05000",
                      label=f"mean score, {source} cache")  # fmt: skip
        axes.set_xlabel("tenth of the teacher's order, best patches first")
        axes.set_xticks(range(1, evaluate_ranking.DECILES + 1))
        axes.set_ylim(0, 1)
        axes.grid(axis="y", color="#e3e6e8", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
        figure.legend(loc="outside lower center", frameon=False, ncols=2)
        figure.savefig(f"{stem}.png", dpi=150, metadata={"Software": None})
        figure.savefig(f"{stem}.svg", metadata={"Date": None})
