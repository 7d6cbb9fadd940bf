"""What every file of weights is checked for."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ltrp_core.errors import CheckpointError

_SHOWN_KEYS = 5


def check_finite(source: str | os.PathLike[str], state: Mapping[str, Tensor]) -> None:
    """Checks weights, whatever their precision.

    Raises:
        CheckpointError: a value is infinite or no number; the message names `source` and keys.
    """
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{source}: not finite as {state[broken[0]].dtype}: {listed(broken)}; the training "
            "diverged or the file is damaged: use an earlier checkpoint or another copy"
        )


def check_same(
    name: str, path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Checks that a file has the parameters of a model, no more and no less.

    Args:
        name: what the model is called.
        path: of the file.
        wanted: parameters of the model.
        found: parameters of the file.

    Raises:
        CheckpointError: it has not; names the first ones.
    """
    others = [
        f"{key} is {tuple(found[key].shape)}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in found and found[key].shape != value.shape
    ]
    faults = [
        f"{len(keys)} {words} ({listed(keys)})"
        for words, keys in (
            ("missing", _without(wanted, found)),
            ("unknown", _without(found, wanted)),
            ("of another shape", others),
        )
        if keys
    ]
    if faults:
        raise CheckpointError(
            f"{path} is not of {name}: of its parameters {'; '.join(faults)}; pass the model that "
            "the file was written from"
        )


def not_finite(state: Any, name: str = "") -> list[str]:
    """Returns the names of the tensors in nested mappings and lists that hold an inf or a nan."""
    if isinstance(state, Tensor):
        return [] if bool(state.isfinite().all()) else [name]
    if isinstance(state, Mapping):
        inner = [(str(key), value) for key, value in state.items()]
    elif isinstance(state, Sequence) and not isinstance(state, str):
        inner = [(str(number), value) for number, value in enumerate(state)]
    else:
        return []
    return [
        found for key, value in inner for found in not_finite(value, f"{name}.{key}".lstrip("."))
    ]


def listed(keys: Iterable[str]) -> str:
    """Returns the first keys, and how many more there are."""
    keys = list(keys)
    more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return ", ".join(keys[:_SHOWN_KEYS]) + more


def _without(these: Collection[str], those: Collection[str]) -> list[str]:
    return [key for key in these if key not in those]
