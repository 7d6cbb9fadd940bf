"""Batches of cached records for ranker training, made ahead in other processes if asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ltrp_core.errors import RequestError
from ltrp_core.seeding import random_bits
from stages.protocols import Records
from stages.ranks import Ranks
from stages.record_order import Picks, RecordOrder
from stages.training import StepBatch


class RankingBatch(NamedTuple):
    """Some records."""

    patches: Tensor
    """uint8 (b, n, 3p²), or (b, L, 3p²) for rankers with dense input"""
    visible: Tensor
    """int64 (b, n)"""
    score: Tensor
    """float32 (b, n)"""
    counts: bool = True
    """Whether it is trained on; False where a rank only keeps the others company."""


def read_batch(records: Records, picks: Picks, *, whole: bool) -> RankingBatch:
    """Returns some records as tensors; `whole` = all patches of their views."""
    visible, score = records.lists(picks.sample, picks.record)
    if whole:
        view = picks.record // int(records.run["partitions"])
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
    ranks: Ranks
    accumulate: int
    whole: bool

    def __getitem__(self, place: tuple[int, int]) -> StepBatch:
        epoch, step = place
        picks = self.order.step(epoch, step)
        # Ranks take turns, so that none has more than one record more than another.
        mine = picks[self.ranks.rank :: self.ranks.size]
        if not len(mine):
            # The other ranks wait for gradients of this one: some that count for nothing.
            one = self._read(picks[:1])._replace(counts=False)
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


class Loader:
    """Goes through the steps in order, some of them made ahead by `processes` others."""

    def __init__(self, steps: RankingSteps, epochs: int, *, processes: int, pin: bool) -> None:
        self.steps, self.epochs, self.processes, self.pin = steps, epochs, processes, pin
        self._next: tuple[int, int] | None = None
        self._iterator: Iterator[_Made] | None = None

    def __call__(self, epoch: int, step: int) -> Iterator[StepBatch]:
        """Yields the steps of `epoch` from `step` on; a call for what comes next costs nothing."""
        per_epoch = self.steps.order.steps_per_epoch
        if self._iterator is None or self._next != (epoch, step):
            self._iterator = iter(self._open(epoch, step))
        for number in range(step, per_epoch):
            made = next(self._iterator)
            if isinstance(made.batch, RequestError):
                self._iterator = None
                raise made.batch
            self._next = (epoch, number + 1) if number + 1 < per_epoch else (epoch + 1, 0)
            yield made.batch

    def _open(self, epoch: int, step: int) -> DataLoader[_Made]:
        ahead: dict[str, Any] = {}
        if self.processes:
            # Not forked: this process has threads (torch's, Ray's) and perhaps a GPU.
            ahead = {"multiprocessing_context": "forkserver", "prefetch_factor": 4}
        return DataLoader(
            _MadeSteps(self.steps),
            batch_size=None,
            sampler=_Places(epoch, step, self.epochs, self.steps.order.steps_per_epoch),
            num_workers=self.processes,
            pin_memory=self.pin,
            # Of its own: a loader draws from it, and training must not depend on loaders.
            generator=torch.Generator(),
            **ahead,
        )


@dataclass(frozen=True, slots=True)
class _Made:
    """A step on its way here, or why there is none.

    An exception that a loader process raises would arrive as its traceback.
    """

    batch: StepBatch | RequestError

    def pin_memory(self) -> _Made:
        """Called by the loader, which looks into no dataclass by itself."""
        if isinstance(self.batch, RequestError):
            return self
        parts = [
            RankingBatch(
                part.patches.pin_memory(),
                part.visible.pin_memory(),
                part.score.pin_memory(),
                part.counts,
            )
            for part in self.batch.parts
        ]
        return _Made(StepBatch(parts, self.batch.count))


@dataclass(frozen=True, slots=True)
class _MadeSteps(Dataset[_Made]):
    steps: RankingSteps

    def __getitem__(self, place: tuple[int, int]) -> _Made:
        try:
            return _Made(self.steps[place])
        except RequestError as error:
            return _Made(error)


@dataclass(frozen=True, slots=True)
class _Places(Sampler[tuple[int, int]]):
    epoch: int
    step: int
    epochs: int
    steps_per_epoch: int

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for epoch in range(self.epoch, self.epochs):
            for step in range(self.step if epoch == self.epoch else 0, self.steps_per_epoch):
                yield epoch, step

    def __len__(self) -> int:
        return (self.epochs - self.epoch) * self.steps_per_epoch - self.step
