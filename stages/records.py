"""The arrays of a unit: how rows become them, and how a row becomes a view again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from ltrp_core.partitions import masked_patches
from ltrp_core.views import View
from stages.protocols import ArrayField, Arrays
from stages.types import ScoreRun


def stack_rows(rows: Sequence[object] | NDArray[Any], field: ArrayField) -> NDArray[Any]:
    """Returns the array of a unit made of its rows, also when there is none."""
    dtype = object if field.dtype == "string" else field.dtype
    return np.array(rows, dtype=dtype).reshape(len(rows), *field.shape)


def scored_lists(run: ScoreRun, arrays: Arrays) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Returns the patches that were scored and their scores, both (..., P, m): the one reader.

    `visible` says what the autoencoder saw. Scored were these n patches, or the L - n others: what
    `run` says. Nobody pairs `visible` with `score` by itself.

    Args:
        run: what the arrays were scored with.
        arrays: `visible` (..., n) and `score` (..., m), of a unit or of some of its rows.

    Raises:
        RequestError: they do not fit each other or the run's grid.
    """
    visible, score = arrays["visible"], arrays["score"]
    if run.scored == "masked":
        patches = masked_patches(visible, run.length)
    else:
        patches = np.asarray(visible).astype(np.int64)
    if patches.shape != score.shape:
        raise RequestError(
            f"scores of shape {score.shape} do not belong to {patches.shape[-1]} {run.scored} "
            f"patches a partition ({patches.shape}); `ltrp-pipeline verify` the cache"
        )
    return patches, score


def view_row(view: View) -> tuple[int, int, int, int]:
    """Returns what `crop` holds of a view: top, left, height, width."""
    return view.top, view.left, view.height, view.width


def recorded_view(arrays: Arrays, row: int, number: int = 0) -> View:
    """Returns view `number` of the sample in `row`, as it was written down."""
    top, left, height, width = (int(value) for value in arrays["crop"][row, number])
    flip = bool(arrays["flip"][row, number])
    return View(top=top, left=left, height=height, width=width, flip=flip)


def kept_name(keep_ratio: float) -> str:
    """Returns the name of the array that holds the selection at a keep ratio: `kept_0.25`."""
    return f"kept_{keep_ratio:g}"
