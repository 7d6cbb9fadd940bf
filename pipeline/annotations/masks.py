"""A folder of mask PNGs, one per image: what is not black is foreground."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ltrp_core.errors import RequestError
from pipeline.annotations.files import read_mask
from pipeline.annotations.folders import AnnotatedFolder
from stages.protocols import Foreground


class MaskImages(AnnotatedFolder):
    """A folder of mask PNGs, looked up by sample key."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ".png")

    def foreground(
        self, key: str, height: int, width: int, categories: str = "all"
    ) -> Foreground | None:
        """Returns the foreground of the image with this key, or None if it has no mask.

        Raises:
            RequestError: the mask is damaged or of another size, two may be meant, or other
                `categories` than all.
        """
        if categories != "all":
            raise RequestError(
                f"{self.folder} holds masks without categories; use --categories all"
            )
        found = self.find(key)
        if found is None:
            return None
        name, file = found
        is_foreground = read_mask(file, key, height, width)
        return Foreground(is_foreground, np.zeros_like(is_foreground), name)
