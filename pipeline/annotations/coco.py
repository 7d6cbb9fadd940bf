"""COCO instances: boxes, polygons and RLE, made regions by pycocotools."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from ltrp_core.regular_files import read_regular
from pipeline.annotations.categories import select_names
from pipeline.annotations.files import check_size, find_by_key
from stages.protocols import Foreground


class CocoAnnotations:
    """Annotations of a COCO instances file, looked up by sample key.

    Crowd regions of the chosen categories are ignored; objects of other categories are background.
    """

    def __init__(self, path: Path, *, shape: str = "masks") -> None:
        """Reads and indexes the file.

        Raises:
            RequestError: it is unreadable, or no instances file.
        """
        self.path = path
        self.shape = shape
        document = _read_document(path)
        try:
            self._images = _by_key(document["images"], path)
            self._names = {one["id"]: str(one["name"]) for one in document["categories"]}
            self._objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
            for annotation in document["annotations"]:
                self._objects[annotation["image_id"]].append(annotation)
                if annotation["category_id"] not in self._names:
                    raise _damaged(path, annotation, "its category is not in the file")
        except RequestError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"{path} is no COCO instances file: {error!r}") from error
        self._groups: dict[str, frozenset[Any]] = {}

    @property
    def keys(self) -> frozenset[str]:
        """Keys of all annotated images."""
        return frozenset(self._images)

    def foreground(
        self, key: str, height: int, width: int, categories: str = "all"
    ) -> Foreground | None:
        """Returns the foreground of the image with this key, or None if the file has none.

        Raises:
            RequestError: the annotated image is of another size, an annotation is damaged, or the
                group of categories is not known for this file.
        """
        chosen = self._group(categories)
        image = find_by_key(self._images, key)
        if image is None:
            return None
        size = (height, width)
        annotated = (image["height"], image["width"])
        check_size(self.path, key, annotated, size, what=repr(image["file_name"]))
        objects = [one for one in self._objects[image["id"]] if one["category_id"] in chosen]
        crowds = [one for one in objects if one.get("iscrowd", 0)]
        others = [one for one in objects if not one.get("iscrowd", 0)]
        is_foreground = self._boxes(others, size) if self.shape == "boxes" else None
        if is_foreground is None:
            is_foreground = self._union(others, size)
        return Foreground(is_foreground, self._union(crowds, size) & ~is_foreground)

    def _group(self, categories: str) -> frozenset[Any]:
        if categories not in self._groups:
            names = select_names(set(self._names.values()), categories, self.path)
            ids = frozenset(number for number, name in self._names.items() if name in names)
            self._groups[categories] = ids
        return self._groups[categories]

    def _boxes(self, objects: Sequence[dict[str, Any]], size: tuple[int, int]) -> NDArray[np.bool_]:
        region = np.zeros(size, dtype=bool)
        for one in objects:
            box: Any = one.get("bbox")
            if not _are_numbers(box) or len(box) != 4:
                raise _damaged(self.path, one, "bbox must be four numbers")
            x, y, w, h = box
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
        if list(runs.get("size", ())) != list(size):
            raise _damaged(self.path, one, f"its RLE is of {runs.get('size')}, not {list(size)}")
        if isinstance(counts, list):
            is_whole = all(isinstance(run, int) and run >= 0 for run in counts)
            if not is_whole or sum(counts) != math.prod(size):
                raise _damaged(self.path, one, f"its RLE does not add up to {math.prod(size)} px")
            runs = coco_mask.frPyObjects(runs, *size)
        elif not isinstance(counts, str):
            raise _damaged(self.path, one, "counts of an RLE are a list or a string")
        elif not _adds_up_to(counts, math.prod(size)):
            raise _damaged(self.path, one, f"its RLE does not add up to {math.prod(size)} px")
        decoded: NDArray[np.uint8] = coco_mask.decode(runs)
        return decoded.view(bool)

    def _checked_polygons(
        self, one: dict[str, Any], outline: Any, size: tuple[int, int]
    ) -> list[list[float]]:
        """Returns the polygons of an outline; pycocotools would take four numbers for a box."""
        if not isinstance(outline, list) or not outline:
            raise _damaged(self.path, one, "no polygons and no RLE (--foreground boxes needs none)")
        farthest = 2 * max(size)
        for polygon in outline:
            if not _are_numbers(polygon) or len(polygon) < 6 or len(polygon) % 2:
                raise _damaged(self.path, one, "a polygon is x, y of three points or more")
            if min(polygon) < -farthest or max(polygon) > farthest:
                raise _damaged(self.path, one, "a polygon lies far outside of its image")
        return outline


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} is no readable JSON: {error}") from error
    missing = {"images", "annotations", "categories"} - (
        set(document) if isinstance(document, dict) else set()
    )
    if missing:
        raise RequestError(
            f"{path} is no COCO instances file: {', '.join(sorted(missing))} missing"
        )
    return dict(document)


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
    return isinstance(values, list) and all(
        isinstance(value, int | float) and math.isfinite(value) for value in values
    )


def _damaged(path: Path, annotation: dict[str, Any], what: str) -> RequestError:
    return RequestError(f"{path}: annotation {annotation.get('id')!r} is damaged: {what}")


def _by_key(images: list[dict[str, Any]], path: Path) -> dict[str, dict[str, Any]]:
    by_key: dict[str, dict[str, Any]] = {}
    for image in images:
        image["id"], image["height"], image["width"]  # All are needed later: a KeyError here.
        key = str(PurePosixPath(str(image["file_name"])).with_suffix(""))
        if key in by_key:
            raise RequestError(f"{path}: two images are called {key!r}")
        by_key[key] = image
    return by_key
