"""PNGs whose pixels are class numbers: PASCAL VOC's SegmentationClass, ADE20K's SceneParsing.

VOC: 0 is background and 255, the rim of an object, is ignored. ADE20K: 0 is unlabeled, thus
ignored; of its 150 classes the 100 things can be foreground, stuff such as sky never is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from pipeline.annotations.categories import select_categories
from pipeline.annotations.files import (
    find_by_key,
    folder_sha256,
    index_files,
    read_classes,
)
from stages.protocols import Foreground


@dataclass(frozen=True)
class ClassImages:
    """A folder of class PNGs, looked up by sample key."""

    folder: Path
    categories: str
    """Name of the list that says which values are which categories."""
    ignored: int
    """The value that is neither foreground nor background."""
    highest: int
    """The largest class number."""

    @cached_property
    def _index(self) -> dict[str, Path]:
        return index_files(self.folder, ".png")

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
        """Returns the foreground of the image with this key, or None if there is no PNG of it.

        Raises:
            RequestError: the PNG is damaged, of another size, or holds an unknown class.
        """
        is_chosen = np.zeros(256, dtype=bool)
        is_chosen[[c.id for c in select_categories(self.categories, categories) if c.id]] = True
        file = find_by_key(self._index, key)
        if file is None:
            return None
        classes = read_classes(file, key, height, width)
        self._check(file, classes)
        return Foreground(is_chosen[classes], classes == self.ignored)

    def _check(self, file: Path, classes: NDArray[np.uint8]) -> None:
        present = np.flatnonzero(np.bincount(classes.ravel(), minlength=256))
        unknown = [int(v) for v in present if v > self.highest and v != self.ignored]
        if unknown:
            raise RequestError(
                f"{file} holds the value {unknown[0]}, but classes end at {self.highest}; is it "
                "an annotation of another data set? Then pass --format"
            )


def voc_classes(folder: Path) -> ClassImages:
    """Returns the annotations of a SegmentationClass folder of PASCAL VOC."""
    return ClassImages(folder, "voc20", ignored=255, highest=20)


def ade20k_things(folder: Path) -> ClassImages:
    """Returns the things in an annotations folder of ADE20K SceneParsing."""
    return ClassImages(folder, "ade20k", ignored=0, highest=150)
