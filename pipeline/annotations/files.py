"""PNGs of masks and classes, read strictly: what their colors or values are, never a guess."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ltrp_core.errors import RequestError
from ltrp_core.regular_files import open_regular
from pipeline.inputs.images import MAX_PIXELS

_DAMAGE = (OSError, SyntaxError, ValueError, MemoryError, EOFError, OverflowError)
_GRAY = 0
"""The color type in a PNG's header; 3 is a palette, others have several channels."""


def check_size(
    file: Path, key: str, annotated: tuple[int, int], sample: tuple[int, int], what: str = "it"
) -> None:
    """Checks (height, width) of an annotated image against the sample's.

    Raises:
        RequestError: they differ; the message has both.
    """
    if annotated == sample:
        return
    turned = (
        " (turned: images are taken as they are stored, without their EXIF orientation, and "
        "annotations must be, too)"
        if annotated == sample[::-1]
        else ""
    )
    raise RequestError(
        f"{file}: {what} is {annotated[1]} x {annotated[0]} px there, but sample {key!r} is "
        f"{sample[1]} x {sample[0]} px{turned}; pack the original images"
    )


def read_mask(file: Path, key: str, height: int, width: int) -> NDArray[np.bool_]:
    """Returns where an image is not black, by color: bool (height, width).

    Of a palette the colors count, not the indices; a pixel that is fully transparent shows nothing.

    Raises:
        RequestError: damaged, of another size, of colors of 16 bits, or one whose transparency
            contradicts its colors.
    """
    image, depth, kind = _open_png(file, key, height, width)
    if depth == 16 and kind != _GRAY:
        raise RequestError(
            f"{file} has colors of 16 bits, of which the low 8 would be lost; save it as gray or "
            "with 8 bits"
        )
    if image.mode.startswith("I"):
        values = np.asarray(image)
        transparent = image.info.get("transparency")
        is_opaque = np.ones(values.shape, bool) if transparent is None else values != transparent
        is_colored = values != 0
    else:
        rgba = np.asarray(image.convert("RGBA"))
        is_colored, is_opaque = np.any(rgba[..., :3] != 0, axis=2), rgba[..., 3] > 0
    if is_colored.any() and not is_opaque.any():
        raise RequestError(f"{file} is transparent everywhere; save the mask without transparency")
    if not is_colored.any() and len(np.unique(is_opaque)) > 1:
        raise RequestError(
            f"{file} is black everywhere and its objects are in its transparency alone; paint them "
            "white"
        )
    is_foreground: NDArray[np.bool_] = is_colored & is_opaque
    return is_foreground


def read_classes(file: Path, key: str, height: int, width: int) -> NDArray[np.uint8]:
    """Returns the values of an image of one channel, gray or palette: uint8 (height, width).

    Raises:
        RequestError: damaged, of another size, or of several channels.
    """
    image, depth, kind = _open_png(file, key, height, width)
    values = np.asarray(image)
    if values.ndim != 2 or image.mode == "F" or values.min() < 0 or values.max() > 255:
        raise RequestError(
            f"{file} is an image of mode {image.mode}; classes are the values 0 to 255 of one "
            "channel (gray or palette), so pass the data set's own files"
        )
    # Pillow stretches gray of 2 and 4 bits to 0 to 255.
    stretched_by = 255 // (2**depth - 1) if kind == _GRAY and depth in (2, 4) else 1
    return (values // stretched_by if stretched_by > 1 else values).astype(np.uint8)


def _open_png(file: Path, key: str, height: int, width: int) -> tuple[Image.Image, int, int]:
    """Returns a decoded image of a known size, its bits a channel and its color type.

    The header is checked before a pixel is decoded.
    """
    try:
        with open_regular(file) as opened:
            image = Image.open(opened, formats=["PNG"])
            if image.width * image.height > MAX_PIXELS:
                raise RequestError(f"{file} says {image.width} x {image.height} px: too large")
            check_size(file, key, (image.height, image.width), (height, width))
            image.load()
            opened.seek(0)
            header = opened.read(26)
    except RequestError:
        raise
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise RequestError(f"{file} is no readable PNG: {type(error).__name__}: {error}") from error
    return image, header[24], header[25]
