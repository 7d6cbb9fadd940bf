"""What every file of weights is checked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
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
