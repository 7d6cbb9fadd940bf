"""Options: generated from config dataclasses, and those that several commands share."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from ltrp_core.errors import unknown_name
from pipeline.console.progress import print_summary
from pipeline.console.signals import interrupt_on_signals
from pipeline.console.terminal import printable, say
from pipeline.inputs import Shard, find_shards
from pipeline.runs.spec import STAGES
from pipeline.units.options import ShardOptions, UnitOptions
from pipeline.workers import WorkerPool, open_pool
from stages.options import Names
from stages.protocols import Summary

Command = Callable[..., Any]


class _Home(click.ParamType):
    """A path, or what else an option takes (a name, a URL), with `~` as in a shell.

    A shell expands it in `--out ~/x`, but not in `--out=~/x`, in quotes or in a YAML file.
    """

    name = "path"

    def __init__(self, kind: type[Path] | type[str]) -> None:
        self.kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        text = str(value)
        if "\0" in text:
            self.fail(f"{text!r} is no path: it holds a zero byte", param, ctx)
        return self.kind(os.path.expanduser(text) if text.startswith("~") else text)


PATH, PLACE = _Home(Path), _Home(str)
"""Of a path; of a path as text, where a name or a URL may stand, too."""


class OneOf(click.ParamType):
    """A name of a table that may grow after the command was made."""

    name = "name"

    def __init__(self, names: Names) -> None:
        self._names = names

    @property
    def names(self) -> Collection[str]:
        return self._names() if callable(self._names) else self._names

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        del param, ctx
        return f"[{'|'.join(self.names)}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value and value not in self.names:
            self.fail(str(unknown_name("value", str(value), self.names)), param, ctx)
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        del ctx, param
        return [CompletionItem(name) for name in self.names if name.startswith(incomplete)]


_PLACES = frozenset(
    {"mae", "ranker", "teacher", "init", "init_from", "scratch", "weights", "selections"}
)
"""Options of configs that name a path, a model or a URL."""


def config_options(config: type[Any]) -> Callable[[Command], Command]:
    """Returns a decorator that adds one option for every field of a config dataclass."""
    hints = typing.get_type_hints(config)

    def decorate(command: Command) -> Command:
        for field in reversed(dataclasses.fields(config)):
            command = _option(field, hints[field.name])(command)
        return command

    return decorate


def _option(field: dataclasses.Field[Any], hint: Any) -> Callable[[Command], Command]:
    required = field.default is dataclasses.MISSING
    settings: dict[str, Any] = {"help": field.metadata["help"], "required": required}
    if not required:
        settings |= {"default": field.default, "show_default": True}
    if field.metadata.get("names") is not None:
        settings["type"] = OneOf(field.metadata["names"])
    elif field.name in _PLACES and hint is str:
        settings["type"] = PLACE
    elif typing.get_origin(hint) is tuple:
        settings |= {"type": typing.get_args(hint)[0], "multiple": True}
    elif typing.get_origin(hint) is Literal:
        settings["type"] = click.Choice(typing.get_args(hint))
    elif hint is Path:
        settings["type"] = PATH
    elif hint is bool:
        settings = {"help": field.metadata["help"], "is_flag": True, "default": field.default}
    elif isinstance(hint, types.UnionType):
        raise TypeError(f"option {field.name}: give it one type, not {hint}")
    else:
        settings["type"] = hint
    return click.option(f"--{field.name.replace('_', '-')}", field.name, **settings)


def out_option(default: str, *, url: bool = False) -> Callable[[Command], Command]:
    """Returns the option `--out`, a path or, with `url`, a string."""
    kind, words = (
        (PLACE, "output folder, or an s3:// gs:// URL") if url else (PATH, "output folder")
    )
    return click.option("--out", type=kind, default=default, show_default=True, help=words)


_SHARDS = (
    "tars or folders of images: paths, globs, 'train-{0000..0146}.tar', s3:// gs:// hf:// URLs;"
    " may be given repeatedly"
)
shards_option = click.option("--shards", type=PLACE, multiple=True, required=True, help=_SHARDS)
optional_shards_option = click.option(
    "--shards",
    type=PLACE,
    multiple=True,
    help=f"{_SHARDS}. Not needed where the cache holds pixels",
)
unit_size_option = click.option(
    "--unit-size",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="images per unit, where --shards is a folder of images",
)
selections_option = click.option(
    "--selections",
    type=PLACE,
    multiple=True,
    required=True,
    help="--out folder of `select`; several, of the same shards, are compared",
)
label_option = click.option(
    "--label",
    multiple=True,
    help="what tables call a selection, one per --selections; default: its selector's name",
)
_workers = click.option(
    "--workers",
    default="auto",
    show_default=True,
    help="Ray actors: a number, auto (one per GPU, else one per CPU), or 0 = no Ray, this process",
)
ray_address_option = click.option("--ray-address", default=None, help="of a running Ray cluster")
training_workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="processes that train together, one per GPU (Ray Train); 0 = this process, no Ray",
)
_shard_timeout = click.option(
    "--shard-timeout",
    type=click.FloatRange(min=1.0),
    default=3600.0,
    show_default=True,
    help="seconds until a Ray worker that is still at one shard is replaced",
)


def listed(patterns: Sequence[str], unit_size: int = 1000) -> list[Shard]:
    """Returns the shards that `--shards` names; says what was left out there."""
    return find_shards(
        patterns,
        unit_size=unit_size,
        on_note=lambda text: say(f"note: {printable(text)}", err=True),
    )


def on_shards(command: Command) -> Command:
    """Adds the options of a stage that turns every shard into a unit of arrays."""
    return _on_shards(command, UnitOptions)


def on_shards_only(command: Command) -> Command:
    """Adds the same options for a stage whose units are no arrays: they have one form."""
    return _on_shards(command, ShardOptions)


def _on_shards(command: Command, config: type[ShardOptions]) -> Command:
    for add in (
        config_options(config),
        _shard_timeout,
        ray_address_option,
        _workers,
        unit_size_option,
    ):
        command = add(command)
    return command


def cut(options: dict[str, Any], config: type[Any]) -> Any:
    """Takes the fields of `config` out of `options`; returns the config."""
    names = {field.name for field in dataclasses.fields(config)}
    return config(**{name: options.pop(name) for name in names & set(options)})


def given(names: set[str]) -> dict[str, Any]:
    """Returns those options of the running command that were given, not left at their default."""
    context = click.get_current_context()
    sources = {name: context.get_parameter_source(name) for name in names}
    return {n: context.params[n] for n in names if sources[n] is ParameterSource.COMMANDLINE}


def open_pool_of(options: dict[str, Any]) -> AbstractContextManager[WorkerPool]:
    """Takes the pool's options out of `options`; returns the pool."""
    return open_pool(
        options.pop("workers"),
        ray_address=options.pop("ray_address"),
        item_timeout_s=options.pop("shard_timeout"),
        after_start=interrupt_on_signals,
        on_note=lambda text: say(f"note: {printable(text)}", err=True),
    )


def finish(summary: Summary) -> int:
    """Prints the summary, and what comes after the running command; returns the exit status."""
    context = click.get_current_context()
    made = context.command.callback
    name = f"{made.__module__}:{made.__name__}" if made is not None else ""
    spec = next((spec for spec in STAGES if spec.command == name), None)
    if spec is not None and not (summary.failed or summary.stopped):
        summary.next_step = spec.next_step(context.params, summary.output)
    print_summary(summary)
    return 1 if summary.failed or summary.stopped else 0
