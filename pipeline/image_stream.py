"""Decoded images of shards for training: bounded memory, order a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from ltrp_core.seeding import random_permutation
from pipeline.shards import Shard, shard_identities
from pipeline.unit_runner import decoded_samples
from stages.protocols import BadSample, Progress, Sample

_KEEP_BYTES = 2 << 30
"""Decoded images up to this many bytes stay in memory; the others are decoded again every epoch."""


class ShardImages:
    """An `ImageStream` over tars: one window a shard, shards in a new order every epoch."""

    def __init__(self, shards: Sequence[Shard], progress: Progress) -> None:
        self.shards = shards
        self.bad: list[BadSample] = []
        self._kept: dict[str, list[Sample]] = {}
        self._kept_bytes = 0
        self._identities = shard_identities(shards, progress)
        self.num_images = 0
        with progress.task("read images", len(shards), "shards") as bar:
            for shard in shards:
                self.num_images += len(self._load(shard, self.bad))
                bar.advance(1)

    @property
    def num_bad(self) -> int:
        """Members that did not decode."""
        return len(self.bad)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """sha256 of every shard by name."""
        stamps = self._identities.values()
        return {"shards": {str(stamp["name"]): stamp["sha256"] for stamp in stamps}}

    def windows(self, epoch: int, seed: int) -> Iterator[Sequence[Sample]]:
        """Yields the samples of one shard after another; each sample once an epoch."""
        order = random_permutation(len(self.shards), seed=seed, key=str(epoch), purpose="shards")
        for number in order.tolist():
            samples = self._load(self.shards[number], [])
            if samples:
                yield samples

    def _load(self, shard: Shard, bad: list[BadSample]) -> list[Sample]:
        if shard.path in self._kept:
            return self._kept[shard.path]
        samples = list(decoded_samples(shard, bad))
        size = sum(sample.image.nbytes for sample in samples)
        if self._kept_bytes + size <= _KEEP_BYTES:
            self._kept[shard.path] = samples
            self._kept_bytes += size
        return samples
