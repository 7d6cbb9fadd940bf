"""Finds out what kind of annotations a path holds, and opens them when they are first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ltrp_core.errors import RequestError, unknown_name
from pipeline.annotations.class_images import ade20k_things, voc_classes
from pipeline.annotations.coco import CocoAnnotations
from pipeline.annotations.masks import MaskImages
from pipeline.annotations.voc_boxes import VocBoxes
from pipeline.inputs.folders import LeftOut, walk_folder
from pipeline.store.receipts import file_sha256
from stages.protocols import Foreground

FORMATS = ("auto", "coco", "voc-boxes", "voc-masks", "ade20k", "masks")
SHAPES = ("masks", "boxes")

_FOLDERS: Mapping[str, Callable[[Path], Any]] = {
    "voc-boxes": VocBoxes,
    "voc-masks": voc_classes,
    "ade20k": ade20k_things,
    "masks": MaskImages,
}

_LISTS = {
    "coco": ("coco80",),
    "voc-boxes": ("voc20",),
    "voc-masks": ("voc20",),
    "ade20k": ("ade20k",),
}


@dataclass(frozen=True)
class AnnotationSource:
    """Annotations that are parsed at the first image that is asked for: see `stages.protocols`."""

    path: Path
    """The file, or the folder that holds the images' files."""
    format: str
    """One of `FORMATS`, not auto."""
    shape: str
    """Of COCO: masks or boxes."""

    @cached_property
    def _opened(self) -> Any:
        if self.format == "coco":
            return CocoAnnotations(self.path, shape=self.shape)
        return _FOLDERS[self.format](self.path)

    @cached_property
    def fingerprint(self) -> str:
        """What the foregrounds are a function of: format, shape and content."""
        content = file_sha256(self.path) if self.format == "coco" else self._opened.fingerprint
        return f"{self.format} {self.shape} {content}"

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the lists that say which categories are unseen: see `categories.LISTS`."""
        return _LISTS.get(self.format, ())

    @property
    def keys(self) -> frozenset[str]:
        """Keys of all annotated images."""
        keys: frozenset[str] = self._opened.keys
        return keys

    def foreground(
        self, key: str, height: int, width: int, categories: str = "all"
    ) -> Foreground | None:
        """Returns the foreground of an image: see `stages.protocols.Annotations`."""
        found: Foreground | None = self._opened.foreground(key, height, width, categories)
        return found


def open_annotations(path: Path, *, format: str = "auto", shape: str = "masks") -> AnnotationSource:
    """Returns the annotations at `path`.

    Args:
        path: a COCO instances file, the folder of a PASCAL VOC year or of its XML or class PNG
            files, a folder of ADE20K's annotation PNGs, or a folder of mask PNGs.
        format: one of `FORMATS`; auto goes by what is there.
        shape: `masks` or `boxes`: what of an object counts where annotations have both.

    Raises:
        RequestError: nothing is there, or nothing that looks like annotations.
    """
    if format not in FORMATS:
        raise unknown_name("format of annotations", format, FORMATS)
    if shape not in SHAPES:
        raise unknown_name("shape", shape, SHAPES)
    if not path.exists():
        raise RequestError(f"{path} does not exist; pass the annotations' file or folder")
    format, path = _recognize(path, shape) if format == "auto" else (format, path)
    if (format == "coco") == path.is_dir():
        kind = "a file, the instances JSON" if format == "coco" else "a folder"
        raise RequestError(f"{path}: annotations of format {format} are {kind}")
    if shape == "boxes" and format in ("voc-masks", "ade20k", "masks"):
        raise RequestError(f"{path}: annotations of format {format} have no boxes")
    shape = "boxes" if format == "voc-boxes" else shape
    return AnnotationSource(_folder_of(path, format), format, shape)


def _recognize(path: Path, shape: str) -> tuple[str, Path]:
    if not path.is_dir():  # a pipe is refused when it is opened
        return "coco", path
    has_boxes, has_masks = (
        (path / name).is_dir() and _first(path / name, suffix) is not None
        for name, suffix in (("Annotations", ".xml"), ("SegmentationClass", ".png"))
    )
    if has_boxes or has_masks:
        return "voc-masks" if has_masks and (
            shape == "masks" or not has_boxes
        ) else "voc-boxes", path
    if _first(path, ".xml") is not None:
        return "voc-boxes", path
    png = _first(_folder_of(path, "ade20k"), ".png")
    if png is None:
        raise RequestError(
            f"{path} holds neither XML nor PNG files; pass a COCO instances JSON, a folder of "
            "PASCAL VOC or ADE20K, or a folder of mask PNGs"
        )
    if png.name.startswith("ADE_"):
        return "ade20k", path
    return "voc-masks" if path.name == "SegmentationClass" else "masks", path


def _folder_of(path: Path, format: str) -> Path:
    """Returns the folder that holds the files, where `path` is the root of the data set."""
    names = {"voc-boxes": "Annotations", "voc-masks": "SegmentationClass", "ade20k": "annotations"}
    below = path / names.get(format, ".")
    return below if below.is_dir() else path


def _first(folder: Path, suffix: str) -> Path | None:
    found = walk_folder(folder, LeftOut(str(folder)), lambda name: name.endswith(suffix))
    return next((folder / file.name for file in found), None)
