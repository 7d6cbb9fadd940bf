"""PASCAL VOC's boxes: one XML file per image. Objects marked difficult count like all others."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from ltrp_core.errors import RequestError
from ltrp_core.regular_files import read_regular
from pipeline.annotations.categories import select_names
from pipeline.annotations.files import check_size
from pipeline.annotations.folders import AnnotatedFolder
from stages.protocols import Foreground

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_DECLARED = re.compile(rb"""<\?xml\s[^>]*?\bencoding\s*=\s*["']([A-Za-z][A-Za-z0-9._-]*)["']""")
_BEGINNINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"<\0", "utf-16-le"),
    (b"\0<", "utf-16-be"),
)
"""How a document begins that is in these encodings, whatever it declares."""
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030"}
"""Files that say the first often hold characters of the second, which reads the first alike."""


class VocBoxes(AnnotatedFolder):
    """A folder of VOC's XML files, looked up by sample key."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ".xml")

    def objects(self, key: str) -> tuple[str, ...] | None:
        """Returns the classes of the objects in the image with this key, sorted, or None.

        Raises:
            RequestError: the file is damaged, or two may be meant.
        """
        found = self.find(key)
        if found is None:
            return None
        _, file = found
        return tuple(
            sorted({_text(item, "name", file) for item in parse_xml(file).findall("object")})
        )

    def foreground(
        self, key: str, height: int, width: int, categories: str = "all"
    ) -> Foreground | None:
        """Returns the union of the boxes of the image with this key, or None if it has no file.

        Raises:
            RequestError: the file is damaged or of an image of another size, two may be meant, or
                the group of categories is not known for a class in it.
        """
        found = self.find(key)
        if found is None:
            return None
        called, file = found
        root = parse_xml(file)
        annotated = (_number(root, "size/height", file), _number(root, "size/width", file))
        check_size(file, key, annotated, (height, width))
        is_foreground = np.zeros((height, width), dtype=bool)
        objects = [(_text(item, "name", file), item) for item in root.findall("object")]
        chosen = select_names({name for name, _ in objects}, categories, file, ("voc20",))
        for name, item in objects:
            if name not in chosen:
                continue
            left, top, right, bottom = (_number(item, f"bndbox/{c}", file) for c in _CORNERS)
            if left > right or top > bottom:
                raise RequestError(f"{file}: the box of {name!r} ends before it begins")
            if left > width or top > height or right < 1 or bottom < 1:
                raise RequestError(f"{file}: the box of {name!r} lies outside of its image")
            # Corners are counted from 1 and belong to the box.
            is_foreground[max(top - 1, 0) : max(bottom, 0), max(left - 1, 0) : max(right, 0)] = True
        return Foreground(is_foreground, np.zeros_like(is_foreground), called)


def parse_xml(file: Path) -> ElementTree.Element:
    """Returns the root of an XML file without document type, thus without entities.

    Raises:
        RequestError: unreadable, damaged, not in the encoding that it declares, or it declares a
            document type.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate("utf-8")  # Whatever is declared: `_as_utf8` has seen to that.
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: object) -> NoReturn:
        raise RequestError(f"{file} declares a document type; annotations need none, so it is left")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(_as_utf8(read_regular(file), file), True)
        return builder.close()
    except RequestError:
        raise
    except (OSError, expat.ExpatError, AssertionError, ValueError) as error:
        raise RequestError(f"{file} is no readable XML: {error}") from error


def _as_utf8(data: bytes, file: Path) -> bytes:
    """Returns a document as UTF-8. Expat alone knows no encoding of several bytes, such as GBK."""
    declared = _DECLARED.match(data)
    name = declared[1].decode().lower() if declared else "utf-8"
    name = next((of_start for start, of_start in _BEGINNINGS if data.startswith(start)), name)
    codec = _WIDER.get(name, name)
    try:
        if declared and "<?".encode(codec) != b"<?":
            raise ValueError("its first line is in another one")
        return data.decode(codec).encode()
    except LookupError as error:
        raise RequestError(
            f"{file} declares the encoding {name!r}, which is unknown; correct its first line"
        ) from error
    except ValueError as error:
        raise RequestError(
            f"{file} is not in {name}, {'as it declares' if declared else 'and declares no other'}"
            f": {error}; correct the encoding in its first line"
        ) from error


def _text(item: ElementTree.Element, path: str, file: Path) -> str:
    text = (item.findtext(path) or "").strip()
    if not text:
        raise RequestError(f"{file}: <{item.tag}> has no {path}; is it a file of PASCAL VOC?")
    return text


def _number(item: ElementTree.Element, path: str, file: Path) -> int:
    text = _text(item, path, file)
    try:
        return round(float(text))  # Some files have fractions.
    except (ValueError, OverflowError) as error:
        raise RequestError(f"{file}: {path} is {text!r}, which is no number") from error
