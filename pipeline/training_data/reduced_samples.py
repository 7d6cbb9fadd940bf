"""One sample of `reduce`: from its picture and its JSON to the patches that were kept."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.distances import IMAGENET_MEAN, IMAGENET_STD
from ltrp_core.errors import DamagedFileError, RequestError
from ltrp_core.tiles import sheet_tiles
from ltrp_core.views import View, render_view
from pipeline.inputs.images import ImageError, decode_image

_NO_LABEL = -1
_WRONG = (KeyError, IndexError, TypeError, ValueError, RuntimeError, ImageError, RequestError)
"""What other bytes than those of `reduce` end in"""


def decode_sample(picture: bytes, document: bytes) -> dict[str, Tensor]:
    """Returns a sample as `pipeline.training_data.reduced` describes.

    Args:
        picture: its first member.
        document: its last one, the JSON.

    Raises:
        DamagedFileError: one of them is not what `reduce` writes.
    """
    try:
        kept = json.loads(document)["kept"]
        label = kept["label"]
        indices, grid = kept["indices"], int(kept["grid"])
        # One slot more, the anchor's: see `naflex_input`.
        places = np.array([*indices, grid**2 - 1])
        patches = torch.from_numpy(_patches(picture, kept, places[:-1]))
        coord = torch.from_numpy(_coordinates(grid)[places])
        is_valid = np.ones(len(places), dtype=np.bool_)
        is_valid[-1] = False
        valid = torch.from_numpy(is_valid)
        number = torch.tensor(_NO_LABEL if label is None else int(label))
    except _WRONG as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise DamagedFileError(f"is not what `reduce` writes ({what})") from error
    return {"patches": patches, "patch_coord": coord, "patch_valid": valid, "label": number}


def decode_tiles(data: bytes) -> NDArray[np.uint8]:
    """Returns the pixels (H, W, 3) of a JPEG, each of its blocks decoded by itself.

    Halved chroma is repeated, not smoothed: smoothing looks over a block's edge, and there lies
    another part of the image.

    Raises:
        ValueError: it is no whole JPEG.
    """
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, fastupsample=True)
    return pixels


def with_anchor(tiles: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
    """Returns (k + 1, 3p²): k normalized patches, and zeros for the anchor.

    As `normalize_patches`, to rounding. By NumPy: torch would wake its threads for so little.

    Args:
        tiles: (rows, columns, p, p, 3), of whatever strides; the first `count` count.
        count: k.
    """
    rows, columns, size = tiles.shape[:3]
    found = np.empty((max(rows * columns, count + 1), size * size * 3), dtype=np.float32)
    np.copyto(found[: rows * columns].reshape(tiles.shape), tiles)
    scale, shift = _scale_and_shift(size * size)
    kept = found[:count]
    kept *= scale
    kept += shift
    found[count] = 0.0
    return found[: count + 1]


@functools.cache
def _coordinates(grid: int) -> NDArray[np.int64]:
    """Returns row and column (L, 2) of every patch."""
    return np.stack(np.divmod(np.arange(grid**2), grid), axis=1)


@functools.cache
def _scale_and_shift(pixels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns what 8-bit values of so many pixels are multiplied with, and what is added."""
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    scale, shift = np.tile(1 / (255 * std), pixels), np.tile(-mean / std, pixels)
    return scale.astype(np.float32), shift.astype(np.float32)


def _patches(picture: bytes, kept: Any, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    size, grid = int(kept["patch_size"]), int(kept["grid"])
    if kept["form"] == "indices":
        pixels = render_view(decode_image(picture), View(**kept["view"]), grid * size)
        image = pixels.permute(1, 2, 0).numpy()
    elif kept["picture"] == "jpg":
        image = decode_tiles(picture)
    else:
        image = decode_image(picture)
    if kept["form"] == "patches":
        return with_anchor(sheet_tiles(image, size, len(indices)), len(indices))
    tiles = sheet_tiles(image, size, grid**2)
    return with_anchor(tiles[indices // grid, indices % grid][None], len(indices))
