"""From the pixels of an opened image to 8-bit RGB: gray of any depth, transparency, color."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, TiffImagePlugin

from pipeline.inputs import tiff_layouts
from pipeline.inputs.png_chunks import bit_depth

_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


class UnsupportedPixelsError(Exception):
    """The meaning of the pixels is not known, or not read."""


def load_rgb(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    """Returns uint8 (H, W, 3) of an image that was opened from `data`, loading its pixels.

    Gray of n bits: round(255 v / (2^n - 1)), inverted where 0 is white. Color of 16 bits: the high
    byte. Alpha, and the one transparent color of a PNG, over white. A color profile, gamma and a
    PNG's significant bits are left unused.

    Raises:
        UnsupportedPixelsError: floating-point or signed pixels, a layout that is misread, Lab.
    """
    depth, is_inverted = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        problem = tiff_layouts.refusal(image)
        if problem is not None:
            raise UnsupportedPixelsError(problem)
        tiff_layouts.mend_palette(image)
        depth = max(image.tag_v2.get(tiff_layouts.BITS, (1,)))
        is_inverted = image.tag_v2.get(tiff_layouts.PHOTOMETRIC, 0) == 0
    image.load()
    if image.mode.startswith("I"):
        return _deep_gray(image, depth, is_inverted)
    if image.mode == "F":
        raise UnsupportedPixelsError("floating-point pixels have no stated range")
    if isinstance(image, PngImagePlugin.PngImageFile) and "transparency" in image.info:
        depth = bit_depth(data)
        if depth == 16 and image.mode == "RGB":
            return _clear_color(image, data)
        if image.mode == "L" and depth < 8:
            # Pillow spreads the gray of 2 and 4 bits over 0..255, and leaves the clear one.
            image.info["transparency"] *= 255 // (2**depth - 1)
    return _plain(image)


def _plain(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    # Without a copy where none is needed: a large photograph takes 72 MB, and several are decoded
    # at a time.
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _deep_gray(image: Image.Image, depth: int, is_inverted: bool) -> NDArray[np.uint8]:
    values: NDArray[Any] = np.asarray(image)
    if depth == 32:
        # Pillow holds them as signed ones. Row by row: in float64 they take twice the memory.
        gray = np.stack([_to_8_bits(row.view(np.uint32), 32) for row in values])
    else:
        table = _to_8_bits(np.arange(2**depth), depth)
        gray = table[np.clip(values, 0, 2**depth - 1)]
    if is_inverted:
        gray = 255 - gray
    if "transparency" in image.info:
        gray[values == image.info["transparency"]] = 255
    return np.repeat(gray[..., None], 3, axis=2)


def _to_8_bits(values: NDArray[Any], depth: int) -> NDArray[np.uint8]:
    return (values * (255 / (2**depth - 1))).round().astype(np.uint8)


def _clear_color(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    """Lays over white the pixels whose 16-bit color is the transparent one (PNG, 11.3.2.1).

    Pillow keeps the high byte of each sample; told that it is the low one, it gives the other.
    """
    clear = np.array(image.info["transparency"])
    with Image.open(io.BytesIO(data), formats=["PNG"]) as other:
        other.tile = [tile._replace(args="RGB;16L") for tile in other.tile]
        low = np.asarray(other)
    pixels = np.array(image)
    is_clear = ((pixels == clear >> 8) & (low == clear & 255)).all(axis=2)
    pixels[is_clear] = 255
    return pixels
