"""Cached records joined by key with the views they were scored on, replayed from the shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from ltrp_core.seeding import random_permutation
from ltrp_core.views import render_view
from pipeline.shards import Shard, shard_identities
from pipeline.store.cache import Cache
from pipeline.unit_runner import decoded_samples
from stages.protocols import Arrays, Progress, RankedView
from stages.records import recorded_view

_KEEP_BYTES = 2 << 30
"""Rendered views up to this many bytes stay in memory; others are rendered every epoch."""


class CachedRecords:
    """A `RecordStream` over a score cache: one window a unit, units in a new order every epoch."""

    def __init__(self, cache: Cache, shards: Sequence[Shard], progress: Progress) -> None:
        if cache.run.get("stage") != "score":
            raise RequestError(
                f"{cache.path} is a {cache.run.get('stage')!r} cache; "
                "pass the --out folder of `ltrp-pipeline score`"
            )
        if not cache.units:
            raise RequestError(
                f"{cache.path} has no complete unit; run `ltrp-pipeline score` first"
            )
        self.cache = cache
        self._shards = _match_shards(cache, shards, progress)
        self._keys = {unit: tuple(cache.read(unit)["key"].tolist()) for unit in cache.units}
        self._kept: dict[str, NDArray[np.uint8]] = {}
        self._kept_bytes = 0

    @property
    def run(self) -> Mapping[str, Any]:
        """Identity of the cache."""
        return self.cache.run

    @property
    def keys(self) -> Sequence[str]:
        """Keys of all samples, sorted; a key that stands in two units is an error.

        Raises:
            RequestError: a key stands in two units.
        """
        keys = sorted(key for unit in self._keys.values() for key in unit)
        for first, second in itertools.pairwise(keys):
            if first == second:
                raise RequestError(
                    f"key {first!r} stands in two units of {self.cache.path}; a held-out image "
                    "could be trained on. Pack the images into shards with unique keys"
                )
        return keys

    @property
    def records_per_key(self) -> int:
        """V * P."""
        return int(self.run["views"]) * int(self.run["partitions"])

    def windows(
        self, epoch: int, seed: int, keys: frozenset[str]
    ) -> Iterator[Sequence[RankedView]]:
        """Yields the records of one unit after another; each record of `keys` once an epoch."""
        units = self.cache.units
        order = random_permutation(len(units), seed=seed, key=str(epoch), purpose="units")
        for number in order.tolist():
            unit = units[number]
            arrays = self.cache.read(unit)
            pixels = self._pixels(unit, arrays)
            window = [
                RankedView(
                    key=key,
                    pixels=pixels[row, view],
                    visible=arrays["visible"][row, view, partition].astype(np.int64),
                    score=arrays["score"][row, view, partition].astype(np.float32),
                )
                for row, key in enumerate(self._keys[unit])
                if key in keys
                for view in range(int(self.run["views"]))
                for partition in range(int(self.run["partitions"]))
            ]
            if window:
                yield window

    def _pixels(self, unit: str, arrays: Arrays) -> NDArray[np.uint8]:
        """Returns the recorded views (N, V, 3, S, S) of a unit."""
        if unit in self._kept:
            return self._kept[unit]
        pixels = replay_views(self.cache, unit, arrays, self._shards[unit])
        if self._kept_bytes + pixels.nbytes <= _KEEP_BYTES:
            self._kept[unit] = pixels
            self._kept_bytes += pixels.nbytes
        return pixels


def replay_views(cache: Cache, unit: str, arrays: Arrays, shard: Shard) -> NDArray[np.uint8]:
    """Returns the recorded views uint8 (N, V, 3, S, S) of a unit, joined with the shard by key.

    Raises:
        RequestError: a scored key is not in the shard.
    """
    size = int(cache.run["image_size"])
    rows = {key: row for row, key in enumerate(arrays["key"].tolist())}
    views = arrays["crop"].shape[1]
    pixels = np.empty((len(rows), views, 3, size, size), dtype=np.uint8)
    missing = set(rows)
    for sample in decoded_samples(shard, []):
        row = rows.get(sample.key)
        if row is None:
            continue
        missing.discard(sample.key)
        for number in range(views):
            view = recorded_view(arrays, row, number)
            pixels[row, number] = render_view(sample.image, view, size).numpy()
    if missing:
        raise RequestError(
            f"unit {unit} scored {sorted(missing)[0]!r} (and {len(missing) - 1} more) that is not "
            f"in {shard.path}; pass the shards that were scored"
        )
    return pixels


def _match_shards(cache: Cache, shards: Sequence[Shard], progress: Progress) -> dict[str, Shard]:
    """Returns the shard of every unit, matched by content."""
    identities = shard_identities(shards, progress)
    by_hash = {str(identities[shard.path]["sha256"]): shard for shard in shards}
    matched = {}
    for unit, receipt in cache.receipts.items():
        sha256 = str(receipt.input["sha256"])
        if sha256 not in by_hash:
            raise RequestError(
                f"no shard given is the one unit {unit} was scored from ({receipt.input['name']}, "
                f"sha256 {sha256[:12]}...); pass it with --shards, unchanged"
            )
        matched[unit] = by_hash[sha256]
    return matched
