"""In which order records are trained on: a pure function of (seed, epoch), for any size.

An epoch shows every image once (the paper's, Sec. 3.3), by one of its V * P records, or by as many
as are asked for. Which one turns from epoch to epoch: none is seen again before all were seen.

Records are mixed across shards without holding the order of all: blocks of neighboring samples are
drawn in random order, so many at a time make a window, and a window's records are shuffled. What is
near in time is then near on the disk, which reads once what a window holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ltrp_core.seeding import random_bits, random_permutation

BLOCK = 256
"""Samples that lie side by side and are read at about the same time."""
WINDOW = 64
"""Blocks whose records are shuffled together, at most."""


@dataclass(frozen=True, slots=True)
class Picks:
    """The records of a step."""

    sample: NDArray[np.int64]
    """(b,) numbers of samples, from 0"""
    record: NDArray[np.int64]
    """(b,) record of each sample, from 0 to V * P - 1; view = record // P"""

    def __getitem__(self, part: slice) -> Picks:
        return Picks(self.sample[part], self.record[part])

    def __len__(self) -> int:
        return len(self.sample)


@dataclass(slots=True)
class RecordOrder:
    """The steps of every epoch; see the top of this file."""

    num_samples: int
    records_per_sample: int
    """V * P"""
    seen_per_epoch: int
    """Records of a sample that an epoch shows, at most V * P"""
    batch_size: int
    seed: int
    _window: tuple[tuple[int, int], Picks] | None = field(default=None, init=False)
    _windows: tuple[int, list[NDArray[np.int64]], NDArray[np.int64]] | None = field(
        default=None, init=False
    )

    @property
    def num_records(self) -> int:
        """Records an epoch."""
        return self.num_samples * self.seen_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """The last step of an epoch may be smaller."""
        return math.ceil(self.num_records / self.batch_size)

    def step(self, epoch: int, step: int) -> Picks:
        """Returns the records of one step, whichever was asked for before."""
        start = step * self.batch_size
        stop = min(start + self.batch_size, self.num_records)
        blocks, ends = self._window_blocks(epoch)
        parts = []
        window = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            first = int(ends[window - 1]) if window else 0
            picks = self._picks(epoch, window, blocks[window])
            end = min(stop, int(ends[window]))
            parts.append(picks[start - first : end - first])
            start, window = end, window + 1
        return Picks(
            np.concatenate([part.sample for part in parts]),
            np.concatenate([part.record for part in parts]),
        )

    def _window_blocks(self, epoch: int) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
        """Returns the blocks of each window of an epoch, and the records up to each one's end."""
        if self._windows is None or self._windows[0] != epoch:
            count = math.ceil(self.num_samples / BLOCK)
            order = random_permutation(count, seed=self.seed, key=str(epoch), purpose="blocks")
            # Of about one size: a last window of one block would be steps of one shard only.
            blocks = np.array_split(order, math.ceil(count / WINDOW))
            sizes = [np.minimum(BLOCK, self.num_samples - part * BLOCK).sum() for part in blocks]
            self._windows = (epoch, blocks, np.cumsum(sizes) * self.seen_per_epoch)
        return self._windows[1:]

    def _picks(self, epoch: int, window: int, blocks: NDArray[np.int64]) -> Picks:
        if self._window is None or self._window[0] != (epoch, window):
            sample = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
            sample = sample[sample < self.num_samples].repeat(self.seen_per_epoch)
            turn = epoch * self.seen_per_epoch + np.tile(
                np.arange(self.seen_per_epoch), len(sample) // self.seen_per_epoch
            )
            record = _records_of_turns(sample, turn, self.records_per_sample, self.seed)
            shuffled = random_permutation(
                len(sample), seed=self.seed, key=f"{epoch}:{window}", purpose="order"
            )
            self._window = ((epoch, window), Picks(sample[shuffled], record[shuffled]))
        return self._window[1]


def _records_of_turns(
    sample: NDArray[np.int64], turn: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """Returns which of its `count` records each sample shows in its `turn`-th turn, from 0.

    Any `count` turns in a row show each record once, in an order that differs from sample to
    sample: turn -> (a * turn + b) mod count, with `a` coprime to `count`. An order that were drawn
    anew after `count` turns could show one record twice in an epoch.
    """
    key = random_bits(2, seed=seed, key="", purpose="turns")
    a_bits = _mixed(sample.astype(np.uint64) ^ key[0])
    b_bits = _mixed(a_bits ^ key[1])
    coprime = np.array([a for a in range(1, count + 1) if math.gcd(a, count) == 1], dtype=np.int64)
    a = coprime[(a_bits % np.uint64(len(coprime))).astype(np.int64)]
    b = (b_bits % np.uint64(count)).astype(np.int64)
    record: NDArray[np.int64] = (a * (turn % count) + b) % count
    return record


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns 64 well-mixed bits of each number: SplitMix64."""
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed
