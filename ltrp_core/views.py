"""Views: crop + flip + resize, first as numbers that can be stored, then as pixels (Sec. 3.2).

A view is drawn once, written down, and replayed without a random number. Boxes are whole source
pixels. EXIF orientation is not applied (the ImageNet recipe) unless the decoder was told to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.distances import IMAGENET_MEAN, IMAGENET_STD
from ltrp_core.errors import RequestError, unknown_name
from ltrp_core.seeding import random_uniform

Crop = Literal["train", "eval", "resize", "none"]
CROPS: tuple[Crop, ...] = get_args(Crop)

_SCALE = (0.2, 1.0)
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10
_EVAL_SHARE = 224 / 256
"""Center crop of 224 after the short side is resized to 256: the crop's share of the short side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A box in source pixels, then a horizontal flip; the resize follows from the model's input."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def make_view(crop: Crop, key: str, number: int, height: int, width: int, seed: int) -> View:
    """Returns view `number` of a sample whose image is `height` x `width` px.

    Method: `train` is torchvision's random resized crop (scale 0.2-1, ratio 3/4-4/3, ten tries,
    then the largest allowed center crop) and a flip with p = 0.5. `eval` is the center crop of
    224/256 of the short side, `resize` the whole image (its aspect is lost when it is rendered
    square), `none` the whole image too, which must have the model's size: see `check_size`. These
    are the same for every number.

    Raises:
        RequestError: unknown crop, or an image without pixels.
    """
    if crop not in CROPS:
        raise unknown_name("crop", crop, CROPS)
    if height < 1 or width < 1:
        raise RequestError(f"image {key!r} has no pixels: {width} x {height}")
    if crop in ("resize", "none"):
        return View(top=0, left=0, height=height, width=width)
    if crop == "eval":
        side = max(1, round(min(height, width) * _EVAL_SHARE))
        return _centered(height, width, side, side)
    draws = random_uniform(4 * _TRIES + 1, seed=seed, key=key, purpose=f"view:{number}")
    flip = bool(draws[-1] < 0.5)
    for scale, ratio, down, right in draws[:-1].reshape(_TRIES, 4):
        area = height * width * (_SCALE[0] + scale * (_SCALE[1] - _SCALE[0]))
        low, high = (math.log(bound) for bound in _RATIO)
        aspect = math.exp(low + ratio * (high - low))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
            return View(top=top, left=left, height=h, width=w, flip=flip)
    w = min(width, max(1, round(height * _RATIO[1])))
    h = min(height, max(1, round(width / _RATIO[0])))
    box = _centered(height, width, h, w)
    return View(top=box.top, left=box.left, height=h, width=w, flip=flip)


def check_size(crop: Crop, key: str, view: View, size: int) -> None:
    """Checks that a view of crop `none` needs no resampling: its pixels are the image's own.

    Raises:
        RequestError: it is not `size` x `size` px; the message names the image.
    """
    if crop == "none" and (view.height, view.width) != (size, size):
        raise RequestError(
            f"image {key!r} is {view.width} x {view.height} px, and --crop none wants {size} x "
            f"{size}; pass --crop eval or resize (or make the images that size)"
        )


def _centered(height: int, width: int, h: int, w: int) -> View:
    return View(top=(height - h) // 2, left=(width - w) // 2, height=h, width=w)


def render_view(image: NDArray[np.uint8], view: View, size: int) -> Tensor:
    """Returns the pixels of `view` as uint8 (3, size, size): bicubic with antialiasing.

    Args:
        image: uint8 (H, W, 3).
        size: side in pixels, g * p of the model.

    Raises:
        RequestError: the box does not lie in the image (another image under the same key?).
    """
    height, width = image.shape[:2]
    if view.top + view.height > height or view.left + view.width > width:
        raise RequestError(
            f"view {view} does not fit an image of {width} x {height} px; "
            "is this the image that was scored?"
        )
    rows = slice(view.top, view.top + view.height)
    columns = slice(view.left, view.left + view.width)
    box = torch.from_numpy(np.array(image[rows, columns], order="C")).permute(2, 0, 1)
    pixels = F.interpolate(box[None], (size, size), mode="bicubic", antialias=True)[0]
    return pixels.flip(-1) if view.flip else pixels.contiguous()


def render_mask(mask: NDArray[np.bool_], view: View, size: int) -> NDArray[np.bool_]:
    """Returns the annotation `mask` (H, W) through the same geometry: bool (size, size).

    A pixel of the view is True where the source pixel under its center is.
    """
    rows = view.top + ((np.arange(size) + 0.5) * view.height / size).astype(np.int64)
    columns = view.left + ((np.arange(size) + 0.5) * view.width / size).astype(np.int64)
    if view.flip:
        columns = columns[::-1]
    result: NDArray[np.bool_] = mask[np.ix_(rows, columns)]
    return result


def normalize(pixels: Tensor) -> Tensor:
    """Returns float32 of uint8 `pixels` (..., 3, H, W), ImageNet mean and standard deviation."""
    scaled = pixels.float() / 255.0
    mean = scaled.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = scaled.new_tensor(IMAGENET_STD).view(3, 1, 1)
    return (scaled - mean) / std


def normalize_patches(patches: Tensor) -> Tensor:
    """Returns float32 of uint8 `patches` (..., 3p²), channel fastest: `normalize` for patches."""
    scaled = patches.float().unflatten(-1, (-1, 3)) / 255.0
    mean, std = scaled.new_tensor(IMAGENET_MEAN), scaled.new_tensor(IMAGENET_STD)
    return ((scaled - mean) / std).flatten(-2)


def denormalize(images: Tensor) -> Tensor:
    """Returns uint8 pixels of normalized float `images` (..., 3, H, W), clamped to 0 .. 255."""
    mean = images.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = images.new_tensor(IMAGENET_STD).view(3, 1, 1)
    return ((images * std + mean) * 255.0).round().clamp(0, 255).to(torch.uint8)
