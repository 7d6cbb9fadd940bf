"""What `select` chooses patches with: a selector by its name, or a teacher's cached scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.errors import RequestError
from ltrp_core.selectors import (
    SELECTORS,
    Priors,
    ScoreSelector,
    Selector,
    prior_names,
    selector_names,
)
from ltrp_core.views import Crop, View, check_size, make_view
from stages.named_weights import named_weights
from stages.protocols import CacheReader, Sample
from stages.records import recorded_view
from stages.score_maps import ScoreMaps

TEACHER = "teacher"
"""The selector whose `weights` are a cache of `score --sampler cover`."""
OpenTeacher = Callable[[], CacheReader]
"""Picklable and small: each worker opens the cache itself."""
KnownMap = NDArray[np.float32] | None


def names() -> list[str]:
    """Returns the names that `--selector` takes."""
    first, *others = selector_names()
    return [first, TEACHER, *others]


def baseline_names() -> list[str]:
    """Returns the names that `--baseline` takes: of the package's selectors without weights."""
    return [name for name, spec in SELECTORS.items() if spec.weights_file is None]


def prior_weights(given: Sequence[str]) -> dict[str, float]:
    """Returns the weights of `--prior` by name; errors as of `named_weights`."""
    return named_weights(given, prior_names(), "--prior")


class TeacherSelector(ScoreSelector):
    """The mean scores of a cache of `score --sampler cover`, of the very views it recorded."""

    def __init__(self, teacher: CacheReader, homogeneous: float) -> None:
        """Reads the keys of the cache.

        Raises:
            RequestError: the cache does not cover every patch of one view per image, or has a key
                twice.
        """
        if teacher.run.get("stage") != "score":
            raise RequestError(
                "--teacher must be a cache that scores every patch; make it with score --sampler "
                "cover"
            )
        self._maps = ScoreMaps(teacher, "--teacher")
        super().__init__(self._maps.run.image_size, self._maps.run.patch_size, homogeneous)
        self.crop = self._maps.run.crop

    def view(self, sample: Sample) -> tuple[View, NDArray[np.float32]]:
        """Returns the recorded view of a sample and the mean scores (L,) of its patches.

        Raises:
            RequestError: the cache does not have the key, has it of an image of another size, or
                has not scored all of its patches.
        """
        arrays, row = self._maps.find(sample.key)
        if tuple(arrays["size"][row]) != sample.image.shape[:2]:
            raise RequestError(
                f"{sample.key!r} was scored at {arrays['size'][row].tolist()} px and is "
                f"{list(sample.image.shape[:2])} px now; is this the image that was scored?"
            )
        return recorded_view(arrays, row), arrays["map"][row].astype(np.float32)

    def scores(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        """Returns the maps of the cache."""
        return torch.from_numpy(np.stack(list(self._maps.maps(keys)))).to(images.device)


def choose(
    selector: Selector,
    images: Tensor,
    keys: Sequence[str],
    keeps: Sequence[int],
    known: Sequence[KnownMap],
    priors: Priors,
) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
    """Returns the kept patches (B, k) for each k, what they are by, and the selector's own scores.

    Args:
        known: scores (L,) of each image that came with its view.
        priors: whose ranks are added; without any, scores are the selector's own.

    Returns:
        Kept patches; scores (B, L), if the selector has any; its own scores (B, L) where priors
        were added, else None.
    """
    scores = plain = None
    if isinstance(selector, ScoreSelector):
        maps = [values for values in known if values is not None]
        if len(maps) == len(keys) > 0:
            scores = torch.from_numpy(np.stack(maps)).to(images.device)
        else:
            scores = selector.scores(images, keys)
        if priors.weights:
            plain, scores = scores, priors.add(scores, images, keys)
        kept = selector.keep(scores, images, keeps)
    else:
        kept = selector.select(images, keys, keeps)
    return kept, scores, plain


def check_choices(
    selector: Selector, chosen: Sequence[NDArray[Any]], count: int, keeps: Sequence[int]
) -> None:
    """Checks what a selector keeps of `count` images: another package may have written it.

    Raises:
        RequestError: it is no choice of k distinct patches of the grid for each k.
    """
    name, length = type(selector).__name__, selector.grid**2
    if len(chosen) != len(keeps):
        raise RequestError(f"selector {name} gives {len(chosen)} choices for {len(keeps)} k")
    for kept, keep in zip(chosen, keeps, strict=True):
        if kept.shape != (count, keep) or kept.dtype != np.int64:
            raise RequestError(
                f"selector {name} gives {kept.dtype} {kept.shape} for int64 {(count, keep)}"
            )
        ascending = np.sort(kept, axis=1)
        is_distinct = (ascending[:, 1:] > ascending[:, :-1]).all()
        if not is_distinct or ((ascending < 0) | (ascending >= length)).any():
            raise RequestError(
                f"selector {name} keeps a patch twice, or one that is not of the {length}"
            )


def made_view(sample: Sample, crop: Crop, seed: int, size: int) -> View:
    """Returns the view that a crop makes of a sample.

    Raises:
        RequestError: with `none`, the image is not of the view's size.
    """
    height, width = sample.image.shape[:2]
    view = make_view(crop, sample.key, 0, height, width, seed)
    check_size(crop, sample.key, view, size)
    return view
