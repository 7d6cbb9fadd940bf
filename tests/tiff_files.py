"""TIFF files byte by byte, after the TIFF 6.0 specification: also what Pillow does not write."""

import struct
import zlib

import numpy as np

SHORT, LONG = 3, 4


def tiff_bytes(
    samples,
    *,
    bits=8,
    photometric=1,
    order="<",
    sample_format=1,
    extra=(),
    planar=1,
    deflate=False,
    fill_order=1,
    rows_per_strip=None,
    tags=None,
):
    """Returns a TIFF of the samples (H, W) or (H, W, bands), each of `bits` bits.

    Args:
        samples: integers, negative ones for sample format 2, floats for 3.
        tags: more tags: number -> SHORT values.
    """
    values = np.asarray(samples)
    values = values[..., None] if values.ndim == 2 else values
    height, width, bands = values.shape
    rows = rows_per_strip or height
    planes = [values] if planar == 1 else [values[..., [band]] for band in range(bands)]
    strips = [
        _packed(plane[top : top + rows], bits, order, sample_format, fill_order)
        for plane in planes
        for top in range(0, height, rows)
    ]
    if deflate:
        strips = [zlib.compress(strip) for strip in strips]
    entries = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bits] * bands),
        259: (SHORT, [8 if deflate else 1]),
        262: (SHORT, [photometric]),
        266: (SHORT, [fill_order]),
        273: (LONG, [0] * len(strips)),
        277: (SHORT, [bands]),
        278: (LONG, [rows]),
        279: (LONG, [len(strip) for strip in strips]),
        284: (SHORT, [planar]),
        339: (SHORT, [sample_format] * bands),
    }
    if extra:
        entries[338] = (SHORT, list(extra))
    for tag, numbers in (tags or {}).items():
        entries[tag] = (SHORT, list(numbers))
    return _file(entries, strips, order)


def _packed(block, bits, order, sample_format, fill_order):
    """Returns the bytes of some rows; each row ends on a byte."""
    if bits in (8, 16, 32, 64):
        kind = {1: "u", 2: "i", 3: "f"}[sample_format]
        whole = block.astype(f"{order}{kind}{bits // 8}").tobytes()
        return bytes(int(f"{octet:08b}"[::-1], 2) for octet in whole) if fill_order == 2 else whole
    packed = b""
    for row in block.reshape(len(block), -1):
        text = "".join(format(int(value), f"0{bits}b") for value in row)
        text += "0" * (-len(text) % 8)
        octets = [text[at : at + 8] for at in range(0, len(text), 8)]
        if fill_order == 2:
            octets = [octet[::-1] for octet in octets]
        packed += bytes(int(octet, 2) for octet in octets)
    return packed


def _file(entries, strips, order):
    numbers = sorted(entries)
    at = 8 + 2 + 12 * len(numbers) + 4
    places, outside = {}, b""
    for tag in numbers:
        kind, values = entries[tag]
        size = len(values) * (2 if kind == SHORT else 4)
        if size > 4:
            places[tag] = at + len(outside)
            outside += b"\0" * (size + size % 2)
    data_at = at + len(outside)
    starts = [data_at + sum(map(len, strips[:index])) for index in range(len(strips))]
    entries[273] = (LONG, starts)
    directory = struct.pack(f"{order}H", len(numbers))
    filled = bytearray(outside)
    for tag in numbers:
        kind, values = entries[tag]
        content = struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'I'}", *values)
        if tag in places:
            start = places[tag] - at
            filled[start : start + len(content)] = content
            content = struct.pack(f"{order}I", places[tag])
        directory += struct.pack(f"{order}HHI", tag, kind, len(values)) + content.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    header = magic + struct.pack(f"{order}I", 8)
    return header + directory + struct.pack(f"{order}I", 0) + bytes(filled) + b"".join(strips)
