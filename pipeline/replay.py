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
from pipeline.inputs import OnDamage, Shard
from pipeline.inputs.samples import SampleStream
from pipeline.store.cache import Cache
from pipeline.store.units import unit_name
from stages.protocols import Arrays, RankedView, Sample
from stages.records import recorded_view

_KEEP_BYTES = 2 << 30
"""Rendered views up to this many bytes stay in memory; others are rendered every epoch."""


class CachedRecords:
    """A `RecordStream` over a score cache: one window a unit, units in a new order every epoch."""

    def __init__(self, cache: Cache, shards: Sequence[Shard]) -> None:
        if cache.run.get("stage") != "score":
            raise RequestError(
                f"{cache.url} is a {cache.run.get('stage')!r} cache; "
                "pass the --out folder of `ltrp-pipeline score`"
            )
        if not cache.units:
            raise RequestError(f"{cache.url} has no complete unit; run `ltrp-pipeline score` first")
        self.cache = cache
        self._shards = match_shards(cache, shards)
        self._keys = {
            unit: tuple(cache.read(unit, ["key"])["key"].tolist()) for unit in cache.units
        }
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
                    f"key {first!r} stands in two units of {self.cache.url}; a held-out image "
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
            arrays = self.cache.read(unit, ["crop", "flip", "visible", "score"])
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
        RequestError: the shard is not the one that was scored.
    """
    size = int(cache.run["image_size"])
    rows = {key: row for row, key in enumerate(arrays["key"].tolist())}
    views = arrays["crop"].shape[1]
    pixels = np.empty((len(rows), views, 3, size, size), dtype=np.uint8)

    def render(sample: Sample) -> str:
        row = rows.get(sample.key)
        for number in range(views if row is not None else 0):
            view = recorded_view(arrays, rows[sample.key], number)
            pixels[rows[sample.key], number] = render_view(sample.image, view, size).numpy()
        return sample.key

    known = cache.rows[unit]
    on_damage: OnDamage = "strict" if known.damage is None else "salvage"
    with SampleStream(shard, on_damage=on_damage, prepare=render, threads=0) as stream:
        missing = set(rows).difference(stream)
    if missing:
        raise RequestError(
            f"unit {unit} scored {min(missing)!r} (and {len(missing) - 1} more) that is not "
            f"in {shard.path}; pass the shards that were scored"
        )
    if stream.identity["sha256"] != known.shard_sha256:
        raise RequestError(
            f"{shard.path} changed since unit {unit} was scored (another sha256); "
            "pass the shards that were scored, or score these"
        )
    return pixels


def match_shards(
    cache: Cache, shards: Sequence[Shard], units: Sequence[str] | None = None
) -> dict[str, Shard]:
    """Returns the shard of every unit, by name and size; its content is checked when it is read.

    Args:
        units: only of these; all if omitted.

    Raises:
        RequestError: a unit's shard is not among `shards`, or has another size.
    """
    by_unit = {unit_name(shard.name): shard for shard in shards}
    matched = {}
    for unit in cache.units if units is None else units:
        row, shard = cache.rows[unit], by_unit.get(unit)
        if shard is None or shard.size != row.shard_size:
            found = "" if shard is None else f"; {shard.path} has {shard.size} bytes"
            raise RequestError(
                f"no shard given is the one unit {unit} was scored from ({row.shard}, "
                f"{row.shard_size} bytes{found}); pass it with --shards, unchanged"
            )
        matched[unit] = shard
    return matched
