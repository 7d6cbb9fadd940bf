"""Scores random samples again from the images and compares: the cache is what the method says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from ltrp_core.precision import needs_gpu
from ltrp_core.seeding import random_permutation
from pipeline.inputs import OnDamage, Shard
from pipeline.inputs.samples import SampleStream
from pipeline.inputs.shards import Member, ShardReader
from pipeline.store.cache import Cache
from pipeline.store.replay import match_shards
from stages.devices import resolve_device
from stages.protocols import Arrays, BadSample
from stages.score import ScoreConfig, UnitScorer

_TOLERANCE = {"float16": 2.0**-10, "float32": 1e-4}
"""Largest difference, as a share of the record's largest score: float16 rounds by half of it, and
another device or batch adds a rounding of its own."""
_ROUNDING = {"float32": 0.0, "tf32": 0.01, "fp16": 0.01, "bf16": 0.06}
"""What products of that precision add, on two devices together: twice what docs/speed.md measures
of bf16 against float32, and four times what rounding to the others does on eight photographs
(0.0014 and 0.0025, bf16 0.028)."""


@dataclass(slots=True)
class Comparison:
    """What came of it."""

    samples: int = 0
    records: int = 0
    largest: float = 0.0
    """Largest difference of a score, as a share of its record's largest score."""
    faults: list[str] = field(default_factory=list)
    """One line per sample that is not what was stored."""
    notes: set[str] = field(default_factory=set)
    """What else must be known of the comparison."""


def rescore(
    cache: Cache,
    shards: Sequence[Shard],
    mae: str,
    share: float,
    *,
    seed: int = 0,
    device: str = "auto",
) -> Comparison:
    """Scores a share of the samples again, chosen by `seed`, and compares views and scores.

    Appended views are compared too, by the options they were made with; on a CPU those that were
    scored in a precision of GPUs with float32.

    Raises:
        RequestError: other weights than the cache's, shards that do not fit, or a cache that holds
            no scores.
    """
    if cache.identity.get("stage") != "score":
        raise RequestError(f"{cache.url} holds no scores; --rescore is for caches of `score`")
    chosen = choose(cache, share, seed)
    by_unit = match_shards(cache, shards, list(chosen))
    result = Comparison()
    for part in (cache, *cache.appended):
        stored_by = _config(part, mae, device)
        precision = stored_by.precision
        scorer = UnitScorer(_computable(stored_by))
        if scorer.precision != precision:
            result.notes.add(
                f"scored in {precision}, which this device does not compute: compared with "
                f"{scorer.precision}, up to {_ROUNDING[precision]:.0%} of a record's largest score"
            )
        found = scorer.mae.source.sha256
        if found != part.identity["mae_sha256"]:
            raise RequestError(
                f"--mae {mae} has sha256 {found[:12]}..., {part.url} was scored with "
                f"{str(part.identity['mae_sha256'])[:12]}...; pass the same weights"
            )
        for unit, rows in chosen.items():
            stored = part.read_own(unit)
            for row, again in _again(part, unit, by_unit[unit], rows, stored, scorer):
                name = f"{unit}: {stored['key'][row]!r}"
                allowed = _TOLERANCE[str(stored["score"].dtype)] + _ROUNDING[precision]
                _compare(result, name, row, stored, again, allowed)
    result.samples = sum(map(len, chosen.values()))
    return result


def choose(cache: Cache, share: float, seed: int) -> dict[str, list[int]]:
    """Returns rows by unit: `share` of all samples, rounded up, a function of cache and seed."""
    units = cache.units
    counts = [cache.rows[unit].n_ok for unit in units]
    total = sum(counts)
    order = random_permutation(total, seed=seed, key=cache.run_id, purpose="rescore")
    picked = np.sort(np.asarray(order)[: math.ceil(share * total)])
    starts = np.concatenate([[0], np.cumsum(counts)])
    owner = np.searchsorted(starts, picked, side="right") - 1
    rows: dict[str, list[int]] = {}
    for number, position in zip(owner.tolist(), picked.tolist(), strict=True):
        rows.setdefault(units[number], []).append(position - int(starts[number]))
    return rows


def _config(cache: Cache, mae: str, device: str) -> ScoreConfig:
    known = {item.name for item in dataclasses.fields(ScoreConfig)}
    options: Mapping[str, Any] = {k: v for k, v in cache.identity.items() if k in known}
    options = {"precision": "float32", **options}  # what the caches before that option are
    return ScoreConfig(**{**options, "mae": mae, "device": device, "score_dtype": "float32"})


def _computable(config: ScoreConfig) -> ScoreConfig:
    """Returns a configuration that the device can compute: a CPU in float32 what needs a GPU."""
    if needs_gpu(config.precision) and resolve_device(config.device).type == "cpu":
        return dataclasses.replace(config, precision="float32")
    return config


def _again(
    cache: Cache,
    unit: str,
    shard: Shard,
    rows: Sequence[int],
    stored: Arrays,
    scorer: UnitScorer,
) -> Iterator[tuple[int, Arrays]]:
    """Yields (row, what is scored now) for the rows of a unit, in one pass over its shard."""
    wanted = {str(stored["key"][row]): row for row in rows}
    known = cache.rows[unit]
    on_damage: OnDamage = "strict" if known.damage is None else "salvage"

    some = _SomeOf(shard, frozenset(wanted))
    with SampleStream(some, on_damage=on_damage, prepare=scorer.prepare) as stream:
        samples = list(stream)
    if stream.identity["sha256"] != known.shard_sha256 or len(samples) != len(wanted):
        raise RequestError(
            f"{shard.path} is not what unit {unit} was scored from (another sha256); "
            "pass the shards that were scored"
        )
    for sample in samples:
        (block,) = scorer.batches([sample])
        yield wanted[sample.rows["key"]], block


@dataclass(frozen=True, slots=True)
class _SomeOf:
    """A shard of which only some images are decoded; all its bytes are read, for the sha256."""

    shard: Shard
    keys: frozenset[str]

    @property
    def name(self) -> str:
        return self.shard.name

    @property
    def path(self) -> str:
        return self.shard.path

    @property
    def size(self) -> int:
        return self.shard.size

    @property
    def stamp(self) -> str:
        return self.shard.stamp

    def open(self, on_damage: OnDamage = "strict") -> _SomeMembers:
        return _SomeMembers(self.shard.open(on_damage), self.keys)


class _SomeMembers:
    def __init__(self, reader: ShardReader, keys: frozenset[str]) -> None:
        self._reader, self._keys = reader, keys
        self.identity: dict[str, Any] = {}
        self.left_out: list[BadSample] = []
        self.damage: str | None = None
        self.seconds = 0.0
        self.choice = reader.choice

    def __iter__(self) -> Iterator[Member]:
        yield from (member for member in self._reader if member.key in self._keys)
        self.identity, self.left_out = self._reader.identity, self._reader.left_out
        self.damage, self.seconds = self._reader.damage, self._reader.seconds


def _compare(
    result: Comparison, name: str, row: int, stored: Arrays, again: Arrays, allowed: float
) -> None:
    for array in ("size", "crop", "flip", "visible"):
        if not np.array_equal(stored[array][row], again[array][0]):
            result.faults.append(f"{name}: {array} is not what the seed gives")
            return
    old, new = stored["score"][row].astype(np.float64), again["score"][0].astype(np.float64)
    scale = np.abs(new).max(axis=-1, keepdims=True)
    difference: NDArray[np.float64] = np.abs(old - new) / np.where(scale == 0, 1.0, scale)
    # NaN compares as neither larger nor smaller: a stored NaN would pass.
    difference = np.nan_to_num(difference, nan=np.inf)
    result.records += int(np.prod(old.shape[:-1]))
    result.largest = max(result.largest, float(difference.max()))
    if difference.max() > allowed:
        view, partition, _ = np.unravel_index(int(difference.argmax()), difference.shape)
        result.faults.append(
            f"{name}: a score of view {view}, partition {partition} differs by "
            f"{difference.max():.2%} of the largest, more than {allowed:.2%}"
        )
