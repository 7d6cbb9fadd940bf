"""A section of a run file as a command line, and the command line as parsed options."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import click

from ltrp_core.errors import RequestError
from pipeline.runs.config import Section
from pipeline.runs.spec import load, stage


def command_of(section: Section) -> click.Command:
    """Returns the command of a section."""
    command: click.Command = load(stage(section.command).command)
    return command


class CommandLines:
    """What `pipeline.runs` needs of the commands."""

    def run(self, section: Section, arguments: Sequence[str]) -> int:
        """Runs the command of a section; returns its exit status."""
        status = command_of(section).main(
            list(arguments), prog_name=section.name, standalone_mode=False
        )
        return int(status or 0)

    def arguments(
        self, where: str, section: Section, options: Mapping[str, Any], out: str
    ) -> list[str]:
        """Returns the options as a command line takes them."""
        params = {
            name: param
            for param in command_of(section).params
            for name in ([opt.removeprefix("--") for opt in param.opts])
        }
        line: list[str] = []
        positional: dict[str, str] = {}
        for key, value in {**options, "out": out}.items():
            if key not in params:
                close = difflib.get_close_matches(key, params, n=1)
                hint = (
                    f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(params))}"
                )
                raise RequestError(f"{where}: stage {section.name}: no option {key!r}; {hint}")
            param = params[key]
            if isinstance(param, click.Argument):
                positional[str(param.name)] = str(value)
                continue
            line += _words(where, section, key, param, value)
        names = [str(param.name) for param in command_of(section).params]
        return [*(positional[name] for name in names if name in positional), *line]

    def parse(self, where: str, section: Section, arguments: Sequence[str]) -> dict[str, Any]:
        """Returns the parameters of the stage's command."""
        command = command_of(section)
        try:
            parsed = dict(command.make_context(section.name, list(arguments)).params)
            for kind in stage(section.command).config_types():
                names = {field.name for field in dataclasses.fields(kind)}
                kind(**{name: value for name, value in parsed.items() if name in names})
        except (click.ClickException, RequestError) as error:
            text = error.format_message() if isinstance(error, click.ClickException) else str(error)
            raise RequestError(f"{where}: stage {section.name}: {text}") from error
        return parsed


def _words(where: str, section: Section, key: str, param: click.Parameter, value: Any) -> list[str]:
    where = f"{where}: stage {section.name}: {key}"
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
