"""A whole run from one YAML file: which stages, with which options, fed by which others.

The file names stages; what a stage does not say is filled in: shards from the top of the file, and
the outputs of earlier stages. `$NAME` in a value is the output folder of stage NAME.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ltrp_core.errors import RequestError, unknown_name
from ltrp_core.regular_files import read_regular
from pipeline.parsing import parse_yaml
from pipeline.runs.spec import NAMES, stage

_TOP = ("out", "shards", "stages")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_REFERENCE = re.compile(r"\$([A-Za-z][A-Za-z0-9_-]*)")


@dataclass(frozen=True, slots=True)
class Section:
    """A stage of the file."""

    name: str
    command: str
    options: Mapping[str, Any]
    """As in the file, filled in; keys with hyphens. A list: the option is given repeatedly."""

    @property
    def sources(self) -> list[str]:
        """Names of the stages whose output it is given, in the order of its options."""
        found = [name for _, value in self._texts() for name in _REFERENCE.findall(value)]
        return list(dict.fromkeys(found))

    def resolved(self, outs: Mapping[str, str]) -> dict[str, Any]:
        """Returns the options with the folders of `outs` in place of references."""

        def put(value: Any) -> Any:
            if isinstance(value, list):
                return [put(one) for one in value]
            if not isinstance(value, str):
                return value
            return _REFERENCE.sub(lambda found: outs[found[1]], value)

        return {key: put(value) for key, value in self.options.items()}

    def _texts(self) -> Iterator[tuple[str, str]]:
        for key, value in self.options.items():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, str):
                    yield key, one


@dataclass(frozen=True, slots=True)
class RunConfig:
    """A whole run."""

    where: str
    """The file, for messages"""
    out: Path
    sections: Sequence[Section]
    """In the order of the run"""


def recipes() -> list[str]:
    """Returns the names of the configs that the package brings."""
    folder = resources.files("pipeline") / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name[-5:] == ".yaml")


def read_config(source: str, changes: Sequence[str] = ()) -> RunConfig:
    """Reads a file, or a recipe by its name.

    Args:
        changes: `STAGE.OPTION=VALUE`, `shards=VALUE` or `out=VALUE`, the value as in YAML; they
            take the place of what the file says.

    Raises:
        RequestError: no such file, not of this form, or a change that names nothing.
    """
    where, text = _read(source)
    document = _mapping(where, parse_yaml(text, where), "the file")
    for change in changes:
        _change(document, change)
    unknown = [key for key in document if key not in _TOP]
    if unknown:
        raise RequestError(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(_TOP)}")
    stages = _mapping(where, document.get("stages"), "stages")
    sections = [_section(where, name, options) for name, options in stages.items()]
    if not sections:
        raise RequestError(f"{where}: stages is empty; name one of {', '.join(NAMES)}")
    names = {section.name for section in sections}
    shards = document.get("shards")
    filled = [_filled(section, names, shards) for section in sections]
    filled.sort(key=lambda section: NAMES.index(section.command))
    _check_sources(where, filled)
    return RunConfig(where, Path(str(document.get("out", "run"))).expanduser(), filled)


def _read(source: str) -> tuple[str, str]:
    path = Path(source)
    if source in recipes() and not path.exists():
        return f"recipe {source}", (
            resources.files("pipeline") / "recipes" / f"{source}.yaml"
        ).read_text()
    try:
        return str(path), read_regular(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"{source} cannot be read ({error}); pass a YAML file or a recipe: "
            f"{', '.join(recipes())}"
        ) from error


def _mapping(where: str, value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RequestError(f"{where}: {what} must be a mapping of names to values")
    return value


def _change(document: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals:
        raise RequestError(f"--set {change}: write STAGE.OPTION=VALUE")
    value = parse_yaml(text, f"--set {change[:60]}: its value")
    stage, dot, option = key.partition(".")
    if not dot:
        document[key] = value
        return
    stages = _mapping("--set", document.get("stages"), "stages")
    if stage not in stages:
        raise unknown_name("stage of --set", stage, list(stages))
    options = _mapping("--set", stages[stage], stage)
    # As written there, with hyphens or underscores.
    for name in [name for name in options if _hyphened(name) == _hyphened(option)]:
        del options[name]
    stages[stage] = {**options, option: value}


def _section(where: str, name: str, options: Any) -> Section:
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"{where}: stage {name!r}: a stage's output is a folder of that name; "
            "take letters, digits, _ and -, a letter first"
        )
    given = _mapping(where, options, f"stage {name}")
    command = str(given.pop("command", "score" if name == "teacher" else name))
    if command not in NAMES:
        raise RequestError(
            f"{where}: {unknown_name('stage', command, NAMES)} A stage of another name says "
            "which one it is by `command:`"
        )
    return Section(name, command, {_hyphened(key): value for key, value in given.items()})


def _filled(section: Section, names: set[str], shards: Any) -> Section:
    """Adds what the file need not say."""
    options, spec = dict(section.options), stage(section.command)
    found = shards if shards is not None else "$pack" if "pack" in names else None
    if found is not None and spec.on_shards:
        options.setdefault("shards", found)
    if section.name == "teacher":
        for key, value in (("crop", "eval"), ("sampler", "cover"), ("partitions", 22)):
            options.setdefault(key, value)
    for key, references in spec.fed_by.items():
        there = [text for text in references if _REFERENCE.findall(text)[0] in names]
        if there and key not in options:
            options[key] = there if len(references) > 1 else there[0]
    return Section(section.name, section.command, options)


def _check_sources(where: str, sections: Sequence[Section]) -> None:
    before: list[str] = []
    for section in sections:
        for source in section.sources:
            if source not in before:
                known = ", ".join(before) or "none"
                raise RequestError(
                    f"{where}: stage {section.name}: ${source} is no stage that runs before it "
                    f"({known})"
                )
        before.append(section.name)


def _hyphened(key: str) -> str:
    return key.replace("_", "-")
