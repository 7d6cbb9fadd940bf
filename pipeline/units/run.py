"""Runs one stage from paths and options: opens what it needs, writes what it returns.

The commands and the demo both go through here, so a stage behaves the same however it is started.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltrp_core.errors import RequestError
from ltrp_core.precision import check_precision
from pipeline.annotations import open_annotations
from pipeline.annotations.categories import arguable_names
from pipeline.evaluation.count_cache import FOLDER, FileCountCache
from pipeline.evaluation.figures import write_figures
from pipeline.evaluation.selections import open_selections
from pipeline.evaluation.tables import write_tables
from pipeline.files import file_sha256
from pipeline.inputs import Shard
from pipeline.packing import PackFolder, TarSink, find_images
from pipeline.store.cache import APPENDED, Cache, open_cache, part_name
from pipeline.store.errors import RunMismatchError
from pipeline.store.kinds import check_kind, open_cache_of
from pipeline.store.run_file import difference
from pipeline.store.storage import is_inside
from pipeline.units.runner import CacheRunner, UnitOptions
from pipeline.units.selection_table import write_selection_table
from pipeline.workers import InProcessPool, WorkerPool
from stages import evaluate_patches, select_patches
from stages import pack as pack_stage
from stages import score as score_stage
from stages.devices import resolve_device
from stages.evaluation.rows import EvaluationRow
from stages.protocols import Progress, Summary
from stages.selectors import TEACHER


def run_pack(config: pack_stage.PackConfig, images: Path, out: Path, progress: Progress) -> Summary:
    """Packs the images below a folder into the shards of `out`."""
    out = out.absolute()
    if "/" in config.prefix or not is_inside(config.prefix):
        raise RequestError(
            f"--prefix {config.prefix!r}: shards are files of --out; take a name without /"
        )
    files, notes = find_images(images)
    summary = pack_stage.run(
        config, files, sink=TarSink(out), index=PackFolder(out, files), progress=progress
    )
    summary.notes += notes
    summary.output = str(out)
    return summary


def run_score(
    config: score_stage.ScoreConfig,
    shards: Sequence[Shard],
    out: str | Path,
    pool: WorkerPool,
    progress: Progress,
    options: UnitOptions | None = None,
) -> Summary:
    """Scores the shards into the cache `out`."""
    check_kind("--mae", config.mae, "pretrain-mae", known_only=True)
    _check_device(config, pool)
    runner = CacheRunner(
        out=str(out), shards=shards, pool=pool, progress=progress, options=options or UnitOptions()
    )
    return score_stage.run(config, units=runner)


def run_append_views(
    asked: Mapping[str, Any],
    number: int,
    shards: Sequence[Shard],
    out: str | Path,
    pool: WorkerPool,
    progress: Progress,
) -> Summary:
    """Scores `number` further views of every sample of the cache `out`, as it was scored.

    What is there is not touched: the views are a cache of their own below `out`, which `out` is
    read with as soon as every unit has them.

    Args:
        asked: options that were given on the command line; those that change a number must be the
            cache's own.

    Raises:
        RunMismatchError: an option differs from the cache's.
    """
    base = open_cache_of("--append-views: --out", out, "score")
    config, options = _appending(base, asked, number)
    _check_device(config, pool)
    runner = CacheRunner(
        out=f"{base.url}/{APPENDED}/{part_name(config.first_view)}",
        shards=shards,
        pool=pool,
        progress=progress,
        options=options,
        extends=base,
    )
    summary = score_stage.run(config, units=runner)
    base.refresh()
    views = base.run["views"]
    summary.notes.append(f"{base.url} now has {views} view(s) of each of its samples")
    summary.output = base.url
    return summary


def _appending(
    base: Cache, asked: Mapping[str, Any], number: int
) -> tuple[score_stage.ScoreConfig, UnitOptions]:
    if asked.get("precision") == "auto":  # the cache's own
        asked = {name: value for name, value in asked.items() if name != "precision"}
    stored = {name: asked[name] for name in asked if name in base.identity and name != "views"}
    if any(base.identity[name] != value for name, value in stored.items()):
        raise RunMismatchError(
            difference(base.url, {name: base.identity[name] for name in stored}, stored)
        )
    of_config, of_options = (
        {field.name for field in dataclasses.fields(kind)}
        for kind in (score_stage.ScoreConfig, UnitOptions)
    )
    values = {**base.identity, **asked, "views": number}
    values["first_view"] = int(base.identity["first_view"]) + int(base.run["views"])
    return (
        score_stage.ScoreConfig(**{k: v for k, v in values.items() if k in of_config}),
        UnitOptions(**{k: v for k, v in values.items() if k in of_options}),
    )


def run_select(
    config: select_patches.SelectConfig,
    shards: Sequence[Shard],
    out: str | Path,
    pool: WorkerPool,
    progress: Progress,
    options: UnitOptions | None = None,
) -> Summary:
    """Writes the selections of the shards into the cache `out`, and the same as one table."""
    _check_device(config, pool)
    made_by: dict[str, Any] = {}
    open_teacher = None
    if config.method == "ranker":
        check_kind(config.weights_option, config.source, "train-ranker", known_only=True)
    if config.method == TEACHER:
        teacher = open_cache_of(config.weights_option, config.source, "score")
        made_by = {"teacher_run": teacher.run_id, "teacher_views": int(teacher.run.get("views", 0))}
        open_teacher = functools.partial(open_cache, teacher.url)
    elif (weights := select_patches.weights_file(config)) is not None:
        made_by = {"weights_sha256": file_sha256(weights)}
    runner = CacheRunner(
        out=str(out), shards=shards, pool=pool, progress=progress, options=options or UnitOptions()
    )
    summary = select_patches.run(config, units=runner, made_by=made_by, open_teacher=open_teacher)
    if not summary.stopped:
        write_selection_table(open_cache(out))
    return summary


def run_evaluate_patches(
    config: evaluate_patches.EvaluateConfig,
    *,
    selections: Sequence[str | Path],
    annotations: Path,
    teacher: str | Path | None,
    foreground: str,
    out: Path,
    progress: Progress,
    labels: Sequence[str] = (),
    format: str = "auto",
) -> tuple[list[EvaluationRow], Summary]:
    """Evaluates selections against annotations; writes tables and figures into `out`."""
    selected = open_selections(selections, labels)
    source = open_annotations(annotations, format=format, shape=foreground)
    cached = FileCountCache(out / FOLDER, next(iter(selected.values())), source)
    evaluation, summary = evaluate_patches.run(
        config,
        selections=selected,
        annotations=source,
        teacher=open_cache_of("--teacher", teacher, "score") if teacher is not None else None,
        progress=progress,
        cached=cached,
    )
    summary.notes += source.notes
    write_tables(out, evaluation)
    write_figures(out, evaluation.rows)
    if cached.hits:
        summary.notes.append(f"took the counts of {cached.hits} unit(s) from {out / FOLDER}")
    if "unseen" in config.categories:
        names = ", ".join(arguable_names(source.categories))
        summary.notes.append(
            f"unseen counts {names}, of which one may argue; --categories unseen-strict does not"
        )
    summary.output = str(out)
    return evaluation.rows, summary


def _check_device(
    config: score_stage.ScoreConfig | select_patches.SelectConfig, pool: WorkerPool
) -> None:
    """Raises before anything is written; what a Ray worker has, only the worker knows."""
    if not isinstance(pool, InProcessPool):
        return
    device = resolve_device(config.device)
    if isinstance(config, score_stage.ScoreConfig) and config.precision != "auto":
        check_precision(config.precision, device)
