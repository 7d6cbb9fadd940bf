"""Finds out what kind of annotations a path holds, and opens them when they are first needed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ltrp_core.errors import RequestError, unknown_name
from pipeline.annotations.class_images import ade20k_things, voc_classes
from pipeline.annotations.coco import CocoAnnotations
from pipeline.annotations.masks import MaskImages
from pipeline.annotations.recognizing import VOC_MASKS, folder_of, recognize
from pipeline.annotations.voc_boxes import VocBoxes
from stages.protocols import Foreground

SHAPES = ("masks", "boxes")
AUTO = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotationForm:
    """One row of `FORMS`."""

    open: Callable[[Path, str], Any]
    """From the path and the shape to what has `names`, `foreground` and `fingerprint`"""
    is_file: bool = False
    """Whether all annotations are one file; else they are a folder of one file per image"""
    shapes: tuple[str, ...] = ("masks",)
    """What of an object can count"""
    below: tuple[str, ...] = ()
    """Folders that hold the files, where the path is the root of the data set"""
    lists: tuple[str, ...] = ()
    """Lists that say which categories are unseen: see `categories.LISTS`"""


FORMS: dict[str, AnnotationForm] = {
    "coco": AnnotationForm(
        open=lambda path, shape: CocoAnnotations(path, shape=shape),
        is_file=True,
        shapes=SHAPES,
        lists=("coco80",),
    ),
    "voc-boxes": AnnotationForm(
        open=lambda path, shape: VocBoxes(path),
        shapes=("boxes",),
        below=("Annotations",),
        lists=("voc20",),
    ),
    "voc-masks": AnnotationForm(
        open=lambda path, shape: voc_classes(path), below=VOC_MASKS, lists=("voc20",)
    ),
    "ade20k": AnnotationForm(
        open=lambda path, shape: ade20k_things(path), below=("annotations",), lists=("ade20k",)
    ),
    "masks": AnnotationForm(open=lambda path, shape: MaskImages(path)),
}
"""By the name that `--format` takes; `recognizing` says which of the package's own a path holds. A
form from outside joins by a row, and is chosen by its name."""


def format_names() -> list[str]:
    """Returns what `--format` takes."""
    return [AUTO, *FORMS]


@dataclass(frozen=True)
class AnnotationSource:
    """Annotations that are parsed at the first image that is asked for: see `stages.protocols`."""

    path: Path
    """The file, or the folder that holds the images' files."""
    format: str
    """A name of `FORMS`."""
    shape: str
    """Of COCO: masks or boxes."""
    recognized_by: str = ""
    """Why the format is taken, where it was not asked for."""

    @cached_property
    def _opened(self) -> Any:
        return FORMS[self.format].open(self.path, self.shape)

    @cached_property
    def fingerprint(self) -> str:
        """What the foregrounds are a function of: format, shape and content."""
        content = self._opened.fingerprint
        return f"{self.format} {self.shape} {content}"

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the lists that say which categories are unseen: see `categories.LISTS`."""
        return FORMS[self.format].lists

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

    def all_categories(self) -> tuple[str, ...]:
        """Returns the names of all categories by number, where the annotations list them."""
        found: tuple[str, ...] = getattr(self._opened, "categories", ())
        return found

    def objects(self, key: str) -> tuple[str, ...] | None:
        """Returns the categories of an image's objects, sorted; None: it is not annotated.

        Raises:
            RequestError: the annotations do not say of which category an object is.
        """
        if not hasattr(self._opened, "objects"):
            raise RequestError(f"annotations of format {self.format} at {self.path} have no labels")
        found: tuple[str, ...] | None = self._opened.objects(key)
        return found

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
        format: a name of `FORMS`; auto goes by what is there, and says so in `notes`.
        shape: `masks` or `boxes`: what of an object counts where annotations have both.

    Raises:
        RequestError: nothing is there, nothing that looks like annotations, or with auto what may
            be of two formats.
    """
    if format not in format_names():
        raise unknown_name("format of annotations", format, format_names())
    if shape not in SHAPES:
        raise unknown_name("shape", shape, SHAPES)
    if not path.exists():
        raise RequestError(f"{path} does not exist; pass the annotations' file or folder")
    recognized = recognize(path, shape) if format == AUTO else None
    format = format if recognized is None else recognized.format
    form = FORMS[format]
    if form.is_file == path.is_dir():
        kind = "a file" if form.is_file else "a folder"
        if format == "coco":
            kind = "a file, the instances JSON"
        raise RequestError(f"{path}: annotations of format {format} are {kind}")
    if shape not in form.shapes:
        if shape == "boxes":
            raise RequestError(f"{path}: annotations of format {format} have no boxes")
        (shape,) = form.shapes
    # That a file is COCO's needs no word: nothing else is a file.
    reason = recognized.reason if recognized is not None and not form.is_file else ""
    return AnnotationSource(folder_of(path, form.below), format, shape, reason)
