"""The command that looks ahead: `plan`.

Apart from the commands on caches: its options are those of `score`, whose import brings torch, and
`status` should not wait for that.
"""

from __future__ import annotations

from typing import Any

import click

from pipeline.commands.options import PLACE, config_options, cut, listed, unit_size_option
from pipeline.console.terminal import say
from stages.score import ScoreConfig


@click.command()
@click.option(
    "--shards",
    type=PLACE,
    multiple=True,
    required=True,
    help="as for `score`; may be given repeatedly",
)
@unit_size_option
@click.option(
    "--out", type=PLACE, default="cache", show_default=True, help="where the cache would lie"
)
@click.option(
    "--store",
    type=click.Choice(["zarr", "webdataset"]),
    default="zarr",
    show_default=True,
    help="as for `score`",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=20.0,
    show_default=True,
    help="of the trial on this device",
)
@click.option(
    "--max-workers", type=click.IntRange(min=1), default=64, show_default=True, help="of the table"
)
@config_options(ScoreConfig)
def plan(
    shards: tuple[str, ...],
    unit_size: int,
    out: str,
    store: str,
    seconds: float,
    max_workers: int,
    **options: Any,
) -> int:
    """Tell what `score` would take.

    From the listing of the shards and a short trial on this device: decoder passes, hours for 1, 2,
    4, ... workers, bytes of the cache, and whether they fit. Writes nothing.

    Example: ltrp-pipeline plan --shards 'train-{0000..0146}.tar' --mae mae.pth --views 4
    """
    from pipeline.inspection.plan import format_plan, make_plan

    config, found = cut(options, ScoreConfig), listed(shards, unit_size=unit_size)
    made = make_plan(config, found, out, store=store, seconds=seconds)
    say(format_plan(made, workers=max_workers))
    return 0
