"""Pixels as JPEG, WebP or PNG; equal pixels give equal bytes on equal libraries."""

from __future__ import annotations

import io
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Format = Literal["jpeg", "webp", "png"]
ENDINGS: dict[str, str] = {"jpeg": "jpg", "webp": "webp", "png": "png"}
"""Of file names, by format"""
assert set(ENDINGS) == set(get_args(Format))
BLOCK_420, BLOCK_444 = 16, 8
"""Sides in px of what a JPEG codes by itself, with halved and with full chroma"""


def encode(
    pixels: NDArray[np.uint8], format: Format, quality: int, block: int = BLOCK_420
) -> bytes:
    """Returns an encoded picture.

    JPEG: baseline, optimized Huffman tables, chroma halved both ways (4:2:0) or, with another
    `block`, full (4:4:4). WebP is lossy. PNG knows no quality.

    Args:
        pixels: (H, W, 3).
        format: which one.
        quality: 1 to 100, as the libraries have it.
        block: of a JPEG.
    """
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if format == "jpeg":
        chroma = "4:2:0" if block == BLOCK_420 else "4:4:4"
        image.save(buffer, "JPEG", quality=quality, subsampling=chroma, optimize=True)
    elif format == "webp":
        image.save(buffer, "WEBP", quality=quality, method=4)
    else:
        image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
