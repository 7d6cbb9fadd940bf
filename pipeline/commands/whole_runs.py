"""`run`: all stages from one file, each by its own command, skipped where it is complete."""

from __future__ import annotations

import dataclasses

import click

from ltrp_core.errors import RequestError
from pipeline.commands.command_lines import CommandLines, command_of
from pipeline.commands.options import PLACE, ray_address_option
from pipeline.runs.config import Section, read_config
from pipeline.runs.execute import execute
from pipeline.runs.plan import check


@click.command("run")
@click.argument("config", type=PLACE)
@click.option("--from", "start", metavar="STAGE", help="run this stage and those after it anyway")
@click.option("--only", metavar="STAGE", help="run this stage alone")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="STAGE.OPTION=VALUE",
    help="in place of what the file says; also shards=... and out=...; may be given repeatedly",
)
@ray_address_option
@click.option("--dry-run", is_flag=True, help="show what would be run, as commands; run nothing")
def run(
    config: str,
    start: str | None,
    only: str | None,
    changes: tuple[str, ...],
    ray_address: str | None,
    dry_run: bool,
) -> int:
    """Run all stages of a YAML file.

    CONFIG is a file, or a recipe of the package: paper, laptop, unbiased, ... A stage whose output
    is complete and whose options and input have not changed is skipped; a change runs it, and what
    depends on it, in new folders beside the old ones. Paths are relative to the current folder.

    Example: ltrp-pipeline run laptop --set shards=photos --set out=trial
    """
    document, lines = read_config(config, changes), CommandLines()
    if ray_address is not None:
        document = dataclasses.replace(
            document, sections=[_at(section, ray_address) for section in document.sections]
        )
    for name, stage in (("--from", start), ("--only", only)):
        if stage is not None and stage not in document.names:
            raise RequestError(f"{name} {stage}: {document.where} has {', '.join(document.names)}")
    if start is not None and only is not None:
        raise RequestError("--from and --only exclude each other; pass one")
    for section in document.sections:
        check(document, section, lines)
    return execute(document, lines, start=start, only=only, dry_run=dry_run)


def _at(section: Section, ray_address: str) -> Section:
    """Returns the section with the address, if its command works on clusters and has none yet."""
    if not any(param.name == "ray_address" for param in command_of(section).params):
        return section
    return dataclasses.replace(section, options={"ray-address": ray_address, **section.options})
