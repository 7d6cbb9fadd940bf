"""Runs one stage from paths and options: opens what it needs, writes what it returns.

The commands and the demo both go through here, so a stage behaves the same however it is started.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltrp_core.checkpoints import save_mae
from ltrp_core.errors import RequestError
from ltrp_core.rankers import save_ranker
from pipeline.annotations import CocoAnnotations
from pipeline.evaluation_table import write_tables
from pipeline.image_stream import ShardImages
from pipeline.packing import PackFolder, TarSink, find_images
from pipeline.record_stream import CachedRecords
from pipeline.shards import Shard
from pipeline.store.cache import open_cache
from pipeline.store.receipts import file_sha256
from pipeline.training_folder import DiskTrainingFolder
from pipeline.unit_runner import CacheRunner
from pipeline.workers import InProcessPool, WorkerPool
from stages import evaluate_patches, pretrain_mae, select_patches, train_ranker
from stages import pack as pack_stage
from stages import score as score_stage
from stages.devices import resolve_device
from stages.evaluate_patches import EvaluationRow
from stages.protocols import Progress, Summary

MAE_FILE = "mae.safetensors"
RANKER_FILE = "ranker.safetensors"


def run_pack(config: pack_stage.PackConfig, images: Path, out: Path, progress: Progress) -> Summary:
    """Packs the images below a folder into the shards of `out`."""
    out = out.absolute()
    files, others = find_images(images)
    summary = pack_stage.run(
        config, files, sink=TarSink(out), index=PackFolder(out, files), progress=progress
    )
    if others:
        summary.notes.append(
            f"left out {len(others)} file(s) not named as images, e.g. {others[0]}"
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
    _check_device(config.device, pool)
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
    _check_device(config.device, pool)
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


def _check_device(device: str, pool: WorkerPool) -> None:
    """Raises before anything is written; what a Ray worker has, only the worker knows."""
    if isinstance(pool, InProcessPool):
        resolve_device(device)
