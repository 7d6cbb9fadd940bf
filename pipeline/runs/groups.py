"""Several stages of one command in one section of a run file: its `each`.

    select:
      keep-ratio: [0.25, 0.5]
      each:
        by-ranker: {ranker: ranker_tiny}
        by-center: {selector: center}

Each is a stage with a name and a folder of its own, and has the section's options but for those
that it says itself. `$by-center` is its output, and `$select` that of all of them, in their order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ltrp_core.errors import RequestError

EACH = "each"
NOT_GIVEN = "???"
"""A value that the file leaves to who runs it."""
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
REFERENCE = re.compile(r"\$([A-Za-z][A-Za-z0-9_-]*)")

Groups = dict[str, list[str]]
"""Name of a section or a stage -> the stages that it stands for"""


def mapping(where: str, value: Any, what: str) -> dict[str, Any]:
    """Returns a mapping of the file as it is; nothing is an empty one.

    Raises:
        RequestError: it is none, or a name in it is no text.
    """
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RequestError(f"{where}: {what} must be a mapping of names to values")
    return value


def members(where: str, stages: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the sections that have an `each`, with it as it is in the file."""
    for name, options in stages.items():
        if isinstance(options, dict) and EACH in options:
            yield name, mapping(where, options[EACH], f"each of stage {name}")


def not_given(where: str, document: Mapping[str, Any]) -> list[str]:
    """Returns what the file leaves to who runs it and nobody gave, as `--set` names it."""
    stages = mapping(where, document.get("stages"), "stages")
    places = [stages, *(of for _, of in members(where, stages))]
    found = [key for key, value in document.items() if value == NOT_GIVEN]
    return found + [
        f"{name}.{key}"
        for place in places
        for name, options in place.items()
        for key, value in mapping(where, options, f"stage {name}").items()
        if value == NOT_GIVEN
    ]


def spread(value: Any, groups: Mapping[str, list[str]]) -> Any:
    """Returns a value with all stages in place of the section they are in: then it is a list."""
    if isinstance(value, list):
        found = [spread(one, groups) for one in value]
        return [one for part in found for one in (part if isinstance(part, list) else [part])]
    if not isinstance(value, str):
        return value
    for found_at in REFERENCE.finditer(value):
        own = groups.get(found_at[1], [found_at[1]])
        if own != [found_at[1]]:
            before, after = value[: found_at.start()], value[found_at.end() :]
            return spread([f"{before}${name}{after}" for name in own], groups)
    return value


def labels(selections: Any, groups: Mapping[str, list[str]]) -> list[str]:
    """Returns what tables call selections, if some of them are one of several: their names."""
    values = selections if isinstance(selections, list) else [selections]
    found = [REFERENCE.fullmatch(one) if isinstance(one, str) else None for one in values]
    names = [one[1] for one in found if one is not None]
    together = {stage for name, stages in groups.items() for stage in stages if stage != name}
    return names if len(names) == len(values) and together & set(names) else []
