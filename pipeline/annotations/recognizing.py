"""What kind of annotations a path holds, by many of its files, and why it is taken for that."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ltrp_core.errors import RequestError
from ltrp_core.regular_files import open_regular
from pipeline.annotations.folders import files_below

VOC_MASKS = ("SegmentationClass", "SegmentationClassAug")
"""Folders of class images in PASCAL VOC, and of those that SBD adds to them."""
_VOC_OBJECTS = "SegmentationObject"
_LOOKED_AT = 16
"""Files whose beginning is read, spread over all."""
_PALETTE_CLASSES = 21


@dataclass(frozen=True, slots=True)
class Recognized:
    """A format and what speaks for it."""

    format: str
    reason: str


def recognize(path: Path, shape: str) -> Recognized:
    """Returns what the annotations at `path` are.

    Args:
        path: a file or a folder, linked or spelled in whatever way.
        shape: `masks` or `boxes`: what to take where both are there.

    Raises:
        RequestError: nothing there looks like annotations, or it may be of two kinds.
    """
    if path.is_file():
        return Recognized("coco", "a file")
    has_boxes = _holds(path / "Annotations", ".xml")
    has_masks = any(_holds(path / name, ".png") for name in VOC_MASKS)
    if has_masks and (shape == "masks" or not has_boxes):
        return Recognized("voc-masks", f"it has a folder {folder_of(path, VOC_MASKS).name}")
    if has_boxes:
        return Recognized("voc-boxes", "it has a folder Annotations of XML files")
    xml, png = files_below(path, ".xml"), files_below(folder_of(path, ["annotations"]), ".png")
    if xml and (not png or _are_voc(xml)):
        return Recognized("voc-boxes", f"it holds {len(xml)} XML file(s)")
    if not png:
        jpeg = files_below(path, ".jpg") + files_below(path, ".jpeg")
        hint = "; JPEGs are none, for they have gray around every object" if jpeg else ""
        raise RequestError(
            f"{path} holds neither XML nor PNG files; pass a COCO instances JSON, a folder of "
            f"PASCAL VOC or ADE20K, or a folder of mask PNGs{hint}"
        )
    return _of_pngs(path, png)


def folder_of(path: Path, names: Sequence[str]) -> Path:
    """Returns the folder that holds the files: one of `names` below `path`, else `path`."""
    below = [path / name for name in names]
    return next((folder for folder in below if folder.is_dir()), path)


def _of_pngs(path: Path, files: Sequence[Path]) -> Recognized:
    of_ade = [file for file in files if file.name.startswith("ADE_")]
    share = f"{len(of_ade)} of {len(files)} PNGs are named ADE_..."
    if 2 * len(of_ade) > len(files):
        return Recognized("ade20k", share)
    if of_ade:
        raise _undecided(path, share)
    # As it is spelled and as it is: either may be the link.
    names = {path.name, Path(os.path.abspath(path)).name, path.resolve().name}
    if _VOC_OBJECTS in names:
        raise _undecided(path, f"{_VOC_OBJECTS} numbers objects; the classes are in {VOC_MASKS[0]}")
    if known := sorted(names.intersection(VOC_MASKS)):
        return Recognized("voc-masks", f"its name is {known[0]}")
    looked_at = _spread(files)
    of_voc = [file for file in looked_at if _has_palette_of_voc(file)]
    share = f"{len(of_voc)} of {len(looked_at)} PNGs looked at have PASCAL VOC's palette"
    if of_voc and len(of_voc) < len(looked_at):
        raise _undecided(path, f"{share}, e.g. {of_voc[0].name}")
    if of_voc:
        return Recognized("voc-masks", share)
    return Recognized("masks", f"{len(files)} PNG(s), of which all that is not black counts")


def _undecided(path: Path, what: str) -> RequestError:
    return RequestError(f"{path}: {what}; pass --format, or a folder of the annotations alone")


def _holds(folder: Path, suffix: str) -> bool:
    return folder.is_dir() and bool(files_below(folder, suffix))


def _spread(files: Sequence[Path]) -> list[Path]:
    return list(files[:: -(-len(files) // _LOOKED_AT)])


def _are_voc(files: Sequence[Path]) -> bool:
    """Whether most XML files begin like annotations; other programs leave XML as well."""
    looked_at = _spread(files)
    return 2 * sum(b"<annotation" in _start(file) for file in looked_at) > len(looked_at)


def _start(file: Path) -> bytes:
    try:
        with open_regular(file) as opened:
            return opened.read(4096).replace(b"\0", b"")  # UTF-16 as well.
    except OSError:
        return b""


def _has_palette_of_voc(file: Path) -> bool:
    try:
        with open_regular(file) as opened, Image.open(opened, formats=["PNG"]) as image:
            palette = image.getpalette() if image.mode == "P" else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False  # It is named when it is asked for.
    wanted = [part for index in range(_PALETTE_CLASSES) for part in _color_of_voc(index)]
    return palette is not None and palette[: len(wanted)] == wanted


def _color_of_voc(index: int) -> tuple[int, int, int]:
    """Returns a class's color: bit 3j + c of the index is bit 7 - j of channel c."""
    red, green, blue = (
        sum((index >> (3 * j + channel) & 1) << (7 - j) for j in range(3)) for channel in range(3)
    )
    return red, green, blue
