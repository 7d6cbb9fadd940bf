"""Kept patches as tiles of one picture, as near to a square as possible, and back."""

from __future__ import annotations

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.distances import IMAGENET_MEAN
from ltrp_core.errors import RequestError

MEAN_COLOR: tuple[int, ...] = tuple(round(255 * value) for value in IMAGENET_MEAN)
"""Of ImageNet, what normalization makes zero of; 8-bit RGB"""


def sheet_shape(count: int) -> tuple[int, int]:
    """Returns rows and columns of the smallest sheet of `count` >= 1 tiles, columns >= rows.

    >>> [sheet_shape(count) for count in (1, 49, 98, 147)]
    [(1, 1), (7, 7), (10, 10), (12, 13)]
    """
    columns = math.isqrt(count - 1) + 1
    return -(-count // columns), columns


def to_sheet(patches: Tensor, patch_size: int) -> Tensor:
    """Returns a picture (rows * p, columns * p, 3) whose tiles are the patches, row by row.

    Spare tiles are of `MEAN_COLOR`.

    Args:
        patches: uint8 (k, 3p²), channel fastest: see `patchify`.
        patch_size: p in px.
    """
    rows, columns = sheet_shape(len(patches))
    mean = torch.tensor(MEAN_COLOR, dtype=patches.dtype).repeat(patch_size**2)
    tiles = mean.repeat(rows * columns, 1)
    tiles[: len(patches)] = patches
    blocks = tiles.view(rows, columns, patch_size, patch_size, 3)
    return blocks.transpose(1, 2).reshape(rows * patch_size, columns * patch_size, 3)


def sheet_tiles(sheet: NDArray[Any], patch_size: int, count: int) -> NDArray[Any]:
    """Returns a view (rows, columns, p, p, 3) of the tiles of a picture that `to_sheet` has made.

    Args:
        sheet: (H, W, 3) of any dtype.
        patch_size: p in px.
        count: k, patches on it; a whole square view is a sheet of all its patches.

    Raises:
        RequestError: the picture is no sheet of `count` tiles.
    """
    rows, columns = sheet_shape(count)
    if sheet.shape != (rows * patch_size, columns * patch_size, 3):
        raise RequestError(
            f"a sheet of {count} patches of {patch_size} px is {columns * patch_size} x "
            f"{rows * patch_size} px, with 3 channels; got {sheet.shape}"
        )
    return sheet.reshape(rows, patch_size, columns, patch_size, 3).swapaxes(1, 2)
