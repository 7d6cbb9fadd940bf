"""Foreground of an image from annotations: COCO instances (boxes, polygons, RLE by pycocotools)."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from stages.protocols import Foreground


class CocoAnnotations:
    """Annotations of a COCO instances file, looked up by sample key."""

    def __init__(self, path: Path, *, shape: str = "masks") -> None:
        try:
            from pycocotools.coco import COCO
        except ImportError as error:
            raise RequestError(
                "COCO annotations need pycocotools: python -m pip install pycocotools"
            ) from error
        try:
            document = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RequestError(f"{path} is no readable JSON: {error}") from error
        missing = {"images", "annotations", "categories"} - set(document)
        if missing:
            raise RequestError(
                f"{path} is no COCO instances file: {', '.join(sorted(missing))} missing"
            )
        self.path = path
        self.shape = shape
        self._coco = COCO()
        self._coco.dataset = document
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco.createIndex()
        self._images = _by_key(document["images"], path)

    @property
    def keys(self) -> frozenset[str]:
        """Keys of all annotated images."""
        return frozenset(self._images)

    def foreground(self, key: str, height: int, width: int) -> Foreground | None:
        """Returns the foreground of the image with this key, or None if the file has none.

        Raises:
            RequestError: the annotated image is of another size.
        """
        image = self._images.get(key) or self._images.get(PurePosixPath(key).name)
        if image is None:
            return None
        if (image["height"], image["width"]) != (height, width):
            raise RequestError(
                f"{self.path}: {image['file_name']!r} is {image['width']} x {image['height']} px "
                f"there, but sample {key!r} is {width} x {height} px; pack the original images"
            )
        is_foreground = np.zeros((height, width), dtype=bool)
        is_ignored = np.zeros((height, width), dtype=bool)
        for annotation in self._coco.imgToAnns[image["id"]]:
            region = self._region(annotation, height, width)
            (is_ignored if annotation.get("iscrowd", 0) else is_foreground)[region] = True
        return Foreground(is_foreground, is_ignored & ~is_foreground)

    def _region(self, annotation: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
        crowd = bool(annotation.get("iscrowd", 0))
        if self.shape == "masks" or crowd:
            return np.asarray(self._coco.annToMask(annotation), dtype=bool)
        x, y, w, h = annotation["bbox"]
        region = np.zeros((height, width), dtype=bool)
        region[round(y) : round(y + h), round(x) : round(x + w)] = True
        return region


def _by_key(images: list[dict[str, Any]], path: Path) -> dict[str, dict[str, Any]]:
    by_key: dict[str, dict[str, Any]] = {}
    for image in images:
        name = PurePosixPath(str(image["file_name"]))
        key = str(name.with_suffix(""))
        if key in by_key:
            raise RequestError(f"{path}: two images are called {key!r}")
        by_key[key] = image
    return by_key
