"""Decoded images of shards for training: bounded memory, order a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from ltrp_core.errors import RequestError
from ltrp_core.seeding import random_permutation
from pipeline.inputs import Shard
from pipeline.inputs.samples import SampleStream
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
        self._sha256: dict[str, str] = {}
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
        return {"shards": dict(self._sha256)}

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
        with SampleStream(shard, on_damage="strict", prepare=_as_it_is, threads=0) as stream:
            samples = list(stream)
        bad += stream.bad
        sha256 = str(stream.identity["sha256"])
        if self._sha256.setdefault(shard.name, sha256) != sha256:
            raise RequestError(f"{shard.path} changed while it was trained on; start again")
        size = sum(sample.image.nbytes for sample in samples)
        if self._kept_bytes + size <= _KEEP_BYTES:
            self._kept[shard.path] = samples
            self._kept_bytes += size
        return samples


def _as_it_is(sample: Sample) -> Sample:
    return sample
