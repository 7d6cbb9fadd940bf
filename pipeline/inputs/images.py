"""From encoded bytes to RGB pixels, by stated rules; anything else is an `ImageError`."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from pipeline.inputs.image_formats import image_format, is_cut, other_content
from pipeline.inputs.pixels import UnsupportedPixelsError, load_rgb
from pipeline.inputs.png_chunks import without_metadata

_HAS_AVIF = bool(features.check("avif"))
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", *(("AVIF",) if _HAS_AVIF else ()))
_COMMON_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)
RARE_EXTENSIONS = frozenset({".jfif", ".jpe", ".avif", ".pbm", ".pnm"})
"""A sample that has one of the others too is that one's."""
EXTENSIONS = _COMMON_EXTENSIONS | RARE_EXTENSIONS
MAX_PIXELS = 64_000_000
# Not by `catch_warnings` around each image: that is not safe on several threads. The size is
# checked by MAX_PIXELS, and what an odd header means for the pixels is decided by decoding them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_UNSUPPORTED = (
    "unsupported",
    "not supported",
    "not yet supported",
    "cannot handle",
    "unknown pixel mode",
    "unknown raw mode",
    "unknown data organization",
    "unknown compression method",
    "unknown filter category",
    "samples per pixel",
    "cannot find loader",
    "decoder error -8",
)
"""What Pillow says of a layout that it does not read."""
_CUT = (
    "truncated",
    "truncation",
    "reached eof",
    "incomplete",
    "not enough image data",
    "buffer is not large",
)
_TOO_LARGE = ("decoder error -9", "out of memory")


class ImageError(Exception):
    """A member that is no usable image; `reason` is one word that errors are counted by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, apply_exif: bool = False
) -> NDArray[np.uint8]:
    """Returns the first frame of an encoded image as uint8 (H, W, 3), read-only.

    See `pipeline.inputs.pixels.load_rgb` for gray, depth and transparency; CMYK, YCbCr and palettes
    are converted. The size is checked before a pixel is decoded. TIFF's and AVIF's own orientation
    is part of the format and always applied, EXIF's only if asked for.

    Raises:
        ImageError: `empty`, `unidentified`, `too_large`, `truncated`, `damaged` or `unsupported`.
        MemoryError: there is not enough for an image of an allowed size.
    """
    if not data:
        raise ImageError("empty", "the member has no bytes")
    try:
        return _decode(data, max_pixels, apply_exif)
    except ImageError as error:
        if error.reason in ("unidentified", "unsupported", "damaged") and is_cut(data):
            raise ImageError("truncated", f"ends before its header says so ({error})") from error
        bare = None if error.reason == "too_large" else without_metadata(data)
        if bare is None:
            raise
        try:
            # Metadata that is too long or damaged costs no pixels.
            return _decode(bare, max_pixels, apply_exif)
        except ImageError:
            raise error from None


def decoding_bytes(data: bytes) -> int:
    """Returns about what decoding an image takes in memory: its pixels, and two copies on the way.

    By its header; a guess where that is broken.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return 9 * min(image.size[0] * image.size[1], MAX_PIXELS)
    except Exception:  # any decoder, any damage
        return 30 * len(data)


def _decode(data: bytes, max_pixels: int, apply_exif: bool) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError("too_large", f"{width} x {height} px, more than {max_pixels} px")
            pixels = load_rgb(image, data)
            # An AVIF's own rotation comes as EXIF; what EXIF said in it counts for nothing.
            if not (apply_exif or image.format == "AVIF"):
                return pixels
            return _oriented(image, pixels)
    except ImageError:
        raise
    except UnsupportedPixelsError as error:
        raise ImageError("unsupported", str(error)) from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    except MemoryError:
        raise  # the machine's, not the image's: its size was looked at. The unit is tried again.
    except Exception as error:  # each of Pillow's decoders has errors of its own
        raise ImageError(_reason(error), _words(error)) from error


def _oriented(image: Image.Image, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turns the pixels as the image's EXIF says."""
    turned = Image.fromarray(pixels)
    turned.getexif()[0x0112] = image.getexif().get(0x0112, 1)
    return np.asarray(ImageOps.exif_transpose(turned))


def _reason(error: BaseException) -> str:
    text = str(error).lower()
    if any(words in text for words in _TOO_LARGE):
        return "too_large"
    # TIFF's number of a compression that Pillow does not know comes as a KeyError.
    if isinstance(error.__cause__, KeyError) or any(words in text for words in _UNSUPPORTED):
        return "unsupported"
    is_cut = isinstance(error, EOFError | struct.error) or any(words in text for words in _CUT)
    return "truncated" if is_cut else "damaged"


def _words(error: BaseException) -> str:
    if isinstance(error.__cause__, KeyError):
        return f"unknown number {error} in its header"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _unidentified(data: bytes) -> ImageError:
    """Returns why no decoder takes bytes: Pillow says the same of all that none of them knows."""
    name = image_format(data)
    if name is None:
        content = other_content(data)
        begins = f"is {content}, " if content else ""
        return ImageError("unidentified", f"{begins}no image of {', '.join(FORMATS)}")
    if name not in FORMATS:
        return ImageError("unsupported", f"is {name}; read are {', '.join(FORMATS)}")
    try:
        Image.OPEN[name][0](io.BytesIO(data), "").close()
    except Exception as error:  # each of Pillow's decoders has errors of its own
        if _reason(error) == "unsupported":
            return ImageError(
                "unsupported", f"is {name} of a kind that is not read: {_words(error)}"
            )
        why = f": {_words(error)}" if str(error) else ""
        return ImageError("unidentified", f"begins as {name}, but its header cannot be read{why}")
    return ImageError("unidentified", f"begins as {name}, but is none")
