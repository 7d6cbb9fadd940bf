"""COCO instances: boxes, polygons and RLE, made regions by pycocotools."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.categories import select_names
from pipeline.annotations.coco_document import damaged, read_document
from pipeline.annotations.files import check_size
from pipeline.files import file_sha256
from pipeline.inputs.keys import KeyIndex
from stages.protocols import Foreground


class CocoAnnotations:
    """Annotations of a COCO instances file, looked up by sample key.

    Crowd regions of the chosen categories are ignored; objects of other categories are background.
    """

    def __init__(self, path: Path, *, shape: str = "masks") -> None:
        """Reads and indexes the file.

        Raises:
            RequestError: it is unreadable, or no instances file whose references are whole.
        """
        self.path = path
        self.shape = shape
        self._document = read_document(path)
        self._index = KeyIndex(self._document.images, str(path))
        self._groups: dict[str, frozenset[str]] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the file."""
        return file_sha256(self.path)

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of all categories, in the order of their numbers."""
        by_id = self._document.categories
        return tuple(by_id[number] for number in sorted(by_id))

    def objects(self, key: str) -> tuple[str, ...] | None:
        """Returns the categories of the objects in the image with this key, sorted, or None.

        Raises:
            RequestError: two images may be meant.
        """
        name = self._index.find(key)
        if name is None:
            return None
        found = self._document.objects.get(self._document.images[name].id, ())
        return tuple(sorted({self._document.categories[one["category_id"]] for one in found}))

    @property
    def names(self) -> Collection[str]:
        """File names of all annotated images."""
        return self._document.images.keys()

    def foreground(
        self, key: str, height: int, width: int, categories: str = "all"
    ) -> Foreground | None:
        """Returns the foreground of the image with this key, or None if the file has none.

        Raises:
            RequestError: the annotated image is of another size, two may be meant, an annotation is
                damaged, or the group of categories is not known for this file.
        """
        chosen = self._group(categories)
        name = self._index.find(key)
        if name is None:
            return None
        image = self._document.images[name]
        size = (height, width)
        check_size(self.path, key, (image.height, image.width), size, what=repr(name))
        objects = [
            one for one in self._document.objects.get(image.id, ()) if one["category_id"] in chosen
        ]
        crowds = [one for one in objects if one.get("iscrowd", 0)]
        others = [one for one in objects if not one.get("iscrowd", 0)]
        if self.shape == "boxes":
            is_foreground = self._boxes(others, size)
            # A crowd's outline is closer to it than its box, where it has one.
            outlined = [one for one in crowds if one.get("segmentation")]
            boxed = [one for one in crowds if not one.get("segmentation")]
            is_ignored = self._union(outlined, size) | self._boxes(boxed, size)
        else:
            is_foreground, is_ignored = self._union(others, size), self._union(crowds, size)
        return Foreground(is_foreground, is_ignored & ~is_foreground, name)

    def _group(self, categories: str) -> frozenset[str]:
        if categories not in self._groups:
            by_id = self._document.categories
            names = select_names(set(by_id.values()), categories, self.path)
            self._groups[categories] = frozenset(i for i, name in by_id.items() if name in names)
        return self._groups[categories]

    def _boxes(self, objects: Sequence[dict[str, Any]], size: tuple[int, int]) -> NDArray[np.bool_]:
        region = np.zeros(size, dtype=bool)
        for one in objects:
            box: Any = one.get("bbox")
            if not _are_numbers(box) or len(box) != 4:
                raise damaged(self.path, one, "bbox must be four numbers")
            x, y, w, h = box
            if w < 0 or h < 0:
                raise damaged(self.path, one, f"its box is {w:g} x {h:g} px: x, y, width, height")
            if w and h and (x >= size[1] or y >= size[0] or x + w <= 0 or y + h <= 0):
                raise damaged(self.path, one, "its box lies outside of its image")
            rows, columns = (max(round(y), 0), round(y + h)), (max(round(x), 0), round(x + w))
            region[slice(rows[0], max(rows)), slice(columns[0], max(columns))] = True
        return region

    def _union(self, objects: Sequence[dict[str, Any]], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Returns the union of the outlines and RLEs."""
        from pycocotools import mask as coco_mask

        region = np.zeros(size, dtype=bool)
        polygons: list[list[float]] = []
        for one in objects:
            outline = one.get("segmentation")
            if isinstance(outline, dict):
                region |= self._decode(one, outline, size)
            else:
                polygons += self._checked_polygons(one, outline, size)
        if polygons:
            runs = coco_mask.frPyObjects(polygons, *size)
            region |= coco_mask.decode(coco_mask.merge(runs)).view(bool)
        return region

    def _decode(
        self, one: dict[str, Any], runs: dict[str, Any], size: tuple[int, int]
    ) -> NDArray[np.bool_]:
        from pycocotools import mask as coco_mask

        counts = runs.get("counts")
        if runs.get("size") != list(size):
            raise damaged(self.path, one, f"its RLE is of {runs.get('size')}, not {list(size)}")
        if isinstance(counts, list):
            is_whole = all(_is_number(run) and isinstance(run, int) and run >= 0 for run in counts)
            if not is_whole or sum(counts) != math.prod(size):
                raise damaged(self.path, one, f"its RLE does not add up to {math.prod(size)} px")
            runs = coco_mask.frPyObjects(runs, *size)
        elif not isinstance(counts, str):
            raise damaged(self.path, one, "counts of an RLE are a list or a string")
        elif not _adds_up_to(counts, math.prod(size)):
            raise damaged(self.path, one, f"its RLE does not add up to {math.prod(size)} px")
        decoded: NDArray[np.uint8] = coco_mask.decode(runs)
        return decoded.view(bool)

    def _checked_polygons(
        self, one: dict[str, Any], outline: Any, size: tuple[int, int]
    ) -> list[list[float]]:
        """Returns the polygons of an outline; pycocotools would take four numbers for a box."""
        if not isinstance(outline, list) or not outline:
            raise damaged(self.path, one, "no polygons and no RLE (--foreground boxes needs none)")
        farthest = 2 * max(size)
        for polygon in outline:
            if not _are_numbers(polygon) or len(polygon) < 6 or len(polygon) % 2:
                raise damaged(self.path, one, "a polygon is x, y of three points or more")
            if min(polygon) < -farthest or max(polygon) > farthest:
                raise damaged(self.path, one, "a polygon lies far outside of its image")
        return outline


def _adds_up_to(counts: str, pixels: int) -> bool:
    """Returns whether a compressed RLE is whole: runs >= 0 that have that many pixels in all.

    pycocotools decodes it, but trusts it: runs that end elsewhere leave memory unwritten, or write
    behind it. Each character holds five bits of a run, low ones first, and whether more follow;
    from the fourth run on it is the difference to the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            return False
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return shift == 0 and min(runs, default=-1) >= 0 and sum(runs) == pixels


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    """Whether a value is a number that arithmetic can hold; JSON may have one of 400 digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**53
