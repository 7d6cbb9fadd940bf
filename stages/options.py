"""One declaration an option: its default, its help, and whether it changes a number.

A stage's config is a frozen dataclass whose fields are made by `option`. The command line is
generated from it, so the two cannot drift; `identity` is what a run's id is the hash of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from ltrp_core.errors import RequestError

Names = Collection[str] | Callable[[], Collection[str]]


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    changes_numbers: bool = True,
    absent: Any = dataclasses.MISSING,
    names: Names | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """Returns a dataclass field.

    Args:
        default: omitted = the option is required.
        help: one line with unit and source, shown by `--help`.
        changes_numbers: whether the stage's output depends on it; then it is part of the run's id.
        absent: of an option that came later, the value that says what was done before there was
            it. A run's id lacks the option at this value, so older runs stay what they are.
        names: what a text may be: a table of names, or what returns one, looked at when it is used,
            so that a row that is added from outside is known.
        low: smallest allowed value, inclusive.
        high: largest allowed value, inclusive.
    """
    metadata = {
        "help": help,
        "changes_numbers": changes_numbers,
        "absent": absent,
        "names": names,
        "low": low,
        "high": high,
    }
    return dataclasses.field(default=default, metadata=metadata)


def check_ranges(config: Any) -> None:
    """Checks every numeric option of a config against its bounds; call it in `__post_init__`.

    Raises:
        RequestError: one line that names every option out of its range.
    """
    problems = []
    for field in dataclasses.fields(config):
        low, high = field.metadata.get("low"), field.metadata.get("high")
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            too_small = low is not None and not number >= low
            if too_small or (high is not None and not number <= high):
                allowed = f"{'-inf' if low is None else low} .. {'inf' if high is None else high}"
                problems.append(
                    f"--{field.name.replace('_', '-')} is {number}, out of range {allowed}"
                )
    if problems:
        raise RequestError("; ".join(problems))


def is_absent(field: dataclasses.Field[Any], value: Any) -> bool:
    """Returns whether a run's id lacks an option at a value: see `option`."""
    absent = field.metadata.get("absent", dataclasses.MISSING)
    return absent is not dataclasses.MISSING and bool(value == absent)


def identity(config: Any) -> dict[str, Any]:
    """Returns the options of `config` that change a number, as plain JSON values."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.metadata.get("changes_numbers", True):
            value = getattr(config, field.name)
            if is_absent(field, value):
                continue
            values[field.name] = list(value) if isinstance(value, tuple) else value
    return values
