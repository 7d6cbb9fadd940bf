"""How many pixels of each patch are foreground: annotations through the crop of their image."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ltrp_core.patch_metrics import PatchCoverage, coverage
from ltrp_core.views import render_mask
from stages.protocols import Annotations, Arrays, CountCache
from stages.records import recorded_view
from stages.types import ViewSizes

_IMAGES_AT_ONCE = 64


def unit_counts(
    unit: str,
    arrays: Arrays,
    run: ViewSizes,
    annotations: Annotations,
    categories: str,
    cached: CountCache | None,
) -> Arrays:
    """Returns what the annotations say of the N images of a unit of selections.

    Args:
        unit: its name.
        arrays: its `key`, `size`, `crop` and `flip`.
        run: sizes of their views.
        annotations: asked for images, unless `cached` has the answer.
        categories: the group whose objects are the foreground.
        cached: where counts are kept from one evaluation to the next.

    Returns:
        `is_annotated` bool (N,), `annotation` text (N,), what the annotations call the image,
        `foreground_pixels` and `valid_pixels` int32 (N, L); empty and 0 where it is not annotated.

    Raises:
        RequestError: annotations that are damaged or of another size.
    """
    found = cached.get(unit, categories) if cached is not None else None
    if found is None:
        found = _count(arrays, run, annotations, categories)
        if cached is not None:
            cached.put(unit, categories, found)
    return found


def counted(counts: Arrays, rows: NDArray[np.int64], patch_size: int) -> PatchCoverage:
    """Returns the coverage of some images of a unit, in the order of `rows` (B,)."""
    return PatchCoverage(
        foreground_pixels=torch.from_numpy(counts["foreground_pixels"][rows].astype(np.int64)),
        valid_pixels=torch.from_numpy(counts["valid_pixels"][rows].astype(np.int64)),
        patch_size=patch_size,
    )


def _count(arrays: Arrays, run: ViewSizes, annotations: Annotations, categories: str) -> Arrays:
    count, size, patch_size = len(arrays["key"]), run.image_size, run.patch_size
    called = [""] * count
    counts: Arrays = {
        "is_annotated": np.zeros(count, dtype=bool),
        "foreground_pixels": np.zeros((count, run.length), dtype=np.int32),
        "valid_pixels": np.zeros((count, run.length), dtype=np.int32),
    }
    for start in range(0, count, _IMAGES_AT_ONCE):
        rows, masks = [], []
        for row in range(start, min(start + _IMAGES_AT_ONCE, count)):
            height, width = (int(side) for side in arrays["size"][row])
            found = annotations.foreground(str(arrays["key"][row]), height, width, categories)
            if found is not None:
                view = recorded_view(arrays, row)
                both = (found.is_foreground, found.is_ignored)
                masks.append(np.stack([render_mask(mask, view, size) for mask in both]))
                rows.append(row)
                called[row] = found.name
        if rows:
            foreground, ignored = torch.from_numpy(np.stack(masks)).unbind(dim=1)
            seen = coverage(foreground, ignored, patch_size)
            counts["is_annotated"][rows] = True
            counts["foreground_pixels"][rows] = seen.foreground_pixels.numpy()
            counts["valid_pixels"][rows] = seen.valid_pixels.numpy()
    counts["annotation"] = np.array(called, dtype=np.str_)
    return counts
