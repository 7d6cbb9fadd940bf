"""`run`: all stages from one file, each by its own command, skipped where it is complete."""

from __future__ import annotations

import dataclasses
import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ltrp_core.errors import RequestError
from pipeline.commands import evaluations
from pipeline.commands import run as stage_commands
from pipeline.commands.options import PLACE, ray_address_option
from pipeline.console.terminal import say
from pipeline.runs.config import RunConfig, Section, read_config
from pipeline.runs.state import (
    ShardsState,
    fingerprint,
    is_done,
    mark_done,
    state_of_path,
    state_of_shards,
)
from pipeline.training.options import RunOptions, TrainingRunOptions
from pipeline.units.runner import UnitOptions
from stages.evaluate_patches import EvaluateConfig
from stages.evaluate_ranking import RankingConfig
from stages.pack import PackConfig
from stages.pretrain_mae import PretrainConfig
from stages.report import ReportConfig
from stages.score import ScoreConfig
from stages.select_patches import SelectConfig
from stages.train_ranker import TrainRankerConfig

_CONFIGS: Mapping[str, tuple[type[Any], ...]] = {
    "pack": (PackConfig,),
    "pretrain-mae": (PretrainConfig, TrainingRunOptions),
    "score": (ScoreConfig, UnitOptions),
    "train-ranker": (TrainRankerConfig, RunOptions),
    "select": (SelectConfig, UnitOptions),
    "evaluate-patches": (EvaluateConfig,),
    "evaluate-ranking": (RankingConfig,),
    "report": (ReportConfig,),
}
_HOW_ONLY = frozenset({"out", "workers", "ray_address", "shard_timeout"})
"""Parameters of commands that change no number, beside those that configs say of themselves."""
_PATHS = frozenset(
    {"mae", "ranker", "annotations", "cache", "maps", "teacher", "images", "init", "init_from"}
    | {"selections", "evaluation", "training", "ranking", "first", "second"}
)
"""A path changes no number, but what lies there does. A name (`--ranker vit_tiny`) is as good."""
_GROWS = frozenset({"score", "select"})
"""Their folders take further shards in: what is there is not made again."""


def _command(name: str) -> click.Command:
    if name.startswith("evaluate-"):
        return evaluations.evaluate.commands[name.removeprefix("evaluate-")]
    command: click.Command = getattr(stage_commands, name.replace("-", "_"))
    return command


@dataclass(slots=True)
class _Step:
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
        words = self.section.command.replace("evaluate-", "evaluate ").split()
        return shlex.join(["ltrp-pipeline", *words, *self.arguments])


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

    CONFIG is a file, or a recipe of the package: paper, laptop, eight_gpus. A stage whose output is
    complete and whose options and input have not changed is skipped; a change runs it, and what
    depends on it, in new folders beside the old ones. Paths are relative to the current folder.

    Example: ltrp-pipeline run laptop --set shards=photos --set out=trial
    """
    document = read_config(config, changes)
    if ray_address is not None:
        document = dataclasses.replace(
            document, sections=[_at(section, ray_address) for section in document.sections]
        )
    for name, stage in (("--from", start), ("--only", only)):
        known = [section.name for section in document.sections]
        if stage is not None and stage not in known:
            raise RequestError(f"{name} {stage}: {document.where} has {', '.join(known)}")
    if start is not None and only is not None:
        raise RequestError("--from and --only exclude each other; pass one")
    for section in document.sections:
        _check(document, section)
    return _Run(document, start, only, dry_run).all()


def _at(section: Section, ray_address: str) -> Section:
    """Returns the section with the address, if its command works on clusters and has none yet."""
    if not any(param.name == "ray_address" for param in _command(section.command).params):
        return section
    return dataclasses.replace(section, options={"ray-address": ray_address, **section.options})


@dataclass(slots=True)
class _Run:
    config: RunConfig
    start: str | None
    only: str | None
    dry_run: bool
    steps: dict[str, _Step] = dataclasses.field(default_factory=dict)
    is_forced: bool = False

    def all(self) -> int:
        """Runs or shows one stage after the other; returns the exit status of the last."""
        for section in self.config.sections:
            step = _plan(self.config, section, self.steps)
            self.steps[section.name] = step
            status = self._one(step)
            if status:
                return status
        return 0

    def _one(self, step: _Step) -> int:
        name = step.section.name
        self.is_forced |= name == self.start
        waits = [s for s in step.section.sources if not self.steps[s].done]
        wanted = (self.only in (None, name)) and (
            self.is_forced or name == self.only or not step.done
        )
        state = "complete" if step.done and not wanted else "left out" if not wanted else "to do"
        say(f"{name}: {state}: {step.folder}", err=not self.dry_run)
        if self.dry_run:
            say(f"  {step.line}")
            step.done |= wanted  # what comes after it is told as if it had run
            return 0
        if not wanted:
            return 0
        if waits:
            raise RequestError(
                f"stage {name} needs the output of stage {waits[0]}, which is not complete; "
                "run that first"
            )
        status = _command(step.section.command).main(
            step.arguments, prog_name=name, standalone_mode=False
        )
        if not status:
            mark_done(self.config.out, step.folder, step.inputs, step.line, name, step.stamps)
            step.done = True
        else:
            say(f"{self.config.where}: stage {name} failed; what is done is kept", err=True)
        return int(status or 0)


def _check(config: RunConfig, section: Section) -> None:
    """Checks all options of a stage before any stage is run.

    Raises:
        RequestError: an option that the command has not, of another type, or out of its range.
    """
    outs = {source: str(config.out / source) for source in section.sources}
    _parse(config, section, _arguments(config, section, section.resolved(outs), "out"))


def _plan(config: RunConfig, section: Section, before: Mapping[str, _Step]) -> _Step:
    outs = {source: str(before[source].folder) for source in section.sources}
    options = section.resolved(outs)
    parsed = _parse(config, section, _arguments(config, section, options, "out"))
    numbers = _numbers(section, parsed)
    shards = _shards_of(section, parsed)
    listed, stamps = shards if shards is not None else (None, "")
    inputs = {source: before[source].inputs for source in section.sources}
    if section.command in _GROWS:
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
    return _Step(
        section,
        _arguments(config, section, options, str(folder)),
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


def _arguments(
    config: RunConfig, section: Section, options: Mapping[str, Any], out: str
) -> list[str]:
    """Returns the options as a command line takes them."""
    params = {
        name: param
        for param in _command(section.command).params
        for name in ([opt.removeprefix("--") for opt in param.opts])
    }
    line: list[str] = []
    positional: dict[str, str] = {}
    for key, value in {**options, "out": out}.items():
        if key not in params:
            close = difflib.get_close_matches(key, params, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(params))}"
            raise RequestError(f"{config.where}: stage {section.name}: no option {key!r}; {hint}")
        param = params[key]
        if isinstance(param, click.Argument):
            positional[str(param.name)] = str(value)
            continue
        line += _words(config, section, key, param, value)
    names = [str(param.name) for param in _command(section.command).params]
    return [*(positional[name] for name in names if name in positional), *line]


def _words(
    config: RunConfig, section: Section, key: str, param: click.Parameter, value: Any
) -> list[str]:
    where = f"{config.where}: stage {section.name}: {key}"
    if value is None:
        return []
    if getattr(param, "is_flag", False):
        if not isinstance(value, bool):
            raise RequestError(f"{where} is true or false, not {value!r}")
        return [f"--{key}"] if value else []
    values = value if isinstance(value, list) else [value]
    if len(values) != 1 and not param.multiple:
        raise RequestError(f"{where} takes one value, not {len(values)}")
    if any(isinstance(one, (dict, list, bool)) or one is None for one in values):
        raise RequestError(f"{where} takes a text or a number, not {value!r}")
    return [word for one in values for word in (f"--{key}", str(one))]


def _parse(config: RunConfig, section: Section, arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the parameters of the stage's command."""
    command = _command(section.command)
    try:
        parsed = dict(command.make_context(section.name, list(arguments)).params)
        for kind in _CONFIGS.get(section.command, ()):
            names = {field.name for field in dataclasses.fields(kind)}
            kind(**{name: value for name, value in parsed.items() if name in names})
    except (click.ClickException, RequestError) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        raise RequestError(f"{config.where}: stage {section.name}: {text}") from error
    return parsed


def _numbers(section: Section, parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that change a number; of files, what is in them."""
    silent = set(_HOW_ONLY) | {"shards"}
    for kind in _CONFIGS.get(section.command, ()):
        for field in dataclasses.fields(kind):
            later = field.metadata["absent_by_default"] and parsed.get(field.name) == field.default
            silent |= {field.name} if later or not field.metadata["changes_numbers"] else set()
    fed = {
        key.replace("-", "_")
        for key, value in section.options.items()
        if any("$" in str(one) for one in (value if isinstance(value, list) else [value]))
    }
    values: dict[str, Any] = {}
    for name, value in parsed.items():
        if name in fed or value is None:
            continue
        if name in _PATHS and value != "":
            paths = value if isinstance(value, tuple) else (value,)
            values[name] = [state_of_path(str(path)) for path in paths]
        elif name not in silent:
            values[name] = value
    return values
