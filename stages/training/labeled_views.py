"""Views of labeled images: batches that a classifier learns from, and those it is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ltrp_core.errors import RequestError
from ltrp_core.views import Crop, View, check_size, make_view, render_view
from stages.protocols import Images
from stages.training.ddp import Processes
from stages.training.loop import StepBatch
from stages.training.order import Picks, RecordOrder

UNLABELED = -1


class StoredChoices(Protocol):
    """The selections of some images, each reachable by the image's number; picklable and small."""

    def of(self, row: int, key: str, height: int, width: int) -> tuple[View, NDArray[np.int64]]:
        """Returns the view that was selected from, and the kept patches (k,).

        Raises:
            RequestError: the image was of another size than `height` x `width` px.
        """
        ...


@dataclass(frozen=True, slots=True)
class LabeledImages:
    """Images, each with one class or none; picklable and small, as they are."""

    images: Images
    classes: Sequence[str]
    """(C,) names, by number"""
    numbers: NDArray[np.int64]
    """(N,) class of every image, or `UNLABELED`"""
    stored: StoredChoices | None = None
    """Which patches are kept, and of which view; None: views are drawn"""

    @property
    def rows(self) -> NDArray[np.int64]:
        """Numbers of the images that have a class, ascending."""
        return np.flatnonzero(self.numbers != UNLABELED)

    def by_names_of(self, classes: Sequence[str]) -> LabeledImages:
        """Returns the same images with the numbers of other classes, found by their names.

        Raises:
            RequestError: an image is of a class that is none of these.
        """
        place = {name: number for number, name in enumerate(classes)}
        numbers = self.numbers.copy()
        for number in np.unique(self.numbers[self.rows]).tolist():
            name = self.classes[number]
            if name not in place:
                raise RequestError(
                    f"validation images are of class {name!r}, which is none of the "
                    f"{len(classes)} that are trained on; pass --validation-shards of the same "
                    "classes"
                )
            numbers[self.numbers == number] = place[name]
        return LabeledImages(self.images, classes, numbers, self.stored)


class LabeledViews(NamedTuple):
    """Some views with their classes."""

    pixels: Tensor
    """uint8 (b, 3, S, S)"""
    label: Tensor
    """int64 (b,)"""
    kept: Tensor | None
    """int64 (b, k), where the patches are stored; else None"""
    keys: tuple[str, ...]
    """(b,) what a selector that draws goes by: of image and view"""
    is_padding: bool = False
    """Whether it is not trained on: a process that has no views keeps the others company"""

    def pin_memory(self) -> LabeledViews:
        """Called by the loader."""
        kept = None if self.kept is None else self.kept.pin_memory()
        pixels, label = self.pixels.pin_memory(), self.label.pin_memory()
        return LabeledViews(pixels, label, kept, self.keys, self.is_padding)


@dataclass(frozen=True, slots=True)
class ViewMaker:
    """Makes views: functions of (seed, key, number of the view), or those that were stored."""

    data: LabeledImages
    crop: Crop
    """Of views that are not stored; `train`: another one by each number"""
    image_size: int
    """Side in px"""
    seed: int

    def batch(self, rows: Sequence[int], numbers: Sequence[int]) -> LabeledViews:
        """Returns the views of some images, at least one: of each the one with its number.

        Raises:
            RequestError: an image that is not of the size that it was selected from, or cannot be
                read any more.
        """
        made = [self._view(row, number) for row, number in zip(rows, numbers, strict=True)]
        kept = [torch.from_numpy(one[1]) for one in made if one[1] is not None]
        return LabeledViews(
            pixels=torch.stack([one[0] for one in made]),
            label=torch.from_numpy(self.data.numbers[np.asarray(rows)]),
            kept=torch.stack(kept) if kept else None,
            keys=tuple(one[2] for one in made),
        )

    def _view(self, row: int, number: int) -> tuple[Tensor, NDArray[np.int64] | None, str]:
        image, key = self.data.images.image(row), self.data.images.keys[row]
        height, width = image.shape[:2]
        kept = None
        if self.data.stored is not None:
            view, kept = self.data.stored.of(row, key, height, width)
        else:
            view = make_view(self.crop, key, number, height, width, self.seed)
            check_size(self.crop, key, view, self.image_size)
        # A view that is always the same one is drawn for as `select` does: by its key alone.
        drawn_by = f"{key}:{number}" if kept is None and self.crop == "train" else key
        return render_view(image, view, self.image_size), kept, drawn_by


@dataclass(frozen=True, slots=True)
class LabeledSteps(Dataset[StepBatch]):
    """Every step of a training run, by (epoch, step): what this rank computes of it."""

    views: ViewMaker
    rows: NDArray[np.int64]
    """Numbers of the images that are trained on"""
    order: RecordOrder
    ranks: Processes
    accumulate: int

    def __getitem__(self, place: tuple[int, int]) -> StepBatch:
        picks = self.order.step(*place)
        # Processes take turns, so that none has more than one view more than another.
        mine = picks[self.ranks.rank :: self.ranks.size]
        if not len(mine):
            # The other ranks wait for gradients of this one: some that count for nothing.
            return StepBatch([self._read(picks[:1])._replace(is_padding=True)], len(picks))
        size = -(-len(mine) // self.accumulate)
        starts = range(0, len(mine), size)
        parts = [self._read(mine[start : start + size]) for start in starts]
        return StepBatch(parts, len(picks))

    def _read(self, picks: Picks) -> LabeledViews:
        return self.views.batch(self.rows[picks.sample].tolist(), picks.record.tolist())
