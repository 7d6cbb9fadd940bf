"""The report as one folder that opens from the disk: pictures first, then figures, then options."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltrp_core.errors import RequestError
from pipeline.plots import MEASURES, heat_scale, plot_curves
from pipeline.report.cache_figures import CacheFigures
from pipeline.report.charts import plot_attention, plot_scores
from pipeline.report.gallery import check_gallery, gallery_context
from pipeline.report.tables import evaluation_context
from stages.evaluation.rows import DifferenceRow, EvaluationRow
from stages.report import AttentionProfile, GalleryImage

MARKER = ".ltrp-report"
_OURS = frozenset({MARKER, "index.html", "images", "plots"})
_DEFAULT_KEEP_RATIO = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCard:
    """What one stage was asked and what it did."""

    stage: str
    name: str = ""
    """Of its folder"""
    options: Mapping[str, object]
    facts: Mapping[str, object]
    """Counts, seconds, images/s"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingCurve:
    """How one training went."""

    stage: str
    name: str = ""
    """Of its folder"""
    rows: Sequence[Mapping[str, float]]
    """One an epoch"""
    kept_epoch: int | None = None
    measures: Mapping[str, float] = field(default_factory=dict)
    """Agreement with held-out scores of the epoch that is kept: `pipeline.plots.MEASURES`"""
    ceiling: Mapping[str, float] = field(default_factory=dict)
    """How well two draws of the teacher agree, by the same names"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """All that the page shows."""

    title: str
    grid: int
    """Patches a side; L = grid * grid"""
    gallery: Sequence[GalleryImage] = ()
    rows: Sequence[EvaluationRow] = ()
    differences: Sequence[DifferenceRow] = ()
    ranking: Sequence[tuple[str, Sequence[Sequence[str]]]] = ()
    """Tables of `evaluate ranking`: a title, and rows of cells, the first of them the head"""
    attention: Sequence[AttentionProfile] = ()
    curves: Sequence[TrainingCurve] = ()
    caches: Sequence[CacheFigures] = ()
    runs: Sequence[RunCard] = ()


def write_report(data: ReportData, folder: Path) -> Path:
    """Writes the page into `folder` and returns the path of its index.html.

    The page is made in a folder beside it and then put in place: a failure leaves an earlier
    report as it was. File names are counted, never taken from keys; all text is escaped.

    Raises:
        RequestError: `folder` holds something that is not a report, or the gallery's arrays do
            not fit the grid or one another.
    """
    folder = Path(os.path.realpath(folder))  # `resolve` raises RuntimeError on a loop
    if folder.is_symlink():
        raise RequestError(f"--out {folder} is a link that leads to itself; give another folder")
    _check_folder(folder)
    check_gallery(data.gallery, data.grid)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        for path in (new, new / "images", new / "plots"):
            path.mkdir()
        page = _render(_context(data, new))
        (new / "index.html").write_text(page, encoding="utf-8")
        (new / MARKER).write_text("A report of ltrp-pipeline; the next one replaces this folder.\n")
        _put_in_place(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder / "index.html"


def _check_folder(folder: Path) -> None:
    """Refuses a folder whose replacement would delete something that is not a report's."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RequestError(f"{folder} is a file; name a new folder for the report")
    found = {path.name for path in folder.iterdir()}
    if found and MARKER not in found:
        raise RequestError(f"{folder} exists and holds no report; name a new or an empty folder")
    if found - _OURS:
        raise RequestError(
            f"{folder} holds {sorted(found - _OURS)[0]!r} beside a report, which replaces the "
            "whole folder; move it away or name a new folder"
        )


def _put_in_place(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`; an earlier report comes back if that fails."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _context(data: ReportData, folder: Path) -> dict[str, Any]:
    """Writes the pictures and plots into `folder`; returns what the template is filled with."""
    length = data.grid**2
    plots = folder / "plots"
    return {
        "title": data.title,
        "grid": data.grid,
        "length": length,
        "default_k": max(1, math.floor(_DEFAULT_KEEP_RATIO * length + 0.5)),
        "gallery": gallery_context(data.gallery, data.grid, folder / "images"),
        "heat_scale": heat_scale(),
        "evaluation": evaluation_context(data.rows, data.differences, plots),
        "ranking": data.ranking,
        "attention": _attention(data.attention, plots),
        "training": [
            entry
            for number, curve in enumerate(data.curves)
            if (entry := _training(curve, plots, number))
        ],
        "caches": [_cache(cache, plots, number) for number, cache in enumerate(data.caches)],
        "runs": data.runs,
    }


def _training(curve: TrainingCurve, folder: Path, number: int) -> dict[str, Any] | None:
    plots = plot_curves(curve.rows, folder, f"c{number}", curve.ceiling)
    if not plots:
        return None
    return {
        "stage": curve.stage,
        "name": curve.name,
        "epochs": len(curve.rows),
        "kept_epoch": curve.kept_epoch,
        "plots": plots,
        "measures": [
            {
                "name": words,
                "value": f"{curve.measures[name]:.3f}",
                "ceiling": f"{curve.ceiling[name]:.3f}" if name in curve.ceiling else None,
            }
            for name, words in MEASURES.items()
            if name in curve.measures
        ],
    }


def _attention(profiles: Sequence[AttentionProfile], folder: Path) -> dict[str, Any]:
    return {
        "plots": plot_attention(profiles, folder),
        "num_images": max((profile.num_images for profile in profiles), default=0),
    }


def _cache(cache: CacheFigures, folder: Path, number: int) -> dict[str, Any]:
    working = sum(cache.seconds.values())
    return {
        "figures": cache,
        "plot": plot_scores(cache.scores, folder, f"s{number}") if cache.scores else None,
        "seconds": working,
        "shares": [
            {"name": name, "share": seconds / working, "seconds": seconds}
            for name, seconds in cache.seconds.items()
            if working > 0
        ],
    }


def _render(context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "sort_keys": True}
    environment.filters |= {"value": _as_text, "duration": _duration, "size": _size}
    return environment.get_template("report.html.j2").render(context)


def _as_text(value: object) -> str:
    """Returns an option or a fact as a reader wants it."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}" if abs(value) >= 10_000 else str(value)
        case float():
            return f"{value:.4g}"
        case Mapping():
            return ", ".join(f"{key}: {_as_text(item)}" for key, item in value.items())
        case list() | tuple():
            return ", ".join(_as_text(item) for item in value)
    return str(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
