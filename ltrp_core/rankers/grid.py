"""A ranker's weights carried to another grid of patches (ours, not in the paper)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ltrp_core.errors import RequestError
from ltrp_core.positions import interpolate_positions, table_grid
from ltrp_core.rankers.models import (
    Ranker,
)


def fit_to_grid(
    state: Mapping[str, Tensor], ranker: Ranker
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns `state`, of such a ranker on any grid, for the grid of `ranker`; and key -> how.

    Keys that `ranker` lacks are left as they are, and so are keys of an equal shape.

    Raises:
        RequestError: a tensor depends on the grid in a way that cannot be carried over.
    """
    fitted, how = dict(state), {}
    for key, wanted in ranker.state_dict().items():
        found = state.get(key)
        if found is None or found.shape == wanted.shape:
            continue
        if key.startswith("head.") and ranker.config["head"] == "cls" and _is_map(found, wanted):
            fitted[key] = _resize_rows(found, ranker.grid)
            words = "bicubic"
        elif key.endswith("pos_embed") and found.ndim == wanted.ndim == 3:
            prefix = _prefix_tokens(ranker, key, wanted)
            new = table_grid(wanted, prefix_tokens=prefix)
            fitted[key], words = interpolate_positions(found, new, prefix_tokens=prefix)
        else:
            raise RequestError(
                f"ranker {ranker.config['name']!r} cannot be carried to a grid of {ranker.grid} x "
                f"{ranker.grid} patches: {key} is {tuple(found.shape)} and would be "
                f"{tuple(wanted.shape)}; train it on that grid, or resize its scores"
            )
        how[key] = f"{_rows(found)} -> {_rows(wanted)}, {words}"
    return fitted, how


def _is_map(found: Tensor, wanted: Tensor) -> bool:
    return found.shape[1:] == wanted.shape[1:] and math.isqrt(len(found)) ** 2 == len(found)


def _resize_rows(rows: Tensor, grid: int) -> Tensor:
    """Returns `rows` (h * h, ...), one per patch, for a grid of g * g patches."""
    old = math.isqrt(len(rows))
    maps = rows.reshape(old, old, -1).permute(2, 0, 1).unsqueeze(0).float()
    resized = F.interpolate(maps, (grid, grid), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).reshape(grid * grid, *rows.shape[1:]).to(rows.dtype)


def _prefix_tokens(ranker: Ranker, key: str, positions: Tensor) -> int:
    """Returns how many rows of the positions `key` belong to no patch, by the model's own count."""
    model = ranker.get_submodule(key.rpartition(".")[0])
    patches: Any = model.get_submodule("patch_embed")
    return positions.shape[1] - int(patches.num_patches)


def _rows(tensor: Tensor) -> str:
    return " x ".join(str(size) for size in tensor.shape)
