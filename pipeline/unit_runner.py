"""Runs a stage shard by shard: plan, pool, commit, summary. Shared by `score` and `select`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.images import ImageError, decode_image
from pipeline.shards import Shard, read_members, shard_identities
from pipeline.store.cache import Cache, create_cache
from pipeline.store.lock import folder_lock
from pipeline.store.units import commit_unit, unit_name
from pipeline.workers import WorkerPool
from stages.protocols import ArrayField, BadSample, Progress, Sample, Summary, UnitStage


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheRunner:
    """Commits one unit a shard into the cache at `out`; complete ones are left alone."""

    out: Path
    shards: Sequence[Shard]
    pool: WorkerPool
    progress: Progress

    def run(
        self,
        stage: str,
        make: Callable[[], UnitStage],
        *,
        identity: Mapping[str, Any],
        fields: Mapping[str, ArrayField],
    ) -> Summary:
        """Runs `make()` on every pending shard; input shards = done + skipped + failed.

        Raises:
            RunMismatchError: `out` holds another run.
            LockedError: another process is writing there.
        """
        started = time.monotonic()
        cache = create_cache(self.out, stage, identity)
        summary = Summary(stage=stage, output=str(cache.path))
        with folder_lock(cache.path):
            cache.prepare()
            identities = shard_identities(self.shards, self.progress)
            pending = self._pending(cache, identities, summary)
            work = functools.partial(_UnitWork, make, cache.path, cache.run_id, dict(fields))
            with self.progress.task(stage, len(self.shards), "shards") as bar:
                bar.advance(summary.skipped)
                for outcome in self.pool.map(work, pending):
                    name = Path(outcome.item.shard.path).name
                    if outcome.error is None:
                        summary.done += 1
                        summary.n_ok += outcome.result["n_ok"]
                        summary.n_bad += outcome.result["n_bad"]
                    else:
                        summary.failed[name] = outcome.error
                    rate = summary.n_ok / max(time.monotonic() - started, 1e-9)
                    bar.advance(1, **{"images/s": rate, "failed": float(len(summary.failed))})
            cache.write_manifest()
        summary.seconds = time.monotonic() - started
        if summary.done:
            summary.rate = f"{summary.n_ok / summary.seconds:.1f} images/s"
        return summary

    def _pending(
        self, cache: Cache, identities: Mapping[str, Mapping[str, Any]], summary: Summary
    ) -> list[_PendingUnit]:
        units = [_PendingUnit(shard, identities[shard.path]) for shard in self.shards]
        done = set(cache.units)
        pending = [unit for unit in units if unit.name not in done]
        summary.skipped = len(units) - len(pending)
        return pending


@dataclass(frozen=True, slots=True)
class _PendingUnit:
    """What a worker is sent: one shard, and what it was when the run began."""

    shard: Shard
    identity: Mapping[str, Any]

    @property
    def name(self) -> str:
        return unit_name(self.shard.stem, str(self.identity["sha256"]))


class _UnitWork:
    """One worker's state: the stage (its model), and how a shard becomes a unit."""

    def __init__(
        self,
        make: Callable[[], UnitStage],
        cache: Path,
        run_id: str,
        fields: Mapping[str, ArrayField],
    ) -> None:
        self.stage = make()
        self.cache, self.run_id, self.fields = cache, run_id, fields

    def __call__(self, unit: _PendingUnit) -> dict[str, Any]:
        started = time.monotonic()
        bad: list[BadSample] = []
        arrays = self.stage(decoded_samples(unit.shard, bad))
        for name, values in arrays.items():
            if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
                raise RuntimeError(
                    f"{name} of shard {unit.shard.path} is not finite; are the weights damaged?"
                )
        receipt = commit_unit(
            self.cache,
            unit.name,
            arrays=arrays,
            fields=self.fields,
            bad=bad,
            facts={
                "run_id": self.run_id,
                "input": dict(unit.identity),
                "seconds": round(time.monotonic() - started, 3),
            },
        )
        return {"n_ok": receipt.n_ok, "n_bad": receipt.n_bad}


def decoded_samples(shard: Shard, bad: list[BadSample]) -> Iterator[Sample]:
    """Yields the samples of a shard that decode; appends the others to `bad`.

    Raises:
        DamagedShardError: the tar is not whole.
    """
    for member in read_members(shard):
        try:
            if not member.is_regular:
                raise ImageError("not_a_file", f"{member.name!r} is a link, device or sparse file")
            yield Sample(member.key, decode_image(member.data))
        except ImageError as error:
            bad.append(BadSample(member.key, member.offset, error.reason, str(error)))
