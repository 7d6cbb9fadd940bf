"""A folder of mask PNGs, one an image: what is not black is foreground."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ltrp_core.errors import RequestError
from pipeline.annotations.files import find_by_key, folder_sha256, index_files, read_mask
from stages.protocols import Foreground


@dataclass(frozen=True)
class MaskImages:
    """A folder of mask PNGs, looked up by sample key."""

    folder: Path

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
        """Returns the foreground of the image with this key, or None if it has no mask.

        Raises:
            RequestError: the mask is damaged or of another size, or other `categories` than all.
        """
        if categories != "all":
            raise RequestError(
                f"{self.folder} holds masks without categories; use --categories all"
            )
        file = find_by_key(self._index, key)
        if file is None:
            return None
        is_foreground = read_mask(file, key, height, width)
        return Foreground(is_foreground, np.zeros_like(is_foreground))
