"""Runs `reduce`: shards and selections in, shards of what was kept out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from pipeline.inputs import Shard
from pipeline.inputs.images import EXTENSIONS
from pipeline.store.cache import open_cache
from pipeline.store.kinds import open_cache_of
from pipeline.store.records.forms import SAMPLES
from pipeline.units.options import ShardOptions
from pipeline.units.runner import CacheRunner
from pipeline.workers import WorkerPool
from stages import reduce
from stages.protocols import Progress, Summary


def run_reduce(
    config: reduce.ReduceConfig,
    shards: Sequence[Shard],
    out: str | Path,
    pool: WorkerPool,
    progress: Progress,
    options: ShardOptions | None = None,
) -> Summary:
    """Writes what was kept of the shards into the cache `out`, one tar of samples per shard.

    Raises:
        RequestError: the selections are none, or are of other shards.
        DamagedUnitError: they are damaged.
    """
    selections = open_cache_of("--selections", config.selections, "select")
    selections.check_own()
    runner = CacheRunner(
        out=str(out),
        shards=shards,
        pool=pool,
        progress=progress,
        options=options or ShardOptions(),
        beside=selections,
    )
    return reduce.run(
        config,
        units=runner,
        selected=selections.identity,
        selections_run=selections.run_id,
        open_selections=functools.partial(open_cache, selections.url),
        image_suffixes=EXTENSIONS,
        store=SAMPLES,
    )
