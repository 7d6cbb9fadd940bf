"""Steps of a training run, made ahead in other processes if asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ltrp_core.errors import RequestError
from stages.training.loop import StepBatch
from stages.training.order import RecordOrder


class Steps(Protocol):
    """Every step of a run, by (epoch, step); picklable. Parts of a step have `pin_memory()`."""

    @property
    def order(self) -> RecordOrder:
        """Which records are in which step."""
        ...

    def __getitem__(self, place: tuple[int, int]) -> StepBatch: ...


class Loader:
    """Goes through the steps in order, some of them made ahead by `processes` others."""

    def __init__(self, steps: Steps, epochs: int, *, processes: int, pin: bool) -> None:
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
        parts = [part.pin_memory() for part in self.batch.parts]
        return _Made(StepBatch(parts, self.batch.count))


@dataclass(frozen=True, slots=True)
class _MadeSteps(Dataset[_Made]):
    steps: Steps

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
