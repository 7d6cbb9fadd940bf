"""Batches of cached records for ranker training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ltrp_core.seeding import random_bits
from stages.protocols import Records
from stages.training.ddp import Processes
from stages.training.loop import StepBatch
from stages.training.order import Picks, RecordOrder


class RankingBatch(NamedTuple):
    """Some records."""

    patches: Tensor
    """uint8 (b, n, 3p²), or (b, L, 3p²) for rankers with dense input"""
    visible: Tensor
    """int64 (b, n)"""
    score: Tensor
    """float32 (b, n)"""
    is_padding: bool = False
    """Whether it is not trained on: a process that has no records keeps the others company"""

    def pin_memory(self) -> RankingBatch:
        """Called by the loader."""
        patches, visible, score = (values.pin_memory() for values in self[:3])
        return RankingBatch(patches, visible, score, self.is_padding)


def read_batch(records: Records, picks: Picks, *, whole: bool) -> RankingBatch:
    """Returns some records as tensors; `whole` = all patches of their views."""
    visible, score = records.lists(picks.sample, picks.record)
    if whole:
        view = picks.record // records.run.partitions
        patches = records.whole_views(picks.sample, view)
    else:
        patches = records.visible_patches(picks.sample, picks.record)
    return RankingBatch(
        torch.from_numpy(patches), torch.from_numpy(visible), torch.from_numpy(score)
    )


@dataclass(frozen=True, slots=True)
class RankingSteps(Dataset[StepBatch]):
    """Every step of a training run, by (epoch, step): what this rank computes of it."""

    records: Records
    samples: NDArray[np.int64]
    """Numbers of the samples that are trained on, ascending"""
    order: RecordOrder
    ranks: Processes
    accumulate: int
    whole: bool

    def __getitem__(self, place: tuple[int, int]) -> StepBatch:
        epoch, step = place
        picks = self.order.step(epoch, step)
        # Processes take turns, so that none has more than one record more than another.
        mine = picks[self.ranks.rank :: self.ranks.size]
        if not len(mine):
            # The other ranks wait for gradients of this one: some that count for nothing.
            one = self._read(picks[:1])._replace(is_padding=True)
            return StepBatch([one], len(picks))
        batch = self._read(mine)
        bits = random_bits(
            len(picks) * batch.visible.shape[1],
            seed=self.order.seed,
            key=f"{epoch}:{step}",
            purpose="ties",
        ).reshape(len(picks), -1)[self.ranks.rank :: self.ranks.size]
        batch = _shuffled(batch, bits, reorder_patches=not self.whole)
        size = -(-len(mine) // self.accumulate)
        parts = [
            RankingBatch(patches, visible, score)
            for patches, visible, score in zip(
                *(values.split(size) for values in batch[:3]), strict=True
            )
        ]
        return StepBatch(parts, len(picks))

    def _read(self, picks: Picks) -> RankingBatch:
        found = Picks(self.samples[picks.sample], picks.record)
        return read_batch(self.records, found, whole=self.whole)


def _shuffled(
    batch: RankingBatch, bits: NDArray[np.uint64], *, reorder_patches: bool
) -> RankingBatch:
    """Shuffles each list, so that equal scores stand in random order (Sec. 3.3)."""
    order = torch.from_numpy(bits.argsort(axis=1, kind="stable"))
    patches = batch.patches
    if reorder_patches:
        size, length, _ = patches.shape
        rows = (torch.arange(size)[:, None] * length + order).flatten()
        patches = patches.flatten(0, 1).index_select(0, rows).view_as(patches)
    return RankingBatch(patches, batch.visible.gather(1, order), batch.score.gather(1, order))
