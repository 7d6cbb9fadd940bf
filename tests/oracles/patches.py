"""Patches and positions the slow way: one value at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def patch_values(image: Tensor, patch_size: int, row: int, col: int) -> list[float]:
    """Returns the 3p² values of a patch of `image` (3, H, W): pixel row, pixel column, channel."""
    values = []
    for y in range(row * patch_size, (row + 1) * patch_size):
        for x in range(col * patch_size, (col + 1) * patch_size):
            for channel in range(3):
                values.append(float(image[channel, y, x]))
    return values


def position_row(width: int, row: int, col: int) -> list[float]:
    """Returns the D position values of the patch at (row, col): column half, then row half."""
    quarter = width // 4
    values = []
    for position in (col, row):
        for function in (math.sin, math.cos):
            for j in range(quarter):
                values.append(function(position / 10000 ** (j / quarter)))
    return values


def position_table(width: int, grid: int) -> Tensor:
    """Returns the table (L, D) in float64."""
    rows = [position_row(width, i // grid, i % grid) for i in range(grid * grid)]
    return torch.tensor(rows, dtype=torch.float64)
