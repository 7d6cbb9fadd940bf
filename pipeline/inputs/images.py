"""From encoded bytes to RGB pixels, by stated rules; anything else is an `ImageError`."""

from __future__ import annotations

import io
import struct
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)
MAX_PIXELS = 64_000_000
# Not by `catch_warnings` around each image: that is not safe on several threads. The size is
# checked by MAX_PIXELS, and what an odd header means for the pixels is decided by decoding them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_FAILURES = (OSError, SyntaxError, ValueError, MemoryError, struct.error, EOFError, OverflowError)


class ImageError(Exception):
    """A member that is no usable image; `reason` is one word that errors are counted by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, apply_exif: bool = False
) -> NDArray[np.uint8]:
    """Returns the first frame of an encoded image as uint8 (H, W, 3), read-only.

    Gray is repeated, alpha is laid over white, CMYK and palettes are converted, 16-bit gray is
    scaled (not clipped). The size is checked before a pixel is decoded.

    Raises:
        ImageError: `empty`, `unidentified`, `too_large`, `truncated` or `unsupported`.
    """
    if not data:
        raise ImageError("empty", "the member has no bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError("too_large", f"{width} x {height} px, more than {max_pixels} px")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image) if apply_exif else image)
    except UnidentifiedImageError as error:
        raise ImageError("unidentified", f"no image of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    except _FAILURES as error:
        raise ImageError("truncated", f"{type(error).__name__}: {error}") from error


def decoding_bytes(data: bytes) -> int:
    """Returns about what decoding an image takes in memory: its pixels, and two copies on the way.

    By its header; a guess where that is broken.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return 9 * min(image.size[0] * image.size[1], MAX_PIXELS)
    except (*_FAILURES, Image.DecompressionBombError):
        return 30 * len(data)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        values: NDArray[Any] = np.asarray(image).astype(np.float64)
        gray = (values / 257.0).round().clip(0, 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode == "F":
        raise ImageError("unsupported", "floating-point pixels have no stated range")
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    # Without a copy where none is needed: a large photograph takes 72 MB, and several are decoded
    # at a time.
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
