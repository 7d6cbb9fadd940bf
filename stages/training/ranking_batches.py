"""Batches of cached records for ranker training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ltrp_core.seeding import random_bits
from stages.training.ddp import Processes
from stages.training.loop import StepBatch
from stages.training.order import Picks, RecordOrder
from stages.training.target_lists import RankingBatch, TargetLists


@dataclass(frozen=True, slots=True)
class RankingSteps(Dataset[StepBatch]):
    """Every step of a training run, by (epoch, step): what this rank computes of it."""

    lists: TargetLists
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
            one = self._read(picks[:1], epoch)._replace(is_padding=True)
            return StepBatch([one], len(picks))
        batch = self._read(mine, epoch)
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

    def _read(self, picks: Picks, epoch: int) -> RankingBatch:
        found = Picks(self.samples[picks.sample], picks.record)
        return self.lists.batch(found, epoch, whole=self.whole)


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
