"""The commands that look at a cache, check it, or change its form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ltrp_core.errors import RequestError
from pipeline.commands.options import PATH, PLACE, finish, given, listed, unit_size_option
from pipeline.console.progress import open_progress
from pipeline.console.terminal import printable, say
from pipeline.store.cache import Cache
from pipeline.store.kinds import CACHES, UNIT_FOLDERS, open_cache_of
from pipeline.store.units import quarantine
from pipeline.units.shares import parse_share

_some_shards = click.option(
    "--shards",
    type=PLACE,
    multiple=True,
    help="the shards that were scored; may be given repeatedly",
)


@click.command()
@click.argument("cache", type=PLACE)
@click.option("--shards", "each", is_flag=True, help="a line for every shard")
@click.option("--json", "as_json", is_flag=True, help="for machines")
def status(cache: str, each: bool, as_json: bool) -> int:
    """Show how far a run is.

    Shards done, failed and pending, images and bad ones by reason, speed, where the time goes, the
    time left. Works while the run goes on, from anywhere that the cache can be read.

    Example: ltrp-pipeline status cache
    """
    from pipeline.inspection.status import format_status, read_status, to_json

    found = read_status(open_cache_of("CACHE", cache, *UNIT_FOLDERS))
    say(to_json(found) if as_json else format_status(found, shards=each))
    return 1 if found.count("failed") else 0


@click.command()
@click.argument("cache", type=PLACE)
@click.option("--deep", is_flag=True, help="also read every file against its sha256")
@click.option(
    "--repair", is_flag=True, help="move damaged units to quarantine/: the next run makes them anew"
)
@click.option("--rescore", help="score this share of the samples again and compare, e.g. 0.1%")
@_some_shards
@unit_size_option
@click.option("--mae", type=PLACE, help="for --rescore: the weights the cache was scored with")
@click.option("--device", default="auto", show_default=True, help="for --rescore")
@click.option("--seed", default=0, show_default=True, help="for --rescore: which samples")
def verify(cache: str, deep: bool, repair: bool, rescore: str | None, **options: Any) -> int:
    """Check a cache, unit by unit; prints one line a fault.

    Example: ltrp-pipeline verify cache --deep
    """
    from pipeline.store.verify import problems

    share = None if rescore is None else parse_share("--rescore", rescore)
    if share is not None and not (options["shards"] and options["mae"]):
        raise RequestError("--rescore needs --shards and --mae, those the cache was scored with")
    opened = open_cache_of("CACHE", cache, *UNIT_FOLDERS)
    faults = list(problems(opened, deep=deep))
    for fault in faults:
        say(printable(fault.what))
    damaged = [fault for fault in faults if fault.unit is not None]
    if repair:
        with opened.storage.lock():
            for fault in damaged:
                quarantine(fault.storage or opened.storage, str(fault.unit))
        stage = opened.identity.get("stage", "score")
        say(f"{len(damaged)} unit(s) moved to quarantine; run the same `{stage}` again")
    count = len(faults) + (_rescore(opened, share, **options) if share is not None else 0)
    units = {fault.unit for fault in damaged if fault.storage is opened.storage}
    rows = [row for unit, row in opened.rows.items() if unit not in units]
    n_in, n_ok, n_bad = (sum(getattr(r, name) for r in rows) for name in ("n_in", "n_ok", "n_bad"))
    say(f"{len(rows)} complete units, {n_in} samples = {n_ok} ok + {n_bad} bad, {count} faults")
    return 1 if count else 0


def _rescore(
    cache: Cache,
    share: float,
    *,
    shards: tuple[str, ...],
    unit_size: int,
    mae: str,
    device: str,
    seed: int,
) -> int:
    """Prints what scoring again has shown; returns the number of faults."""
    from pipeline.inspection.rescore import rescore

    found = listed(shards, unit_size=unit_size)
    result = rescore(cache, found, mae, share, seed=seed, device=device)
    for line in (*sorted(result.notes), *result.faults):
        say(printable(line))
    say(
        f"scored {result.samples} samples ({result.records} records) again: largest difference "
        f"{result.largest:.2e} of the largest score of its record"
    )
    return len(result.faults)


@click.command()
@click.argument("cache", type=PLACE)
@click.option(
    "--to", "store", type=click.Choice(["zarr", "webdataset"]), required=True, help="wanted form"
)
@click.option("--out", type=PLACE, required=True, help="folder or URL of the new cache")
def convert(cache: str, store: str, out: str) -> int:
    """Write a cache in the other form.

    Zarr arrays to WebDataset tars or back, without loss; CACHE itself is not touched.

    Example: ltrp-pipeline convert cache --to webdataset --out tars
    """
    from pipeline.store.convert import convert as convert_cache

    return finish(
        convert_cache(open_cache_of("CACHE", cache, *CACHES), out, store, open_progress())
    )


@click.command()
@click.argument("cache", type=PLACE)
@click.argument("unit", required=False)
@click.option("--key", help="a sample: its views and scores instead of the unit")
@click.option("--png", type=PATH, help="with --key: draw the view and its visible patches here")
@_some_shards
@unit_size_option
@click.option("--view", default=0, show_default=True, help="of the picture")
@click.option("--partition", default=0, show_default=True, help="of the picture")
def inspect(cache: str, unit: str | None, key: str | None, png: Path | None, **options: Any) -> int:
    """Show what is in a unit.

    UNIT is the name of a unit or its shard, or how it begins; without it the units are listed.
    The picture is cut out of the shards again, or comes from a cache made with --pixels.

    Example: ltrp-pipeline inspect cache train-0001 --key n01440764_10026 --png patch.png
    """
    from pipeline.inspection.inspect_unit import (
        describe_sample,
        describe_unit,
        draw_sample,
        find_unit,
    )

    opened = open_cache_of("CACHE", cache, *CACHES)
    _check_inspected(unit, key, png)
    if unit is None:
        for row in opened.rows.values():
            say(f"{row.unit}  {row.n_ok} ok, {row.n_bad} bad, {row.bytes} bytes")
        for name, problem in opened.damaged.items():
            say(f"{name}  damaged: {problem}")
        return 0
    name = find_unit(opened, unit)
    text = describe_unit(opened, name) if key is None else describe_sample(opened, name, key)
    if key is not None and png is not None:
        patterns, unit_size = options.pop("shards"), options.pop("unit_size")
        shards = listed(patterns, unit_size=unit_size) if patterns else []
        draw_sample(opened, name, key, png, shards=shards, **options)
        text += f"\ndrew {png}"
    say(text)
    return 0


def _check_inspected(unit: str | None, key: str | None, png: Path | None) -> None:
    """Raises RequestError for what would be left out of what was asked for."""
    if key is not None and unit is None:
        raise RequestError(
            "--key needs UNIT: name the unit or shard that holds the sample; "
            "`ltrp-pipeline inspect CACHE` lists them"
        )
    if png is not None and key is None:
        raise RequestError("--png draws one sample: say which with UNIT and --key")
    ignored = given({"shards", "unit_size", "view", "partition"}) if png is None else {}
    if ignored:
        name = sorted(ignored)[0].replace("_", "-")
        raise RequestError(f"--{name} is for the picture: pass --png, or leave it out")
