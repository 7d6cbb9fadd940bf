"""Batches of masked views for the pretraining of an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ltrp_core.partitions import sample_visible
from ltrp_core.seeding import random_bits
from ltrp_core.views import make_view, render_view
from stages.protocols import Images
from stages.training.ddp import Processes
from stages.training.loop import StepBatch
from stages.training.order import Picks, RecordOrder


class MaskedViews(NamedTuple):
    """Some views with equally many visible patches."""

    pixels: Tensor
    """uint8 (b, 3, S, S)"""
    visible: Tensor
    """int64 (b, n)"""
    is_padding: bool = False
    """Whether it is not trained on: a process that has no records keeps the others company"""

    def pin_memory(self) -> MaskedViews:
        """Called by the loader."""
        return MaskedViews(self.pixels.pin_memory(), self.visible.pin_memory(), self.is_padding)


@dataclass(frozen=True, slots=True)
class PretrainingSteps(Dataset[StepBatch]):
    """Every step of a training run, by (epoch, step): what this rank computes of it.

    View, mask ratio and visible patches are functions of (seed, key, number of the view). Views of
    one ratio make a part: only they can be stacked.
    """

    images: Images
    rows: NDArray[np.int64]
    """Numbers of the images that are trained on"""
    order: RecordOrder
    ranks: Processes
    accumulate: int
    mask_ratios: Sequence[float]
    image_size: int
    length: int
    """Patches of a view: L"""

    def __getitem__(self, place: tuple[int, int]) -> StepBatch:
        picks = self.order.step(*place)
        # Processes take turns, so that none has more than one view more than another.
        mine = picks[self.ranks.rank :: self.ranks.size]
        if not len(mine):
            # The other ranks wait for gradients of this one: some that count for nothing.
            parts = [part._replace(is_padding=True) for part in self._parts(picks[:1])]
            return StepBatch(parts, len(picks))
        return StepBatch(self._parts(mine), len(picks))

    def _parts(self, picks: Picks) -> list[MaskedViews]:
        groups: dict[float, list[tuple[Tensor, Tensor]]] = {}
        rows = self.rows[picks.sample]
        for row, number in zip(rows.tolist(), picks.record.tolist(), strict=True):
            ratio = self._mask_ratio(self.images.keys[row], number)
            groups.setdefault(ratio, []).append(self._view(row, number, ratio))
        size = -(-len(picks) // self.accumulate)
        return [
            MaskedViews(
                torch.stack([one[0] for one in some]), torch.stack([one[1] for one in some])
            )
            for _, views in sorted(groups.items())
            for some in (views[start : start + size] for start in range(0, len(views), size))
        ]

    def _mask_ratio(self, key: str, number: int) -> float:
        if len(self.mask_ratios) == 1:
            return self.mask_ratios[0]
        bits = random_bits(1, seed=self.order.seed, key=f"{key}:{number}", purpose="mask ratio")
        return self.mask_ratios[int(bits[0] % np.uint64(len(self.mask_ratios)))]

    def _view(self, row: int, number: int, ratio: float) -> tuple[Tensor, Tensor]:
        image, key, seed = self.images.image(row), self.images.keys[row], self.order.seed
        view = make_view("train", key, number, image.shape[0], image.shape[1], seed)
        visible = sample_visible(key, number, 1, self.length, ratio, seed)
        return render_view(image, view, self.image_size), torch.from_numpy(visible[0])
