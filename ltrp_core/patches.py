"""Images to patches and back: row-major patches, channel-fastest values (MAE's layout)."""

from __future__ import annotations

import torch
from torch import Tensor

from ltrp_core.errors import RequestError


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Returns the patches (B, L, 3p²) of `images` (B, 3, H, W), any dtype.

    Patches are row-major, `i = (W / p) * row + col`; the values of a patch are ordered (pixel row,
    pixel column, channel), channel fastest.

    Raises:
        RequestError: `images` is not (B, 3, H, W) with H and W multiples of `patch_size`.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise RequestError(f"images must be (B, 3, H, W); got {tuple(images.shape)}")
    batch, channels, height, width = images.shape
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise RequestError(
            f"images of {height} x {width} px do not divide into patches of {patch_size} px; "
            "resize them to a multiple"
        )
    rows, columns = height // patch_size, width // patch_size
    blocks = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def model_images(images: Tensor, grid: int, patch_size: int, dtype: torch.dtype) -> Tensor:
    """Returns `images` (B, 3, g*p, g*p), B >= 0, in a model's own `dtype`.

    Raises:
        RequestError: another shape, or whole numbers: pixels from 0 to 255 are not normalized.
    """
    side = grid * patch_size
    if images.ndim != 4 or images.shape[1:] != (3, side, side):
        raise RequestError(
            f"images must be (B, 3, {side}, {side}) for a {grid} x {grid} grid of {patch_size} px "
            f"patches; got {tuple(images.shape)}. Resize the views, or take a model of their grid."
        )
    return model_pixels(images, dtype)


def model_pixels(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns `pixels`, of any shape, in a model's own `dtype`.

    Raises:
        RequestError: whole numbers: pixels from 0 to 255 are not normalized.
    """
    if not pixels.is_floating_point():
        raise RequestError(
            f"images must be of a floating type, normalized, such as {dtype}; got {pixels.dtype}. "
            "Divide by 255, subtract the mean and divide by the standard deviation."
        )
    return pixels.to(dtype)


def unpatchify(patches: Tensor, patch_size: int, grid: int) -> Tensor:
    """Returns the images (B, 3, g*p, g*p) whose patches are `patches` (B, L, 3p²).

    The inverse of `patchify` on square images.

    Raises:
        RequestError: `patches` is not (B, grid², 3 * patch_size²).
    """
    expected = (grid * grid, 3 * patch_size * patch_size)
    if patches.ndim != 3 or tuple(patches.shape[1:]) != expected:
        raise RequestError(
            f"patches must be (B, {expected[0]}, {expected[1]}) for a grid of {grid} and "
            f"patches of {patch_size} px; got {tuple(patches.shape)}"
        )
    blocks = patches.reshape(len(patches), grid, grid, patch_size, patch_size, 3)
    return blocks.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
