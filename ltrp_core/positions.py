"""The fixed 2-D sine-cosine position table of the masked autoencoder (He et al., CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from ltrp_core.errors import RequestError


def sincos_positions(
    width: int, grid: int, *, prefix_tokens: int = 1, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Returns the position table (1, prefix_tokens + L, D) of a `grid` x `grid` image.

    The first D/2 channels encode the column, the last D/2 the row; each half is
    `[sin(pos * w_j), cos(pos * w_j)]` with `w_j = 10000^(-j / (D/4))`, j = 0 .. D/4 - 1.

    Args:
        width: D, a multiple of 4.
        grid: g, patches along a side.
        prefix_tokens: leading rows of zeros, one for the class token.
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
    if grid < 1 or prefix_tokens < 0:
        raise RequestError(
            f"grid must be >= 1 and prefix_tokens >= 0; got grid={grid}, "
            f"prefix_tokens={prefix_tokens}"
        )
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(grid, dtype=torch.float64).unsqueeze(1) * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    # Row-major patches, i = g * row + col: the column runs fastest.
    table = torch.cat([axis.repeat(grid, 1), axis.repeat_interleave(grid, dim=0)], dim=1)
    prefix = table.new_zeros(prefix_tokens, width)
    return torch.cat([prefix, table]).unsqueeze(0).to(dtype)
