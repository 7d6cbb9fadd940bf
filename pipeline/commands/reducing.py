"""`reduce`: shards that hold only what was kept."""

from __future__ import annotations

from typing import Any

import click

from pipeline.commands.options import (
    config_options,
    cut,
    finish,
    listed,
    on_shards_only,
    open_pool_of,
    out_option,
    shards_option,
)
from pipeline.console.progress import open_progress
from pipeline.units.options import ShardOptions
from pipeline.units.reduce import run_reduce
from stages.reduce import ReduceConfig


@click.command()
@shards_option
@out_option("reduced", url=True)
@on_shards_only
@config_options(ReduceConfig)
def reduce(shards: tuple[str, ...], out: str, **options: Any) -> int:
    """Write shards that hold only what was kept.

    Of every image the kept patches as tiles of one small picture, the image with their indices, or
    the view with the rest in one color; classes and what else lies beside an image come along.
    Plain WebDataset tars, OUT/units/*/*.tar, for docs/reduced.md's loader and others.

    Example: ltrp-pipeline reduce --shards shards --selections selections --keep-ratio 0.5
    """
    found = listed(shards, unit_size=options.pop("unit_size"))
    with open_pool_of(options) as pool:
        config, units = cut(options, ReduceConfig), cut(options, ShardOptions)
        return finish(run_reduce(config, found, out, pool, open_progress(), units))
