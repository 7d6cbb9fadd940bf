"""The command that looks at the machine before a run."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from pipeline.commands.options import PLACE
from pipeline.console.terminal import printable, say

_SIGNS = {"ok": "ok", "poor": "POOR", "broken": "BROKEN"}


@click.command()
@click.option(
    "--out", type=PLACE, default=".", show_default=True, help="where results will go: folder or URL"
)
@click.option("--shards", type=PLACE, multiple=True, help="input shards, to be found and opened")
@click.option("--mae", type=PLACE, default="", help="weights that `score` will take")
@click.option("--ranker", type=PLACE, default="", help="ranker that `select` will take")
@click.option("--ray-address", default="", help="of the Ray cluster that will do the work")
@click.option("--json", "as_json", is_flag=True, help="a line of JSON a check, for machines")
def doctor(as_json: bool, shards: tuple[str, ...], **options: str) -> int:
    """Tell whether this machine can do a run, and what to do if not.

    Versions, devices, shared memory, HOME, space at --out; an object store is written to, read from
    and timed, and a second commit must be refused. Exit status 1 if anything is broken.

    Example: ltrp-pipeline doctor --out s3://bucket/cache --mae mae_tiny
    """
    from pipeline.inspection.doctor import Doctor

    broken = False
    for found in Doctor(shards=shards, **options).findings():
        broken |= found.state == "broken"
        if as_json:
            say(json.dumps(asdict(found)))
            continue
        say(f"{_SIGNS[found.state]:7} {found.check:14} {printable(found.text)}")
        if found.remedy:
            say(f"{'':23}-> {found.remedy}")
    return 1 if broken else 0
