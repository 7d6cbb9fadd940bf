"""Patch-level measures of one image by painting the kept squares at full resolution."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def painted(kept: Iterable[int], height: int, width: int, patch_size: int) -> Mask:
    """Returns R: True on the squares of the kept patches."""
    canvas = np.zeros((height, width), dtype=bool)
    for patch in kept:
        row, column = divmod(patch, width // patch_size)
        for y in range(patch_size):
            for x in range(patch_size):
                canvas[row * patch_size + y, column * patch_size + x] = True
    return canvas


def counts(kept: Iterable[int], foreground: Mask, ignored: Mask, patch_size: int) -> dict[str, int]:
    """Returns |R and F|, |R|, |F| and |R or F| in pixels that are not ignored."""
    r = painted(kept, *foreground.shape, patch_size)
    return {
        "intersection": int(np.count_nonzero(r & foreground & ~ignored)),
        "kept_pixels": int(np.count_nonzero(r & ~ignored)),
        "foreground": int(np.count_nonzero(foreground & ~ignored)),
        "union": int(np.count_nonzero((r | foreground) & ~ignored)),
    }


def measures(pixels: dict[str, int]) -> dict[str, float]:
    """Returns the four measures of counted pixels, nan where the text says undefined."""
    nan = float("nan")
    if pixels["foreground"] == 0:
        return dict.fromkeys(("precision", "recall", "f1", "iou"), nan)
    both, kept, true = pixels["intersection"], pixels["kept_pixels"], pixels["foreground"]
    return {
        "precision": both / kept if kept else nan,
        "recall": both / true,
        "f1": 2 * both / (kept + true),
        "iou": both / pixels["union"],
    }
