"""What a stage of a whole run would do: its command line, its folder, and whether it is done."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.runs.config import RunConfig, Section
from pipeline.runs.spec import stage
from pipeline.runs.state import (
    ShardsState,
    fingerprint,
    is_done,
    state_of_path,
    state_of_shards,
)
from stages.options import is_absent


class Commands(Protocol):
    """The commands of the stages; `pipeline.commands.command_lines` has them."""

    def arguments(
        self, where: str, section: Section, options: Mapping[str, Any], out: str
    ) -> list[str]:
        """Returns the options as a command line takes them."""
        ...

    def parse(self, where: str, section: Section, arguments: Sequence[str]) -> dict[str, Any]:
        """Returns the parameters of the stage's command.

        Raises:
            RequestError: an option that the command has not, of another type, or out of its range.
        """
        ...

    def run(self, section: Section, arguments: Sequence[str]) -> int:
        """Runs the command; returns its exit status."""
        ...


_HOW_ONLY = frozenset({"out", "workers", "ray_address", "shard_timeout"})
"""Parameters of commands that change no number, beside those that configs say of themselves."""
_PATHS = frozenset(
    {"mae", "ranker", "annotations", "cache", "maps", "teacher", "images", "init", "init_from"}
    | {"weights", "dino"}
    | {"selections", "evaluation", "training", "ranking", "first", "second"}
    | {"validation_shards", "validation_selections"}
)
"""A path changes no number, but what lies there does. A name (`--ranker vit_tiny`) is as good."""
_LATER = frozenset({"label", "dino"})
"""Parameters that are in no config and came later: those of older runs are as if not given."""


@dataclass(slots=True)
class Step:
    """A stage of a run, ready to be started."""

    section: Section
    arguments: list[str]
    folder: Path
    inputs: str
    """Fingerprint of all that its output depends on"""
    stamps: str
    """Of the shards that it is given itself"""
    done: bool

    @property
    def line(self) -> str:
        """The command, as it could be typed."""
        return shlex.join(["ltrp-pipeline", *stage(self.section.command).typed, *self.arguments])


def check(config: RunConfig, section: Section, commands: Commands) -> None:
    """Checks all options of a stage before any stage is run.

    Raises:
        RequestError: an option that the command has not, of another type, or out of its range.
    """
    outs = {source: str(config.out / source) for source in section.sources}
    arguments = commands.arguments(config.where, section, section.resolved(outs), "out")
    commands.parse(config.where, section, arguments)


def plan(
    config: RunConfig, section: Section, before: Mapping[str, Step], commands: Commands
) -> Step:
    """Returns the next stage of a run, ready to be started, after those `before` it."""
    outs = {source: str(before[source].folder) for source in section.sources}
    options = section.resolved(outs)
    arguments = commands.arguments(config.where, section, options, "out")
    parsed = commands.parse(config.where, section, arguments)
    numbers = _numbers(section, parsed)
    shards = _shards_of(section, parsed)
    listed, stamps = shards if shards is not None else (None, "")
    inputs = {source: before[source].inputs for source in section.sources}
    if stage(section.command).grows:
        # Further shards go into the folder that is there.
        folders = {source: before[source].folder.name for source in section.sources}
        in_name: list[Any] = [numbers, folders]
    else:
        in_name = [numbers, inputs, listed]
    own = options.get("out")
    folder = (
        config.out / f"{section.name}-{fingerprint(in_name)}"
        if own is None
        else Path(str(own)).expanduser()
    )
    depends_on = fingerprint([numbers, inputs, listed])
    return Step(
        section,
        commands.arguments(config.where, section, options, str(folder)),
        folder,
        depends_on,
        stamps,
        is_done(config.out, folder, depends_on, stamps),
    )


def _shards_of(section: Section, parsed: Mapping[str, Any]) -> ShardsState | None:
    """Returns the state of the shards that are given; those of another stage are its own."""
    given = section.options.get("shards")
    if not given or "$" in str(given):
        return None
    return state_of_shards([str(one) for one in parsed["shards"]], parsed.get("unit_size", 1000))


def _numbers(section: Section, parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that change a number; of files, what is in them."""
    silent = set(_HOW_ONLY) | {"shards"}
    parsed = dict(parsed)
    for kind in stage(section.command).config_types():
        parsed |= _settled(kind, parsed)
        for field in dataclasses.fields(kind):
            later = is_absent(field, parsed.get(field.name))
            silent |= {field.name} if later or not field.metadata["changes_numbers"] else set()
    fed = {
        key.replace("-", "_")
        for key, value in section.options.items()
        if any("$" in str(one) for one in (value if isinstance(value, list) else [value]))
    }
    values: dict[str, Any] = {}
    for name, value in parsed.items():
        if name in fed or value is None or (name in _LATER and not value):
            continue
        if name in _PATHS and value != "":
            paths = value if isinstance(value, tuple) else (value,)
            values[name] = [state_of_path(str(path)) for path in paths]
        elif name not in silent:
            values[name] = value
    return values


def _settled(kind: type[Any], parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a config makes of the options that nobody gave: a default may mean another."""
    fields = [field for field in dataclasses.fields(kind) if field.name in parsed]
    config = kind(**{field.name: parsed[field.name] for field in fields})
    names = [field.name for field in fields if parsed[field.name] == field.default]
    return {name: getattr(config, name) for name in names}
