"""A whole run from one YAML file: which stages, with which options, fed by which others.

The file names stages; what a stage does not say is filled in: shards from the top of the file, and
the outputs of earlier stages. `$NAME` in a value is the output folder of stage NAME. A section with
`each` is several stages of one command, see `pipeline.runs.groups`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ltrp_core.errors import RequestError, unknown_name
from ltrp_core.regular_files import read_regular
from pipeline.parsing import parse_yaml
from pipeline.runs.groups import (
    EACH,
    NAME,
    REFERENCE,
    Groups,
    labels,
    mapping,
    members,
    not_given,
    spread,
)
from pipeline.runs.spec import NAMES, stage

_TOP = ("out", "shards", "stages")


@dataclass(frozen=True, slots=True)
class Section:
    """A stage of the file."""

    name: str
    command: str
    options: Mapping[str, Any]
    """As in the file, filled in; keys with hyphens. A list: the option is given repeatedly."""
    group: str = ""
    """The section whose `each` names it; empty: it is a section itself"""

    def is_called(self, name: str | None) -> bool:
        """Whether `name` is its own, or that of the section that it is one of."""
        return bool(name) and name in (self.name, self.group)

    @property
    def sources(self) -> list[str]:
        """Names of the stages whose output it is given, in the order of its options."""
        found = [name for _, value in self._texts() for name in REFERENCE.findall(value)]
        return list(dict.fromkeys(found))

    def resolved(self, outs: Mapping[str, str]) -> dict[str, Any]:
        """Returns the options with the folders of `outs` in place of references."""

        def put(value: Any) -> Any:
            if isinstance(value, list):
                return [put(one) for one in value]
            if not isinstance(value, str):
                return value
            return REFERENCE.sub(lambda found: outs[found[1]], value)

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

    @property
    def names(self) -> list[str]:
        """What its stages are called, and sections of several stages, in the order of the run."""
        both = [name for section in self.sections for name in (section.group, section.name)]
        return [name for name in dict.fromkeys(both) if name]


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
        RequestError: no such file, not of this form, a change that names nothing, or a value that
            the file leaves to who runs it is not given.
    """
    where, text = _read(source)
    document = mapping(where, parse_yaml(text, where), "the file")
    for change in changes:
        _change(document, change)
    unknown = [key for key in document if key not in _TOP]
    if unknown:
        raise RequestError(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(_TOP)}")
    if missing := not_given(where, document):
        raise RequestError(
            f"{where}: not given: {', '.join(missing)}; pass each with --set NAME=VALUE"
        )
    stages = mapping(where, document.get("stages"), "stages")
    sections = [one for name, options in stages.items() for one in _sections(where, name, options)]
    if not sections:
        raise RequestError(f"{where}: stages is empty; name one of {', '.join(NAMES)}")
    groups = _groups(where, sections)
    shards = document.get("shards")
    filled = [_filled(section, groups, shards) for section in sections]
    filled.sort(key=lambda section: NAMES.index(section.command))
    _check_sources(where, filled)
    return RunConfig(where, Path(str(document.get("out", "run"))).expanduser(), filled)


def _read(source: str) -> tuple[str, str]:
    path = Path(source)
    if source in recipes() and not path.is_file():  # its output may have its name
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


def _change(document: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals:
        raise RequestError(f"--set {change}: write STAGE.OPTION=VALUE")
    value = parse_yaml(text, f"--set {change[:60]}: its value")
    stage, dot, option = key.partition(".")
    if not dot:
        document[key] = value
        return
    stages = mapping("--set", document.get("stages"), "stages")
    places = [stages, *(of for _, of in members("--set", stages))]
    there = next((place for place in places if stage in place), None)
    if there is None:
        raise unknown_name("stage of --set", stage, [name for place in places for name in place])
    options = mapping("--set", there[stage], stage)
    # As written there, with hyphens or underscores.
    for name in [name for name in options if _hyphened(name) == _hyphened(option)]:
        del options[name]
    there[stage] = {**options, option: value}


def _sections(where: str, name: str, options: Any) -> Iterator[Section]:
    """Yields the stages of a section of the file: itself, or those that its `each` names."""
    given = dict(mapping(where, options, f"stage {name}"))
    if EACH not in given:
        yield _section(where, name, given)
        return
    of_each = mapping(where, given.pop(EACH), f"each of stage {name}")
    if not of_each or "out" in given:
        what = "`out` is one folder; say it in `each`" if of_each else "each is empty"
        raise RequestError(f"{where}: stage {name}: {what}")
    shared = _section(where, name, given)
    for own_name, own in of_each.items():
        if own_name in (*NAMES, "teacher"):
            raise RequestError(
                f"{where}: each of stage {name}: {own_name} is a stage; take another name"
            )
        one = _section(
            where, own_name, {"command": shared.command, **mapping(where, own, f"stage {own_name}")}
        )
        if one.command != shared.command:
            raise RequestError(f"{where}: stage {own_name}: it is of {name}; leave `command` out")
        yield Section(own_name, one.command, {**shared.options, **one.options}, group=name)


def _section(where: str, name: str, options: Mapping[str, Any]) -> Section:
    if not NAME.fullmatch(name):
        raise RequestError(
            f"{where}: stage {name!r}: a stage's output is a folder of that name; "
            "take letters, digits, _ and -, a letter first"
        )
    given = dict(options)
    command = str(given.pop("command", "score" if name == "teacher" else name))
    if command not in NAMES:
        raise RequestError(
            f"{where}: {unknown_name('stage', command, NAMES)} A stage of another name says "
            "which one it is by `command:`"
        )
    return Section(name, command, {_hyphened(key): value for key, value in given.items()})


def _groups(where: str, sections: Sequence[Section]) -> Groups:
    """Returns the stages that a name stands for: itself, or all of a section's `each`."""
    groups: Groups = {}
    for section in sections:
        if section.name in groups:
            raise RequestError(f"{where}: two stages are called {section.name}; rename one")
        groups[section.name] = [section.name]
    stages = set(groups)
    for section in sections:
        if section.group in stages:
            raise RequestError(f"{where}: two stages are called {section.group}; rename one")
        if section.group:
            groups.setdefault(section.group, []).append(section.name)
    return groups


def _filled(section: Section, groups: Groups, shards: Any) -> Section:
    """Adds what the file need not say."""
    spec = stage(section.command)
    options = {key: spread(value, groups) for key, value in section.options.items()}
    found = shards if shards is not None else "$pack" if "pack" in groups else None
    if found is not None and spec.on_shards:
        options.setdefault("shards", found)
    if section.is_called("teacher"):
        for key, value in (("crop", "eval"), ("sampler", "cover"), ("partitions", 22)):
            options.setdefault(key, value)
    for key, references in spec.fed_by.items():
        given = [text for text in references if REFERENCE.findall(text)[0] in groups]
        there = spread(given, groups)
        if there and key not in options:
            options[key] = there if key in spec.takes_several else there[0]
    called = labels(options.get("selections"), groups)
    if called and "selections" in spec.takes_several:
        options.setdefault("label", called)
    return Section(section.name, section.command, options, section.group)


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
