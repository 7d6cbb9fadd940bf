"""The chunks of a PNG that its pixels come from, without its metadata."""

from __future__ import annotations

import struct

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OF_THE_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
"""With the orientation; of an animation only its first picture is left."""


def without_metadata(data: bytes) -> bytes | None:
    """Returns a PNG without text, color profile and the like; None if it is no PNG or has none.

    Pillow refuses a picture whose text is long or damaged, though its pixels are whole.
    """
    if not data.startswith(_SIGNATURE):
        return None
    kept, at, has_more = [_SIGNATURE], len(_SIGNATURE), False
    while at + 8 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        end = at + 12 + length
        if data[at + 4 : at + 8] in _OF_THE_PIXELS:
            kept.append(data[at:end])
        else:
            has_more = True
        at = end
    return b"".join(kept) if has_more else None


def bit_depth(data: bytes) -> int:
    """Returns the bits of a sample by the header (PNG, 11.2.1); 8 where there is none."""
    return data[24] if len(data) > 24 and data[12:16] == b"IHDR" else 8
