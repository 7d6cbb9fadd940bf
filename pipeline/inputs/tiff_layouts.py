"""Which TIFFs Pillow reads as TIFF 6.0 means them, and what the numbers of a gray one are."""

from __future__ import annotations

from PIL import ImagePalette, TiffImagePlugin

BITS, FILL_ORDER, PHOTOMETRIC, PLANAR, COLOR_MAP = 258, 266, 262, 284, 320
SAMPLE_FORMAT, COEFFICIENTS, SUBSAMPLING, BLACK_WHITE = 339, 529, 530, 532
_REC_601 = (0.299, 0.587, 0.114)
_FULL_RANGE = (0, 255, 128, 255, 128, 255)


def refusal(image: TiffImagePlugin.TiffImageFile) -> str | None:
    """Returns why the pixels that Pillow would give are others than the file's, or None.

    To be asked before the pixels are loaded.
    """
    tags = image.tag_v2
    if 2 in tags.get(SAMPLE_FORMAT, ()):
        return "signed pixels have no stated range"
    if image.mode == "LAB":
        return "CIE L*a*b* is not converted to RGB"
    is_raw = bool(image.tile) and image.tile[0].codec_name != "libtiff"
    if tags.get(PLANAR, 1) == 2 and len(image.getbands()) > 1:
        is_plain = max(tags.get(BITS, (1,))) == 8 and tags.get(FILL_ORDER, 1) == 1
        if image.mode in ("LA", "La", "PA") or (is_raw and not is_plain):
            return "planes of this kind are not read; store the samples of a pixel together"
    if image.mode == "YCbCr" and not _is_plain_ycbcr(tags):
        return "uncompressed YCbCr is read without subsampling, full range, Rec. 601 only"
    return None


def mend_palette(image: TiffImagePlugin.TiffImageFile) -> None:
    """Takes a color map whose values are all of 8 bits as such, as libtiff does.

    TIFF 6.0 says 16 bits; by that such a picture would be all black.
    """
    colors = image.tag_v2.get(COLOR_MAP, ())
    if image.mode in ("P", "PA") and colors and max(colors) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(colors))


def _is_plain_ycbcr(tags: TiffImagePlugin.ImageFileDirectory_v2) -> bool:
    """TIFF 6.0, section 21: without its tag, chroma is subsampled 2 x 2."""
    coefficients = tuple(round(float(value), 4) for value in tags.get(COEFFICIENTS, _REC_601))
    return (
        tuple(tags.get(SUBSAMPLING, (2, 2))) == (1, 1)
        and coefficients == _REC_601
        and tuple(map(float, tags.get(BLACK_WHITE, _FULL_RANGE))) == _FULL_RANGE
    )
