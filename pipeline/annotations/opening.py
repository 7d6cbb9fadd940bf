"""Finds out what kind of annotations a path holds, and opens them when they are first needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ltrp_core.errors import RequestError, unknown_name
from pipeline.annotations.class_images import ade20k_things, voc_classes
from pipeline.annotations.coco import CocoAnnotations
from pipeline.annotations.masks import MaskImages
from pipeline.annotations.recognizing import folder_of, recognize
from pipeline.annotations.voc_boxes import VocBoxes
from pipeline.files import file_sha256
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
    recognized_by: str = ""
    """Why the format is taken, where it was not asked for."""

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
    def notes(self) -> list[str]:
        """What must not go unsaid: the format, where nobody chose it."""
        if not self.recognized_by:
            return []
        return [
            f"took {self.path} for annotations of format {self.format}: {self.recognized_by}; "
            "--format chooses another"
        ]

    @property
    def names(self) -> Collection[str]:
        """What the annotations call their images."""
        names: Collection[str] = self._opened.names
        return names

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
        format: one of `FORMATS`; auto goes by what is there, and says so in `notes`.
        shape: `masks` or `boxes`: what of an object counts where annotations have both.

    Raises:
        RequestError: nothing is there, nothing that looks like annotations, or with auto what may
            be of two formats.
    """
    if format not in FORMATS:
        raise unknown_name("format of annotations", format, FORMATS)
    if shape not in SHAPES:
        raise unknown_name("shape", shape, SHAPES)
    if not path.exists():
        raise RequestError(f"{path} does not exist; pass the annotations' file or folder")
    recognized = recognize(path, shape) if format == "auto" else None
    format = format if recognized is None else recognized.format
    if (format == "coco") == path.is_dir():
        kind = "a file, the instances JSON" if format == "coco" else "a folder"
        raise RequestError(f"{path}: annotations of format {format} are {kind}")
    if shape == "boxes" and format in ("voc-masks", "ade20k", "masks"):
        raise RequestError(f"{path}: annotations of format {format} have no boxes")
    shape = "boxes" if format == "voc-boxes" else shape
    # That a file is COCO's needs no word: nothing else is a file.
    reason = recognized.reason if recognized is not None and format != "coco" else ""
    return AnnotationSource(folder_of(path, format), format, shape, reason)
