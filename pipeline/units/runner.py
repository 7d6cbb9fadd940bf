"""Runs a stage shard by shard: plan, pool, log, summary. Shared by `score` and `select`."""

from __future__ import annotations

import functools
import os
import socket
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ltrp_core.errors import RequestError
from pipeline.faults import fault_point
from pipeline.inputs import Shard
from pipeline.inputs.image_choice import notes_on_choices
from pipeline.inputs.shards import with_image_ext, with_members
from pipeline.store.cache import Cache, but_views, create_cache
from pipeline.store.errors import RunMismatchError
from pipeline.store.manifest import UnitRow
from pipeline.store.run_file import begun_run, difference
from pipeline.store.run_log import RunLog, cpus_of_units, note_on_cpus, read_log
from pipeline.store.storage import open_storage
from pipeline.store.units import unit_name
from pipeline.units.options import ENOUGH_TO_JUDGE, ShardOptions, UnitOptions
from pipeline.units.shares import parse_share
from pipeline.units.work import NAMED, MakeStage, PendingUnit, UnitWork, WorkSettings
from pipeline.workers import Outcome, RunMetrics, WorkerPool
from stages.options import identity as identity_of
from stages.protocols import ArrayField, Bar, Progress, Summary

_MANIFEST_EVERY_S = 60.0
"""So that `status` of a long run need not read every receipt."""


@dataclass(kw_only=True, slots=True)
class CacheRunner:
    """Commits one unit per shard into the cache at `out`; complete ones are left alone."""

    out: str
    shards: Sequence[Shard]
    pool: WorkerPool
    progress: Progress
    options: ShardOptions = field(default_factory=UnitOptions)
    extends: Cache | None = None
    """A finished cache: only its units are made, of the very shards they were made from."""
    beside: Cache | None = None
    """A finished cache whose units are read beside the shards: each of the very shard it was made
    from. The samples then come with all their members."""

    def begun(self) -> Mapping[str, Any]:
        """Returns the identity of the run that `out` holds already; empty at the start."""
        return begun_run(open_storage(self.out))

    def slots(self) -> Collection[str]:
        """Returns what workers will be given: `cpu`, `cuda`, `auto` = whatever there is."""
        return self.pool.slots()

    def run(
        self,
        stage: str,
        make: MakeStage,
        *,
        identity: Mapping[str, Any],
        fields: Mapping[str, ArrayField],
        gpu_only: bool = False,
    ) -> Summary:
        """Runs `make(device)` on every pending shard, with `gpu_only` on GPUs alone.

        Input shards = done + skipped + failed + pending, disjoint.

        Raises:
            RunMismatchError: `out` holds another run, or units of shards that have changed.
            LockedError: another process is writing there.
        """
        identity = {**identity, **identity_of(self.options)}
        if self.extends is not None:
            _check_extends(self.extends, {"stage": stage, **identity})
        cache = create_cache(self.out, stage, identity)
        with cache.storage.lock():
            cache.clear_attempts()
            log = RunLog(cache.storage, cache.run_id)
            summary = Summary(stage=stage, output=cache.url)
            pending = self._pending(cache, summary, log)
            self._begin(log, stage)
            metrics = RunMetrics(stage, cache.run_id)
            run = _Run(summary, log, metrics, self.options, pending, skipped=summary.skipped)
            try:
                work = functools.partial(UnitWork, make, self._settings(cache, fields))
                with self.progress.task(stage, len(self.shards), "shards") as bar:
                    bar.advance(summary.skipped)
                    for outcome in self.pool.map(work, pending, gpu_only=gpu_only):
                        run.count(outcome, bar)
                        if outcome.error is None:
                            cache.add(outcome.result["row"])
                        if summary.stopped:
                            break
                        if time.monotonic() - run.manifest_at > _MANIFEST_EVERY_S:
                            run.manifest_at = time.monotonic()
                            cache.write_manifest()
                summary.notes += self.pool.notes
            finally:
                # Also on Ctrl-C: the manifest has what was committed, the log says how it went.
                fault_point("before_manifest")
                cache.clear_attempts()
                log.write("end", **run.totals())
                log.flush()
                _write_manifest(cache, summary)
                note = note_on_cpus(cpus_of_units(read_log(cache.storage), cache.rows))
                summary.notes += [note] if note and summary.done else []
                summary.notes += [log.problem] if log.problem else []
        run.close(self.pool.start_up_s)
        return summary

    def _begin(self, log: RunLog, stage: str) -> None:
        log.write(
            "start",
            stage=stage,
            host=socket.gethostname(),
            pid=os.getpid(),
            shards=[shard.name for shard in self.shards],
        )

    def _settings(self, cache: Cache, fields: Mapping[str, ArrayField]) -> WorkSettings:
        return WorkSettings(
            cache=cache.url,
            run_id=cache.run_id,
            store=str(cache.identity["store"]),
            fields=dict(fields),
            on_damage=self.options.on_damage,
            decode_threads=self.options.decode_threads,
        )

    def _pending(self, cache: Cache, summary: Summary, log: RunLog) -> list[PendingUnit]:
        shards = with_image_ext(self.shards, self.options.image_ext)
        units = [PendingUnit(shard=shard) for shard in shards]
        if self.extends is not None:
            units, left_out = _of_cache(self.extends, units)
            if left_out:
                summary.notes.append(f"{left_out} shard(s) are not in {self.extends.url}: left out")
        if self.beside is not None:
            units = _beside(self.beside, with_members([unit.shard for unit in units]))
        done = [unit for unit in units if unit.name in cache.rows]
        _check_unchanged(cache, done, self.progress, log)
        summary.skipped = len(done)
        return [unit for unit in units if unit.name not in cache.rows]


@dataclass(slots=True)
class _Run:
    """Counts what comes of the pending units."""

    summary: Summary
    log: RunLog
    metrics: RunMetrics
    options: ShardOptions
    pending: Sequence[PendingUnit]
    skipped: int
    started: float = field(default_factory=time.monotonic)
    manifest_at: float = field(default_factory=time.monotonic)
    retried: int = 0
    choices: Counter[tuple[str, str]] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    """The first bad images of the run, in words"""

    def count(self, outcome: Outcome, bar: Bar) -> None:
        unit, summary = outcome.item, self.summary
        facts = {
            "unit": unit.name,
            "shard": unit.shard.name,
            "attempts": outcome.attempts,
            "worker": outcome.worker,
        }
        self.retried += outcome.attempts - 1
        for lost in outcome.lost:
            self.log.write(
                "attempt",
                unit=unit.name,
                attempt=lost.attempt,
                worker=lost.worker,
                reason=lost.reason,
                time=round(lost.time, 3),
            )
        if outcome.error is None:
            row: UnitRow = outcome.result["row"]
            summary.done += 1
            summary.n_ok += row.n_ok
            summary.n_bad += row.n_bad
            self.choices.update(outcome.result["choices"])
            self.bad += outcome.result["bad"][: NAMED - len(self.bad)]
            seconds = outcome.result["seconds"]
            if row.damage is not None:
                summary.notes.append(f"salvaged {unit.shard.name}: {row.damage}")
            summary.notes += [f"{unit.shard.name}: {note}" for note in outcome.result["notes"]]
            stamp = {"stamp": unit.shard.stamp, "size": unit.shard.size}
            counts = {"n_ok": row.n_ok, "n_bad": row.n_bad}
            self.log.write(
                "done", **facts, **counts, **stamp, seconds=seconds, cpu=outcome.result["cpu"]
            )
            self.metrics.done(**counts, seconds=seconds)
        elif outcome.stop:
            summary.stopped = outcome.error
            self.log.write("stopped", **facts, reason=outcome.error)
        else:
            summary.failed[unit.shard.name] = f"{outcome.error}{_times(outcome.attempts)}"
            self.log.write("failed", **facts, reason=outcome.error)
            self.metrics.failed()
        self._check_bad()
        rate = summary.n_ok / max(time.monotonic() - self.started, 1e-9)
        bar.advance(1, **{"images/s": rate, "failed": float(len(summary.failed))})

    def _check_bad(self) -> None:
        summary, limit = self.summary, parse_share("--max-bad", self.options.max_bad)
        n_in = summary.n_ok + summary.n_bad
        if summary.n_bad > limit * max(n_in, ENOUGH_TO_JUDGE) and not summary.stopped:
            summary.stopped = (
                f"{summary.n_bad} of {n_in} images are bad, more than --max-bad "
                f"{self.options.max_bad}; errors.parquet of each unit says why"
            )

    def totals(self) -> dict[str, Any]:
        summary = self.summary
        return {
            "done": summary.done,
            "skipped": summary.skipped,
            "failed": len(summary.failed),
            "stopped": summary.stopped,
            "n_ok": summary.n_ok,
            "n_bad": summary.n_bad,
        }

    def close(self, start_up_s: float) -> None:
        summary = self.summary
        summary.pending = len(self.pending) - summary.done - len(summary.failed)
        summary.seconds = time.monotonic() - self.started
        working = max(summary.seconds - start_up_s, 1e-9)
        if summary.done:
            summary.rate = f"{summary.n_ok / working:.1f} images/s"
        summary.notes += notes_on_choices(self.choices)
        if self.bad:
            more = summary.n_bad - len(self.bad)
            others = f"; and {more} more: errors.parquet of each unit" if more else ""
            summary.notes.append(f"bad images: {'; '.join(self.bad)}{others}")
        if start_up_s > 1.0:
            summary.notes.append(f"{start_up_s:.1f} s of it to start the workers")
        if self.retried:
            summary.notes.append(f"{self.retried} attempt(s) failed and were made again")


def _times(attempts: int) -> str:
    return f" ({attempts} attempts)" if attempts > 1 else ""


def _write_manifest(cache: Cache, summary: Summary) -> None:
    try:
        cache.write_manifest()
    except OSError as error:
        # A run that a full disk has stopped says that, and not that the manifest is stale.
        if not summary.stopped:
            raise
        summary.notes.append(f"the manifest is not up to date: {error.strerror or error}")


def _check_extends(cache: Cache, identity: Mapping[str, Any]) -> None:
    """Checks a cache that views are appended to, before anything is written.

    Raises:
        RunMismatchError: more than the views differ: further ones are scored alike.
        DamagedUnitError: a unit of it is damaged: it would be left without these views.
    """
    cache.check_own()
    then, now = but_views(cache.identity), but_views(identity)
    if then != now:
        raise RunMismatchError(difference(cache.url, then, now))


def _of_cache(cache: Cache, units: Sequence[PendingUnit]) -> tuple[list[PendingUnit], int]:
    """Returns the units of `cache` with the content they must have, and how many others there are.

    Raises:
        RequestError: a unit's shard was not given.
    """
    by_name = {unit.name: unit for unit in units}
    missing = [row.shard for name, row in cache.rows.items() if name not in by_name]
    if missing:
        raise RequestError(
            f"--shards does not name {missing[0]} ({len(missing)} missing), which "
            f"{cache.url} was made from; views are appended to all of its units"
        )
    chosen = [
        PendingUnit(shard=by_name[name].shard, before=row) for name, row in cache.rows.items()
    ]
    return chosen, len(units) - len(chosen)


def _beside(cache: Cache, shards: Sequence[Shard]) -> list[PendingUnit]:
    """Returns the units to make, each with the unit of `cache` that is made from the same shard.

    Raises:
        RequestError: a shard has none, or one of a shard of another size.
    """
    units = {unit_name(shard.name): shard for shard in shards}
    missing = [shard for name, shard in units.items() if name not in cache.rows]
    if missing:
        stage = cache.identity.get("stage")
        raise RequestError(
            f"{missing[0].path} has no unit in {cache.url} ({len(missing)} such shard(s)); run "
            f"`{stage}` on it first, into the same folder and with the same --unit-size"
        )
    for name, shard in units.items():
        row = cache.rows[name]
        if shard.size != row.shard_size and row.damage is None:
            raise RequestError(
                f"{shard.path} is not what unit {name} of {cache.url} was made from "
                f"({row.shard_size} bytes then, {shard.size} now); run `{cache.identity['stage']}` "
                "again, into another --out, or bring the old shard back"
            )
    return [
        PendingUnit(
            shard=shard,
            before=cache.rows[name],
            made_before=f"unit {name} of {cache.url} was made of it",
        )
        for name, shard in units.items()
    ]


def _check_unchanged(
    cache: Cache, done: Sequence[PendingUnit], progress: Progress, log: RunLog
) -> None:
    """Raises RunMismatchError if a shard is not what its unit was made from.

    Its size and its stamp (times, ETag) tell; where they differ, its sha256. What was found so is
    logged: the next run need not read the shard again.
    """
    for unit in done:
        row = cache.rows[unit.name]
        if unit.shard.size != row.shard_size and row.damage is None:
            raise _changed(cache, unit, f"{row.shard_size} bytes then, {unit.shard.size} now")
    doubtful = _without_their_stamp(cache, done)
    if not doubtful:
        return
    with progress.task("hash shards", len(doubtful), "shards") as bar:
        for unit in doubtful:
            if _sha256(unit.shard) != cache.rows[unit.name].shard_sha256:
                raise _changed(cache, unit, "another content of the same size")
            shard = unit.shard
            log.write("unchanged", unit=unit.name, stamp=shard.stamp, size=shard.size)
            bar.advance(1)


def _without_their_stamp(cache: Cache, done: Sequence[PendingUnit]) -> list[PendingUnit]:
    """Returns those whose shard has another size or stamp than when it was last read whole."""
    shards = {unit.name: unit.shard for unit in done}
    unchanged: set[str] = set()
    # Compared as the log is read, not gathered first: there may be 100,000 units.
    for event in read_log(cache.storage):
        shard = shards.get(event.get("unit", ""))
        knows = event["event"] in ("done", "unchanged")
        if shard is None or not knows or not event.get("stamp"):
            continue
        same = (event.get("size"), event["stamp"]) == (shard.size, shard.stamp)
        (unchanged.add if same else unchanged.discard)(event["unit"])
    return [unit for unit in done if unit.name not in unchanged]


def _sha256(shard: Shard) -> str:
    reader = shard.open("salvage")
    for _ in reader:
        pass
    return str(reader.identity["sha256"])


def _changed(cache: Cache, unit: PendingUnit, how: str) -> RunMismatchError:
    return RunMismatchError(
        f"{unit.shard.path} is not what unit {unit.name} of {cache.url} was made from ({how}); "
        f"give another --out, bring the old shard back, or delete units/{unit.name}"
    )
