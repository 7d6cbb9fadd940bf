"""PNGs whose pixels are class numbers: PASCAL VOC's SegmentationClass, ADE20K's SceneParsing.

VOC: 0 is background and 255, the rim of an object, is ignored. ADE20K: 0 is unlabeled, thus
ignored; of its 150 classes the 100 things can be foreground, stuff such as sky never is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from pipeline.annotations.categories import select_categories
from pipeline.annotations.files import read_classes
from pipeline.annotations.folders import AnnotatedFolder
from stages.protocols import Foreground


class ClassImages(AnnotatedFolder):
    """A folder of class PNGs, looked up by sample key."""

    def __init__(self, folder: Path, categories: str, *, ignored: int, highest: int) -> None:
        """Takes the files below a folder.

        Args:
            folder: of PNGs.
            categories: name of the list that says which values are which categories.
            ignored: the value that is neither foreground nor background.
            highest: the largest class number.
        """
        super().__init__(folder, ".png")
        self._categories = categories
        self._ignored = ignored
        self._highest = highest

    def foreground(
        self, key: str, height: int, width: int, categories: str = "all"
    ) -> Foreground | None:
        """Returns the foreground of the image with this key, or None if there is no PNG of it.

        Raises:
            RequestError: the PNG is damaged, of another size, or holds an unknown class; or two
                may be meant.
        """
        is_chosen = np.zeros(256, dtype=bool)
        is_chosen[[c.id for c in select_categories(self._categories, categories) if c.id]] = True
        found = self.find(key)
        if found is None:
            return None
        name, file = found
        classes = read_classes(file, key, height, width)
        self._check(file, classes)
        return Foreground(is_chosen[classes], classes == self._ignored, name)

    def _check(self, file: Path, classes: NDArray[np.uint8]) -> None:
        present = np.flatnonzero(np.bincount(classes.ravel(), minlength=256))
        unknown = [int(v) for v in present if v > self._highest and v != self._ignored]
        if unknown:
            raise RequestError(
                f"{file} holds the value {unknown[0]}, but classes end at {self._highest}; is it "
                "an annotation of another data set? Then pass --format"
            )


def voc_classes(folder: Path) -> ClassImages:
    """Returns the annotations of a SegmentationClass folder of PASCAL VOC."""
    return ClassImages(folder, "voc20", ignored=255, highest=20)


def ade20k_things(folder: Path) -> ClassImages:
    """Returns the things in an annotations folder of ADE20K SceneParsing."""
    return ClassImages(folder, "ade20k", ignored=0, highest=150)
