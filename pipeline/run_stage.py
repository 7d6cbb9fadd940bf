"""Runs one stage from paths and options: opens what it needs, writes what it returns.

The commands and the demo both go through here, so a stage behaves the same however it is started.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ltrp_core.checkpoints import load_mae, save_mae
from ltrp_core.errors import RequestError
from ltrp_core.rankers import save_ranker
from pipeline.annotations import CocoAnnotations
from pipeline.evaluation_table import read_rows, write_tables
from pipeline.image_stream import ShardImages
from pipeline.packing import PackFolder, TarSink, find_images
from pipeline.record_stream import CachedRecords
from pipeline.report_page import ReportData, RunCard, write_report
from pipeline.shards import Shard
from pipeline.store.cache import open_cache
from pipeline.store.receipts import file_sha256
from pipeline.training_folder import DiskTrainingFolder, read_curve
from pipeline.unit_runner import CacheRunner, decoded_samples
from pipeline.workers import WorkerPool
from stages import evaluate_patches, pretrain_mae, report, select_patches, train_ranker
from stages import pack as pack_stage
from stages import score as score_stage
from stages.evaluate_patches import EvaluationRow
from stages.protocols import Progress, Summary

MAE_FILE = "mae.safetensors"
RANKER_FILE = "ranker.safetensors"


def run_pack(config: pack_stage.PackConfig, images: Path, out: Path, progress: Progress) -> Summary:
    """Packs the images below a folder into the shards of `out`."""
    out = out.absolute()
    files = find_images(images)
    summary = pack_stage.run(
        config, files, sink=TarSink(out), index=PackFolder(out, files), progress=progress
    )
    summary.output = str(out)
    summary.next_step = f"ltrp-pipeline score --shards {out} --mae WEIGHTS --out cache"
    return summary


def run_pretrain(
    config: pretrain_mae.PretrainConfig, shards: Sequence[Shard], out: Path, progress: Progress
) -> Summary:
    """Trains a masked autoencoder into `out`/mae.safetensors."""
    images = ShardImages(shards, progress)
    folder = DiskTrainingFolder(out, "pretrain-mae")
    mae, summary = pretrain_mae.run(config, images=images, folder=folder, progress=progress)
    save_mae(mae, out / MAE_FILE)
    summary.notes += [f"left out {bad.key}: {bad.message}" for bad in images.bad]
    summary.output = str(out / MAE_FILE)
    summary.next_step = f"ltrp-pipeline score --shards ... --mae {summary.output} --out cache"
    return summary


def run_score(
    config: score_stage.ScoreConfig,
    shards: Sequence[Shard],
    out: Path,
    pool: WorkerPool,
    progress: Progress,
) -> Summary:
    """Scores the shards into the cache `out`."""
    runner = CacheRunner(out=out, shards=shards, pool=pool, progress=progress)
    return score_stage.run(config, units=runner)


def run_train_ranker(
    config: train_ranker.TrainRankerConfig,
    cache: Path,
    shards: Sequence[Shard],
    out: Path,
    progress: Progress,
) -> tuple[dict[str, float], Summary]:
    """Trains a ranker from a cache into `out`; returns the last epoch's measures too."""
    records = CachedRecords(open_cache(cache), shards, progress)
    folder = DiskTrainingFolder(out, "train-ranker")
    ranker, history, summary = train_ranker.run(
        config, records=records, folder=folder, progress=progress
    )
    save_ranker(ranker, out, {"scored_by": dict(records.run), "last_epoch": history[-1]})
    summary.output = str(out)
    summary.next_step = f"ltrp-pipeline select --shards ... --ranker {out} --out selections"
    return history[-1], summary


def run_select(
    config: select_patches.SelectConfig,
    shards: Sequence[Shard],
    out: Path,
    pool: WorkerPool,
    progress: Progress,
) -> Summary:
    """Writes the selections of the shards into the cache `out`."""
    weights = config.ranker / RANKER_FILE
    if not weights.is_file():
        raise RequestError(
            f"--ranker {config.ranker}: no {RANKER_FILE} there; pass --out of train-ranker"
        )
    runner = CacheRunner(out=out, shards=shards, pool=pool, progress=progress)
    return select_patches.run(config, units=runner, ranker_sha256=file_sha256(weights))


def run_evaluate_patches(
    config: evaluate_patches.EvaluateConfig,
    *,
    selections: Path,
    annotations: Path,
    teacher: Path | None,
    foreground: str,
    out: Path,
    progress: Progress,
) -> tuple[list[EvaluationRow], Summary]:
    """Evaluates selections against annotations; writes the tables into `out`."""
    rows, summary = evaluate_patches.run(
        config,
        selections=open_cache(selections),
        annotations=CocoAnnotations(annotations, shape=foreground),
        teacher=open_cache(teacher) if teacher is not None else None,
        progress=progress,
    )
    write_tables(out, rows)
    summary.output = str(out)
    summary.next_step = f"ltrp-pipeline report --selections {selections} --evaluation {out} ..."
    return rows, summary


def run_report(
    config: report.ReportConfig,
    *,
    selections: Path,
    shards: Sequence[Shard],
    mae: str,
    teacher: Path | None,
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
    samples = (sample for shard in shards for sample in decoded_samples(shard, []))
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
        + [_cache_card(c.path) for c in caches],
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


def _cache_card(path: Path) -> RunCard:
    cache = open_cache(path)
    options = dict(cache.run)
    receipts = cache.receipts.values()
    seconds = sum(receipt.seconds for receipt in receipts)
    n_ok = sum(receipt.n_ok for receipt in receipts)
    facts = {
        "units": len(cache.units),
        "images ok": n_ok,
        "images bad": sum(receipt.n_bad for receipt in receipts),
        "images/s a worker": round(n_ok / seconds, 2) if seconds else "-",
        "bytes": sum(stamp.size for receipt in receipts for stamp in receipt.files.values()),
    }
    return RunCard(stage=str(options.pop("stage")), options=options, facts=facts)


def _last_ranking(training: Sequence[Path]) -> dict[str, float]:
    for folder in training:
        curve = read_curve(folder)
        if curve and "tau" in curve[-1]:
            return {name: curve[-1][name] for name in ("tau", "rho", "ndcg5", "top1")}
    return {}
