"""Runs the stages that work on shards, from paths and options: `score` and `select`.

The commands and the demo both go through here, so a stage behaves the same however it is started.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltrp_core.precision import check_precision
from pipeline.files import file_sha256
from pipeline.inputs import Shard
from pipeline.store.cache import APPENDED, Cache, open_cache, part_name
from pipeline.store.errors import RunMismatchError
from pipeline.store.kinds import check_kind, open_cache_of
from pipeline.store.run_file import difference
from pipeline.units.runner import CacheRunner, UnitOptions
from pipeline.units.selection_table import write_selection_table
from pipeline.workers import InProcessPool, WorkerPool
from stages import score as score_stage
from stages import select_patches
from stages.devices import resolve_device
from stages.protocols import Progress, Summary
from stages.selectors import TEACHER
from stages.types import ScoreRun


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
    views = ScoreRun.of(base.run, base.url).views
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
    values["first_view"] = int(base.identity["first_view"]) + ScoreRun.of(base.run, base.url).views
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
        made_by = {
            "teacher_run": teacher.run_id,
            "teacher_views": ScoreRun.of(teacher.run, teacher.url).views,
        }
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


def _check_device(
    config: score_stage.ScoreConfig | select_patches.SelectConfig, pool: WorkerPool
) -> None:
    """Raises before anything is written; what a Ray worker has, only the worker knows."""
    if not isinstance(pool, InProcessPool):
        return
    device = resolve_device(config.device)
    if isinstance(config, score_stage.ScoreConfig) and config.precision != "auto":
        check_precision(config.precision, device)
