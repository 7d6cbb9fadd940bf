"""The report as one folder that opens from the disk: pictures first, then figures, then options."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ltrp_core.errors import RequestError
from pipeline.plots import (
    MEASURES,
    METRICS,
    heat_map,
    heat_scale,
    plot_curves,
    plot_evaluation,
)
from stages.evaluate_patches import (
    CENTER,
    ORACLE,
    RANDOM,
    RANKER,
    TEACHER,
    TOP_K,
    VARIANCE,
    EvaluationRow,
)
from stages.report import GalleryImage

__all__ = ["EvaluationRow", "GalleryImage", "ReportData", "RunCard", "write_report"]

MARKER = ".ltrp-report"
_OURS = frozenset({MARKER, "index.html", "images", "plots"})
_DEFAULT_KEEP_RATIO = 0.25
_MEANINGS = {
    RANKER: "the selection as stored: the best patches by ranker score, then homogeneous ones",
    TOP_K: "the k best patches by ranker score",
    TEACHER: "the k best by the masked autoencoder's own mean score, which the ranker learned from",
    VARIANCE: "the k patches whose pixels vary most",
    CENTER: "the k patches closest to the middle",
    RANDOM: "k patches at random, mean of many draws",
    ORACLE: "patches by how much of an object they hold: knows the labels, the upper bound",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCard:
    """What one stage was asked and what it did."""

    stage: str
    options: Mapping[str, object]
    facts: Mapping[str, object]
    """Counts, seconds, images/s"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """All that the page shows."""

    title: str
    runs: Sequence[RunCard]
    rows: Sequence[EvaluationRow]
    curves: Mapping[str, Sequence[Mapping[str, float]]]
    """stage -> one row an epoch"""
    gallery: Sequence[GalleryImage]
    ranking: Mapping[str, float]
    """Agreement with held-out scores: tau, rho, ndcg5, top1"""
    grid: int
    """Patches a side; L = grid * grid"""


def write_report(data: ReportData, folder: Path) -> Path:
    """Writes the page into `folder` and returns the path of its index.html.

    The page is made in a folder beside it and then put in place: a failure leaves an earlier
    report as it was. File names are counted, never taken from keys; all text is escaped.

    Raises:
        RequestError: `folder` holds something that is not a report, or the gallery's arrays do
            not fit the grid or one another.
    """
    folder = folder.resolve()
    _check_folder(folder)
    _check_gallery(data)
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


def _check_gallery(data: ReportData) -> None:
    length = data.grid**2
    sizes = [{ratio: len(kept) for ratio, kept in image.kept.items()} for image in data.gallery]
    for image, size in zip(data.gallery, sizes, strict=True):
        shape = image.photo.shape
        if len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3:
            raise RequestError(f"{image.key!r}: photo must be (S, S, 3); got {shape}")
        for name in ("photo", "reconstruction", "reconstruction_without"):
            picture = getattr(image, name)
            if picture.shape != shape or picture.dtype != np.uint8:
                raise RequestError(
                    f"{image.key!r}: {name} must be uint8 {shape}; got {picture.dtype} "
                    f"{picture.shape}"
                )
        if image.foreground is not None and image.foreground.shape != shape[:2]:
            raise RequestError(
                f"{image.key!r}: foreground must be {shape[:2]}; got {image.foreground.shape}"
            )
        for name in ("ranker", "teacher"):
            scores = getattr(image, name)
            if scores is not None and (scores.shape != (length,) or not np.isfinite(scores).all()):
                raise RequestError(
                    f"{image.key!r}: {name} must be {length} finite scores, one a patch of the "
                    f"{data.grid} x {data.grid} grid; got shape {scores.shape}"
                )
        indices = np.concatenate([image.visible, [image.left_out], *image.kept.values()])
        if indices.min() < 0 or indices.max() >= length:
            raise RequestError(f"{image.key!r}: patches must be from 0 to {length - 1}")
        if size != sizes[0]:
            raise RequestError(
                f"{image.key!r} keeps {size} patches by keep ratio, the first image {sizes[0]}; "
                "show images of one selection"
            )


def _context(data: ReportData, folder: Path) -> dict[str, Any]:
    """Writes the pictures and plots into `folder`; returns what the template is filled with."""
    length = data.grid**2
    training = [
        {"stage": stage, "epochs": len(rows), "plots": plot_curves(rows, folder / "plots", f"c{n}")}
        for n, (stage, rows) in enumerate(data.curves.items())
    ]
    return {
        "title": data.title,
        "grid": data.grid,
        "length": length,
        "default_k": max(1, math.floor(_DEFAULT_KEEP_RATIO * length + 0.5)),
        "cards": [
            _card(image, data.grid, folder / "images", number)
            for number, image in enumerate(data.gallery)
        ],
        "has_outlines": any(image.foreground is not None for image in data.gallery),
        "stored": _stored(data.gallery),
        "shown": _shown(data),
        "heat_scale": heat_scale(),
        "metrics": list(METRICS.values()),
        "blocks": _table_blocks(data.rows, length),
        "num_images": sorted({row.num_images for row in data.rows}),
        "meanings": {s: _MEANINGS.get(s, "") for s in dict.fromkeys(r.source for r in data.rows)},
        "evaluation": plot_evaluation(data.rows, folder / "plots"),
        "ranking": [(MEASURES.get(k, k), f"{v:.3f}") for k, v in data.ranking.items()],
        "training": [entry for entry in training if entry["plots"]],
        "runs": data.runs,
    }


def _card(image: GalleryImage, grid: int, folder: Path, number: int) -> dict[str, Any]:
    """Writes the pictures of one image; returns their names and the squares drawn over them."""

    def save(name: str, pixels: NDArray[np.uint8]) -> str:
        path = folder / f"{number:04d}-{name}"
        Image.fromarray(pixels).save(path, quality=90)  # PNG has no quality and ignores it
        return path.name

    hidden = np.setdiff1d(np.arange(grid**2), image.visible)
    outline = None
    if image.foreground is not None:
        outline = f"{number:04d}-outline.svg"
        (folder / outline).write_text(_outline_svg(image.foreground), encoding="utf-8")
    return {
        "key": image.key,
        "side": image.photo.shape[0],
        "photo": save("photo.jpg", image.photo),
        "reconstruction": save("reconstruction.jpg", image.reconstruction),
        "without": save("without.jpg", image.reconstruction_without),
        "ranker": save("ranker.png", heat_map(image.ranker, grid)),
        "teacher": (
            None if image.teacher is None else save("teacher.png", heat_map(image.teacher, grid))
        ),
        "outline": outline,
        "num_visible": len(image.visible),
        "hidden": "".join(f"M{i % grid} {i // grid}h1v1h-1z" for i in hidden),
        "left_out": (image.left_out % grid, image.left_out // grid),
    }


def _outline_svg(is_foreground: NDArray[np.bool_]) -> str:
    """Returns the border between True and False as an SVG, pixel-exact, white on black."""
    side = len(is_foreground)
    padded = np.pad(is_foreground, 1)
    # Entry (r, c) of `across`: a border above pixel (r, c); of `along`: left of it.
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]
    along = padded[1:-1, 1:] != padded[1:-1, :-1]
    path = "".join(f"M{start} {row}h{n}" for row, start, n in _runs(across))
    path += "".join(f"M{column} {start}v{n}" for column, start, n in _runs(along.T))
    strokes = "".join(
        f'<path d="{path}" stroke="{color}" stroke-width="{width}"/>'
        for color, width in (("#000", 3.5), ("#fff", 1.75))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}" width="{side}" '
        'height="{0}" fill="none" stroke-linecap="square"><style>path{{vector-effect:'
        "non-scaling-stroke}}</style>{1}</svg>\n"
    ).format(side, strokes)


def _runs(is_set: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Returns (row, first column, length) of every run of True."""
    steps = np.diff(np.pad(is_set, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    return list(
        zip(rows.tolist(), starts.tolist(), (ends - starts).tolist(), strict=True),
    )


def _stored(gallery: Sequence[GalleryImage]) -> list[dict[str, Any]]:
    """Returns each stored selection's keep ratio, its k, and how many of the k are best patches."""
    if not gallery:
        return []
    return [
        {
            "label": f"{100 * ratio:g} %",
            "ratio": ratio,
            "k": len(kept),
            "best": min(_num_best(image.ranker, image.kept[ratio]) for image in gallery),
        }
        for ratio, kept in sorted(gallery[0].kept.items())
    ]


def _num_best(scores: NDArray[Any], kept: NDArray[Any]) -> int:
    """Returns how many kept patches go down the ranking without a gap; the rest is homogeneous.

    By value, since scores that were stored in half precision have ties where the selection saw
    none. A homogeneous patch can be the next in the ranking by chance, hence the least over all
    images, which share k and h.
    """
    ranking = np.sort(scores)[::-1][: len(kept)]
    breaks = np.nonzero(scores[kept] != ranking)[0]
    return int(breaks[0]) if len(breaks) else len(kept)


def _shown(data: ReportData) -> dict[str, Any]:
    """Returns what the slider and the buttons draw from: patches by rank, stored selections."""
    return {
        "grid": data.grid,
        "stored": _stored(data.gallery),
        "cards": [
            {
                # Ties: the lower index first, everywhere in this project.
                "order": np.argsort(-image.ranker, kind="stable").tolist(),
                "stored": [kept.tolist() for _, kept in sorted(image.kept.items())],
            }
            for image in data.gallery
        ],
    }


def _table_blocks(rows: Sequence[EvaluationRow], length: int) -> list[dict[str, Any]]:
    """Returns the table, one block a keep ratio, the best label-free figures of each marked."""
    blocks = []
    for ratio in sorted({row.keep_ratio for row in rows}):
        own = [row for row in rows if row.keep_ratio == ratio]
        best = {}
        for metric in METRICS:
            values = [getattr(row, metric) for row in own if row.source != ORACLE]
            # As printed: two that read alike are both the best.
            best[metric] = max((f"{v:.3f}" for v in values if math.isfinite(v)), default="")
        lines = [
            {
                "source": row.source,
                "is_oracle": row.source == ORACLE,
                "cells": [_cell(row, metric, best[metric]) for metric in METRICS],
            }
            for row in own
        ]
        k = math.floor(ratio * length + 0.5)
        blocks.append({"label": f"{100 * ratio:g} %", "k": k, "lines": lines})
    return blocks


def _cell(row: EvaluationRow, metric: str, best: str) -> dict[str, Any]:
    text = f"{getattr(row, metric):.3f}"
    interval = None
    if metric == "precision" and math.isfinite(row.precision_low + row.precision_high):
        interval = f"{row.precision_low:.3f} to {row.precision_high:.3f}"
    return {"text": text, "interval": interval, "best": row.source != ORACLE and text == best}


def _render(context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value"] = _as_text
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
