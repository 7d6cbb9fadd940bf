"""PASCAL VOC's boxes: one XML file an image. Objects marked difficult count like all others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from ltrp_core.errors import RequestError
from ltrp_core.regular_files import read_regular
from pipeline.annotations.categories import select_names
from pipeline.annotations.files import check_size, find_by_key, folder_sha256, index_files
from stages.protocols import Foreground

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocBoxes:
    """A folder of VOC's XML files, looked up by sample key."""

    folder: Path

    @cached_property
    def _index(self) -> dict[str, Path]:
        return index_files(self.folder, ".xml")

    @property
    def fingerprint(self) -> str:
        """Hash of all names and contents."""
        return folder_sha256(self.folder, self._index.values())

    @property
    def keys(self) -> frozenset[str]:
        """Keys of all annotated images."""
        return frozenset(self._index)

    def foreground(
        self, key: str, height: int, width: int, categories: str = "all"
    ) -> Foreground | None:
        """Returns the union of the boxes of the image with this key, or None if it has no file.

        Raises:
            RequestError: the file is damaged or of an image of another size, or the group of
                categories is not known for a class in it.
        """
        file = find_by_key(self._index, key)
        if file is None:
            return None
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
            # Corners are counted from 1 and belong to the box.
            is_foreground[max(top - 1, 0) : max(bottom, 0), max(left - 1, 0) : max(right, 0)] = True
        return Foreground(is_foreground, np.zeros_like(is_foreground))


def parse_xml(file: Path) -> ElementTree.Element:
    """Returns the root of an XML file without document type, thus without entities.

    Raises:
        RequestError: unreadable, damaged, or it declares a document type.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: object) -> NoReturn:
        raise RequestError(f"{file} declares a document type; annotations need none, so it is left")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(read_regular(file), True)
        return builder.close()
    except (OSError, expat.ExpatError, AssertionError) as error:
        raise RequestError(f"{file} is no readable XML: {error}") from error


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
