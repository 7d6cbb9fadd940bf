"""What encoded bytes are by how they begin, whether or not they can be decoded here."""

from __future__ import annotations

from typing import Literal

_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"II\xbc": "JPEG XR",
    b"8BPS": "Photoshop",
    b"v/1\x01": "OpenEXR",
    b"DDS ": "DDS",
    b"qoif": "QOI",
    b"\0\0\x01\0": "ICO",
    b"SIMPLE  =": "FITS",
}
_NO_IMAGES = {
    b"%PDF": "a PDF",
    b"\x1f\x8b": "compressed with gzip",
    b"PK\x03\x04": "a zip",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
}
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def image_format(data: bytes) -> str | None:
    """Returns the image format that bytes begin as, by Pillow's name where it reads it, or None."""
    if data[4:8] == b"ftyp":
        return _iso_format(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:1] == b"P" and data[1:2] in b"123456fF" and data[2:3].isspace():
        return "PPM"
    return next((name for start, name in _BEGINNINGS.items() if data.startswith(start)), None)


def other_content(data: bytes) -> str | None:
    """Returns what bytes are that begin as no image, in words, or None."""
    if data[257:262] == b"ustar":
        return "a tar"
    text = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<"):
        if b"<svg" in text:
            return "an SVG drawing"
        return "a web page" if b"<html" in text or b"<!doctype html" in text else "XML"
    if data[4:8] == b"ftyp":
        return "a video"
    return next((name for start, name in _NO_IMAGES.items() if data.startswith(start)), None)


def is_cut(data: bytes) -> bool:
    """Returns whether bytes end before their own header says so; False if it does not say."""
    name = image_format(data)
    if name == "WEBP":
        return 8 + int.from_bytes(data[4:8], "little") > len(data)
    if name == "TIFF" and b"+" not in data[:4]:
        # The directory is most often the last part: where it is not there, nothing is known.
        order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"
        start = int.from_bytes(data[4:8], order)
        count = int.from_bytes(data[start : start + 2], order)
        return start + 2 + 12 * count > len(data)
    if name in ("AVIF", "HEIC"):
        at = 0
        while at + 8 <= len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            if size < 8:  # to the end of the file, or 64 bits long
                return False
            at += size
        return at > len(data)
    return False


def _iso_format(data: bytes) -> str | None:
    """AVIF and HEIC are the same box of other brands: the major one, then the compatible ones."""
    brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    if b"avif" in brands or b"avis" in brands:
        return "AVIF"
    return "HEIC" if any(brand in brands for brand in _HEIC) else None
