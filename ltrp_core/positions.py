"""Position tables: the masked autoencoder's fixed sines and cosines, and learned ones of any grid.

The fixed table is He et al.'s (CVPR 2022); carrying a table to another grid is ours, not in the
paper.
"""

from __future__ import annotations

import math

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from ltrp_core.errors import RequestError

_ROUNDING = 3e-3
"""Largest difference from the fixed table that a file in half precision explains."""


def sincos_positions(
    width: int,
    grid: int,
    *,
    prefix_tokens: int = 1,
    learned_grid: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Returns the position table (1, prefix_tokens + L, D) of a `grid` x `grid` image.

    The first D/2 channels encode the column, the last D/2 the row; each half is
    `[sin(pos * w_j), cos(pos * w_j)]` with `w_j = 10000^(-j / (D/4))`, j = 0 .. D/4 - 1.

    Args:
        width: D, a multiple of 4.
        grid: g, patches along a side.
        prefix_tokens: leading rows of zeros, one for the class token.
        learned_grid: side of the grid that a model learned to read; its table is stretched over
            `grid`, so that a patch has the position that it covers: `(i + 1/2) * learned_grid /
            grid - 1/2` instead of i. Exact where an interpolation of the table would blur it.
        dtype: of the result; computed in float64 and rounded once.

    Raises:
        RequestError: `width` is no multiple of 4, or a size is out of range.

    >>> sincos_positions(4, 2, prefix_tokens=0)[0, 0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    if width < 4 or width % 4:
        raise RequestError(
            f"width must be a positive multiple of 4 (sine and cosine, column and row); got {width}"
        )
    learned = grid if learned_grid is None else learned_grid
    if grid < 1 or learned < 1 or prefix_tokens < 0:
        raise RequestError(
            f"grid and learned_grid must be >= 1 and prefix_tokens >= 0; got grid={grid}, "
            f"learned_grid={learned}, prefix_tokens={prefix_tokens}"
        )
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    places = torch.arange(grid, dtype=torch.float64)
    if learned != grid:
        places = (places + 0.5) * (learned / grid) - 0.5
    angles = places.unsqueeze(1) * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    # Row-major patches, i = g * row + col: the column runs fastest.
    table = torch.cat([axis.repeat(grid, 1), axis.repeat_interleave(grid, dim=0)], dim=1)
    prefix = table.new_zeros(prefix_tokens, width)
    return torch.cat([prefix, table]).unsqueeze(0).to(dtype)


def is_sincos(positions: Tensor) -> bool:
    """Returns whether `positions` (1, 1 + L, D) is the fixed table of its grid, but for rounding.

    Raises:
        RequestError: it is no table of a square grid.
    """
    width, grid = positions.shape[-1], table_grid(positions, prefix_tokens=1)
    if width % 4:
        return False
    fixed = sincos_positions(width, grid)
    return bool((positions.detach().float().cpu() - fixed).abs().max() < _ROUNDING)


def table_grid(positions: Tensor, *, prefix_tokens: int) -> int:
    """Returns g of a table (1, prefix_tokens + g * g, D).

    Raises:
        RequestError: it has another shape, or its patches form no square.
    """
    length = positions.shape[1] - prefix_tokens if positions.ndim == 3 else 0
    grid = math.isqrt(max(length, 0))
    if positions.ndim != 3 or positions.shape[0] != 1 or grid < 1 or grid * grid != length:
        raise RequestError(
            f"positions must be (1, {prefix_tokens} + g * g, D); got {tuple(positions.shape)}"
        )
    return grid


def interpolate_positions(
    positions: Tensor, grid: int, *, prefix_tokens: int = 1
) -> tuple[Tensor, str]:
    """Returns the table (1, prefix_tokens + L, D) for another `grid`, and in words how.

    Ours, not in the paper. The fixed table is stretched exactly (`learned_grid` of
    `sincos_positions`); any other is resized bicubically with antialiasing, as timm does when it
    loads a vision transformer. Prefix rows are kept. The same grid gives the table itself.

    Args:
        positions: (1, prefix_tokens + h * h, D), of any square grid.
        grid: g, patches along a side of the result.
        prefix_tokens: leading rows that are no patches.

    Raises:
        RequestError: `positions` is no table of a square grid.
    """
    old = table_grid(positions, prefix_tokens=prefix_tokens)
    if grid < 1:
        raise RequestError(f"grid must be >= 1; got {grid}")
    if old == grid:
        return positions, "kept"
    if prefix_tokens == 1 and is_sincos(positions):
        width = positions.shape[-1]
        table = sincos_positions(width, grid, learned_grid=old)
        return table.to(positions), "sine-cosine, stretched"
    table = resample_abs_pos_embed(
        positions, new_size=[grid, grid], old_size=[old, old], num_prefix_tokens=prefix_tokens
    )
    return table, "bicubic"
