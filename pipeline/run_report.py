"""Runs the report stage: gathers what the other stages left on the disk, writes the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ltrp_core.checkpoints import load_mae
from ltrp_core.errors import RequestError
from pipeline.annotations import CocoAnnotations
from pipeline.evaluation_table import read_rows
from pipeline.inputs import Shard
from pipeline.inputs.samples import read_samples
from pipeline.report_page import ReportData, RunCard, write_report
from pipeline.run_log import images_per_second
from pipeline.store.cache import Cache, open_cache
from pipeline.training_folder import read_curve
from stages import evaluate_patches, report
from stages.protocols import Progress, Summary


def run_report(
    config: report.ReportConfig,
    *,
    selections: str | Path,
    shards: Sequence[Shard],
    mae: str,
    teacher: str | Path | None,
    evaluation: Path | None,
    annotations: Path | None,
    training: Sequence[Path],
    out: Path,
    progress: Progress,
) -> Summary:
    """Writes the page into `out`/index.html."""
    selected = open_cache(selections)
    model = load_mae(mae)
    grid = int(selected.run["image_size"]) // int(selected.run["patch_size"])
    if grid != model.grid:
        raise RequestError(
            f"the selections are of a {grid} x {grid} grid, the masked autoencoder {mae} of "
            f"{model.grid} x {model.grid}; pass the one the ranker learned from"
        )
    cover = open_cache(teacher) if teacher is not None else None
    samples = (sample for shard in shards for sample in read_samples(shard))
    shown = report.gallery_keys(selected, config)
    gallery = []
    with progress.task("report", len(shown), "images") as bar:
        for image in report.run(
            config,
            samples,
            selections=selected,
            mae=model,
            teacher_maps=evaluate_patches.cover_maps(cover, grid) if cover is not None else {},
            annotations=CocoAnnotations(annotations) if annotations is not None else None,
        ):
            gallery.append(image)
            bar.advance(1)
    caches = [cache for cache in (cover, selected) if cache is not None]
    data = ReportData(
        title="Which patches matter",
        runs=[_training_card(folder) for folder in training]
        + [_cache_card(cache) for cache in caches],
        rows=read_rows(evaluation) if evaluation is not None else [],
        curves={_stage(folder): read_curve(folder) for folder in training},
        gallery=gallery,
        ranking=_last_ranking(training),
        grid=grid,
    )
    summary = Summary(stage="report", done=1, n_ok=len(gallery))
    summary.output = str(write_report(data, out))
    return summary


def _stage(folder: Path) -> str:
    return str(_identity(folder)["stage"])


def _identity(folder: Path) -> dict[str, object]:
    try:
        identity: dict[str, object] = json.loads((folder / "run.json").read_text())["identity"]
        return identity
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"{folder} is no --out folder of a training stage: run.json is missing or unreadable"
        ) from error


def _training_card(folder: Path) -> RunCard:
    options = _identity(folder)
    curve = read_curve(folder)
    facts = {"epochs": len(curve), **(curve[-1] if curve else {})}
    return RunCard(stage=str(options.pop("stage")), options=options, facts=facts)


def _cache_card(cache: Cache) -> RunCard:
    options = dict(cache.run)
    rows = cache.rows.values()
    facts = {
        "units": len(rows),
        "images ok": sum(row.n_ok for row in rows),
        "images bad": sum(row.n_bad for row in rows),
        "images/s a worker": images_per_second(cache.place) or "-",
        "bytes": sum(row.bytes for row in rows),
    }
    return RunCard(stage=str(options.pop("stage")), options=options, facts=facts)


def _last_ranking(training: Sequence[Path]) -> dict[str, float]:
    for folder in training:
        curve = read_curve(folder)
        if curve and "tau" in curve[-1]:
            return {name: curve[-1][name] for name in ("tau", "rho", "ndcg5", "top1")}
    return {}
