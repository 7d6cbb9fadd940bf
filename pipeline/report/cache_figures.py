"""What a cache says of itself: its scores, how fast it was made, where the time went, what failed.

Counts come from the receipts, time from the log; scores are read of some units only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.inspection.status import read_status
from pipeline.store.cache import Cache
from stages.types import SelectRun, score_name

_UNITS_READ = 16
"""Of the units, evenly spread: a cache of millions of images is described in seconds."""
_EXAMPLES = 3
_BINS = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorKind:
    """One reason for which images are not in the cache."""

    reason: str
    count: int
    examples: Sequence[tuple[str, str]]
    """(key, message) of some"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreFigures:
    """How scores are distributed."""

    name: str
    counts: NDArray[np.int64]
    """(bins,)"""
    edges: NDArray[np.float64]
    """(bins + 1,); evenly spaced, or so in their logarithm if `is_log`"""
    is_log: bool
    quartiles: tuple[float, float, float, float, float]
    """least, quarter, half, three quarters, most"""
    equal: float
    """Share of neighbors in the order of a record whose stored scores are equal"""
    num_scores: int
    num_units: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheFigures:
    """One cache of `score` or `select`."""

    stage: str
    name: str
    """Last part of its path"""
    num_units: int
    n_ok: int
    n_bad: int
    num_bytes: int
    images_per_s: float | None
    """Of all workers together, from the start to the last unit; None if the log is gone"""
    workers: Mapping[str, float]
    """images/s by host and device"""
    seconds: Mapping[str, float]
    """Of the workers' own time: waiting for images, in the model, writing"""
    ahead: Mapping[str, float]
    """Of threads beside it: reading, decoding"""
    errors: Sequence[ErrorKind]
    failed: Sequence[tuple[str, str]]
    """(shard, reason)"""
    scores: ScoreFigures | None
    """None if no unit holds any"""


def read_cache_figures(cache: Cache) -> CacheFigures:
    """Returns what a cache says of itself.

    Raises:
        DamagedUnitError: a unit that is read fails a checksum.
    """
    status = read_status(cache)
    return CacheFigures(
        stage=status.stage,
        name=cache.url.rstrip("/").rsplit("/", 1)[-1],
        num_units=len(cache.rows),
        n_ok=status.n_ok,
        n_bad=status.n_bad,
        num_bytes=status.bytes,
        images_per_s=status.overall_images_per_s,
        workers=status.workers,
        seconds={name: status.seconds[name] for name in ("wait", "model", "write")},
        ahead={name: status.seconds[name] for name in ("read", "decode")},
        errors=_errors(cache, status.reasons),
        failed=[(s.shard, s.reason) for s in status.shards if s.state == "failed"],
        scores=_scores(cache),
    )


def score_figures(name: str, records: Sequence[NDArray[np.floating]]) -> ScoreFigures | None:
    """Returns how the scores of some units are distributed.

    Args:
        name: what they are.
        records: (..., n) of each unit, n = the scores of a record.
    """
    ordered = [np.sort(unit.astype(np.float64), axis=-1) for unit in records if unit.size]
    if not ordered:
        return None
    values = np.concatenate([unit.ravel() for unit in ordered])
    ties = sum(int((unit[..., 1:] == unit[..., :-1]).sum()) for unit in ordered)
    pairs = sum(unit[..., 1:].size for unit in ordered)
    # The few that are far out would leave one bar: they are counted in the outer bars.
    low, high = np.quantile(values, [0.001, 0.999], method="nearest").tolist()
    is_log = low > 0 and high / low > 20
    bounds = (np.log(low), np.log(high)) if is_log else (low, high)
    counts, edges = np.histogram(
        np.clip(np.log(values.clip(low)) if is_log else values, *bounds), bins=_BINS, range=bounds
    )
    least, quarter, half, three, most = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return ScoreFigures(
        name=name,
        counts=counts,
        edges=np.exp(edges) if is_log else edges,
        is_log=is_log,
        quartiles=(least, quarter, half, three, most),
        equal=ties / pairs if pairs else 0.0,
        num_scores=len(values),
        num_units=len(ordered),
    )


def _scores(cache: Cache) -> ScoreFigures | None:
    units = cache.units
    some = [units[i * len(units) // _UNITS_READ] for i in range(_UNITS_READ)]
    name, title = score_name(cache.run), "pseudo-score"
    if cache.run.get("stage") == "select":
        title = f"{SelectRun.of(cache.run, cache.url).label} score"
    read = (
        cache.read(unit, [name])
        for unit in (dict.fromkeys(some) if len(units) > _UNITS_READ else units)
    )
    return score_figures(title, [arrays[name] for arrays in read if name in arrays])


def _errors(cache: Cache, reasons: Mapping[str, int]) -> list[ErrorKind]:
    examples: dict[str, list[tuple[str, str]]] = {reason: [] for reason in reasons}
    missing = Counter({reason: min(count, _EXAMPLES) for reason, count in reasons.items()})
    for unit, row in cache.rows.items():
        if not +missing:
            break
        if not row.n_bad:
            continue
        for entry in cache.errors(unit):
            if missing[entry.reason] > 0:
                missing[entry.reason] -= 1
                examples[entry.reason].append((entry.key, entry.message))
    return [
        ErrorKind(reason=reason, count=count, examples=examples[reason])
        for reason, count in reasons.items()
    ]
