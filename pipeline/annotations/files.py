"""Annotations that are one file an image: found by key, read strictly, told apart by content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ltrp_core.errors import RequestError
from ltrp_core.regular_files import open_regular
from pipeline.inputs.folders import LeftOut, walk_folder
from pipeline.inputs.images import MAX_PIXELS
from pipeline.store.receipts import file_sha256

_DAMAGE = (OSError, SyntaxError, ValueError, MemoryError, EOFError, OverflowError)


def index_files(folder: Path, suffix: str) -> dict[str, Path]:
    """Returns the files below `folder` by key, their relative name without the suffix; sorted.

    Raises:
        RequestError: there is none, or the folder cannot be read.
    """
    found = walk_folder(folder, LeftOut(str(folder)), lambda name: name.endswith(suffix))
    files = sorted(folder / file.name for file in found)
    if not files:
        raise RequestError(f"{folder} holds no {suffix} file; pass the folder of annotations")
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def find_by_key(index: Mapping[str, Any], key: str) -> Any:
    """Returns what is annotated under a sample key, or under its last part; None if nothing is."""
    found = index.get(key)
    return index.get(PurePosixPath(key).name) if found is None else found


def folder_sha256(folder: Path, files: Iterable[Path]) -> str:
    """Returns a hash of the names and contents of some files of a folder."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()


def check_size(
    file: Path, key: str, annotated: tuple[int, int], sample: tuple[int, int], what: str = "it"
) -> None:
    """Checks (height, width) of an annotated image against the sample's.

    Raises:
        RequestError: they differ; the message has both.
    """
    if annotated != sample:
        raise RequestError(
            f"{file}: {what} is {annotated[1]} x {annotated[0]} px there, but sample {key!r} is "
            f"{sample[1]} x {sample[0]} px; pack the original images"
        )


def read_mask(file: Path, key: str, height: int, width: int) -> NDArray[np.bool_]:
    """Returns where an image is not black (transparency does not count): bool (height, width).

    Raises:
        RequestError: damaged, or of another size.
    """
    with _open_png(file, key, height, width) as image:
        values = np.asarray(image.convert("RGB") if image.mode in ("RGBA", "LA", "PA") else image)
    is_foreground: NDArray[np.bool_] = np.any(values.reshape(height, width, -1), axis=2)
    return is_foreground


def read_classes(file: Path, key: str, height: int, width: int) -> NDArray[np.uint8]:
    """Returns the values of an image of one channel, gray or palette: uint8 (height, width).

    Raises:
        RequestError: damaged, of another size, or of several channels.
    """
    with _open_png(file, key, height, width) as image:
        values = np.asarray(image)
        mode = image.mode
    if values.ndim != 2 or mode == "F" or values.min() < 0 or values.max() > 255:
        raise RequestError(
            f"{file} is an image of mode {mode}; classes are the values 0 to 255 of one channel "
            "(gray or palette), so pass the data set's own files"
        )
    return values.astype(np.uint8)


def _open_png(file: Path, key: str, height: int, width: int) -> Image.Image:
    """Returns a decoded image of a known size; the header is checked before a pixel is decoded."""
    try:
        with open_regular(file) as opened:
            image = Image.open(opened, formats=["PNG"])
            if image.width * image.height > MAX_PIXELS:
                raise RequestError(f"{file} says {image.width} x {image.height} px: too large")
            check_size(file, key, (image.height, image.width), (height, width))
            image.load()
    except RequestError:
        raise
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise RequestError(f"{file} is no readable PNG: {type(error).__name__}: {error}") from error
    return image
