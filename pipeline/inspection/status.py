"""How far a run is, what failed and where the time goes: from names, the manifest and the log.

Receipts are read, but not files' sizes; of a cache of many units only the receipts of those that
the manifest does not have yet, so that 100,000 are looked at in seconds. `verify` is what checks.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ltrp_core.errors import DamagedFileError
from pipeline.console.terminal import printable
from pipeline.store.cache import Cache
from pipeline.store.manifest import MANIFEST, UnitRow, read_manifest
from pipeline.store.receipts import RECEIPT
from pipeline.store.run_log import cpus_of_units, note_on_cpus, read_log
from pipeline.store.storage import UNITS
from pipeline.store.units import receipt_problem, unit_name

STEPS = ("read", "decode", "wait", "model", "write")
_RECENT_S = 300.0


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One shard of the newest run."""

    shard: str
    state: str
    """done, failed or pending"""
    attempts: int = 0
    images: int = 0
    images_per_s: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    worker: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """Shards = done + failed + pending, disjoint."""

    url: str
    stage: str
    run_id: str
    writing: str
    """Who is writing now; empty if nobody is."""
    shards: tuple[ShardStatus, ...]
    others: int
    """Complete units of shards that the newest run was not given."""
    n_ok: int
    n_bad: int
    reasons: Mapping[str, int]
    bytes: int
    retried: int
    """Shards that took more than one attempt"""
    images_per_s: float | None
    """Of all workers together: now if a driver is writing, else when the last one ended."""
    overall_images_per_s: float | None
    """Of all workers together, over all drivers from their start to their last unit"""
    seconds: Mapping[str, float]
    workers: Mapping[str, float]
    """images/s by host:device, all its processes together"""
    eta_s: float | None
    appended: tuple[str, ...]
    cpus: Mapping[str, int]
    """Units by the kind of CPU that made them, as far as it is known"""
    problems: tuple[str, ...]
    """What is wrong with units that were done, and what was not looked at"""

    def count(self, state: str) -> int:
        """Returns the shards in a state."""
        return sum(shard.state == state for shard in self.shards)


def read_status(cache: Cache, *, now: float | None = None) -> Status:
    """Returns where a cache stands.

    Args:
        now: seconds since the epoch; the present if omitted.
    """
    now = time.time() if now is None else now
    problems: list[str] = []
    rows = _rows(cache, problems)
    events = list(read_log(cache.storage))
    given = next((e["shards"] for e in reversed(events) if e["event"] == "start"), None)
    names = given if given is not None else [row.shard for row in rows.values()]
    newest = {e["unit"]: e for e in events if e["event"] in ("done", "failed")}
    units = {name: unit_name(name) for name in names}
    shards = tuple(_shard(name, unit, rows, newest) for name, unit in units.items())
    done = [e for e in events if e["event"] == "done"]
    writing = _writer(cache)
    drivers = _drivers(events)
    rate = _rate(*drivers[-1], now if writing else None) if drivers else None
    pending = [shard for shard in shards if shard.state == "pending"]
    # As the rate counts them: n_ok, not what was in the shards.
    a_shard = sum(row.n_ok for row in rows.values()) / len(rows) if rows else None
    known = rate is not None and a_shard is not None and bool(writing)
    return Status(
        url=cache.url,
        stage=str(cache.identity["stage"]),
        run_id=cache.run_id,
        writing=writing,
        shards=shards,
        others=len(set(rows) - set(units.values())),
        n_ok=sum(row.n_ok for row in rows.values()),
        n_bad=sum(row.n_bad for row in rows.values()),
        reasons=_reasons(rows.values()),
        bytes=sum(row.bytes for row in rows.values()),
        retried=sum(shard.attempts > 1 for shard in shards),
        images_per_s=rate,
        overall_images_per_s=_overall(drivers),
        seconds={name: sum(e["seconds"].get(name, 0.0) for e in done) for name in STEPS},
        workers=_workers(done),
        eta_s=len(pending) * a_shard / rate if known and rate and a_shard else None,
        appended=tuple(
            f"{part.url.rsplit('/', 1)[-1]}: {part.identity['views']} view(s), "
            f"{len(_rows(part, problems))} of {len(rows)} units"
            for part in cache.parts
        ),
        cpus=cpus_of_units(events, rows),
        problems=tuple(problems),
    )


_MOST_RECEIPTS = 4096
"""Of a cache with more units only those are read that the manifest does not have."""


def _rows(cache: Cache, problems: list[str]) -> dict[str, UnitRow]:
    """Returns the rows of the units that are there; adds what is wrong to `problems`."""
    there = cache.storage.names(UNITS)
    known: dict[str, UnitRow] = {}
    try:
        known = {row.unit: row for row in read_manifest(cache.storage)}
    except DamagedFileError as error:
        problems.append(f"{error}; the next run rebuilds it")
    for unit in sorted(set(known) - set(there)):
        problems.append(f"{unit}: {MANIFEST} lists it, and it is not there")
    rows: dict[str, UnitRow] = {}
    if len(there) > _MOST_RECEIPTS:
        rows = {unit: known[unit] for unit in there if unit in known}
        problems.append(f"{len(rows)} units as {MANIFEST} lists them; `verify` reads them")
    new = {f"{UNITS}/{unit}/{RECEIPT}": unit for unit in there if unit not in rows}
    found = cache.storage.read_many(new)
    for name, unit in new.items():
        if name not in found:  # an attempt may be going on, unless it was done
            problems += [f"{unit}: {RECEIPT} is missing"] if unit in known else []
            continue
        content = found[name]
        problem, receipt = receipt_problem(unit, content, run_id=cache.run_id)
        if problem is None and receipt is not None:
            rows[unit] = UnitRow.of(receipt)
        else:
            problems.append(f"{unit}: {problem}")
    return rows


def _shard(
    name: str, unit: str, rows: Mapping[str, UnitRow], newest: Mapping[str, Any]
) -> ShardStatus:
    event = newest.get(unit, {})
    if unit in rows:
        row = rows[unit]
        seconds = event.get("seconds", {}) if event.get("event") == "done" else {}
        total = seconds.get("total")
        return ShardStatus(
            shard=name,
            state="done",
            attempts=event.get("attempts", 1),
            images=row.n_ok,
            images_per_s=round(row.n_ok / total, 2) if total else None,
            seconds=seconds,
            worker=event.get("worker", ""),
        )
    if event.get("event") == "failed":
        return ShardStatus(
            name, "failed", event["attempts"], worker=event["worker"], reason=event["reason"]
        )
    return ShardStatus(name, "pending")


def _drivers(events: Iterable[dict[str, Any]]) -> list[tuple[float, list[dict[str, Any]]]]:
    """Returns (start, done events) of every driver that has committed a unit, oldest first."""
    drivers: list[tuple[float, list[dict[str, Any]]]] = []
    for event in events:
        if event["event"] == "start":
            drivers.append((event["time"], []))
        elif event["event"] == "done" and drivers:
            drivers[-1][1].append(event)
    return [(start, done) for start, done in drivers if done]


def _rate(start: float, done: list[dict[str, Any]], now: float | None) -> float:
    """Returns the images/s of one driver over its last minutes, until `now` or its last unit.

    The window is a whole number of units long, of the longest there: of many workers with long
    units only few end in five minutes, and what they have begun before must not count as idle.
    """
    end = max(event["time"] for event in done)
    longest = max(e["seconds"]["total"] for e in done if e["time"] > end - _RECENT_S)
    window = longest * math.ceil(_RECENT_S / longest) if longest else _RECENT_S
    end = end if now is None else max(now, end)
    window = min(window, max(end - start, 1e-9))
    return float(sum(e["n_ok"] for e in done if e["time"] > end - window) / window)


def _overall(drivers: Iterable[tuple[float, list[dict[str, Any]]]]) -> float | None:
    images, seconds = 0, 0.0
    for start, done in drivers:
        images += sum(event["n_ok"] for event in done)
        seconds += max(event["time"] for event in done) - start
    return images / seconds if seconds > 0 else None


def _workers(done: list[dict[str, Any]]) -> dict[str, float]:
    """Several processes of one host have one name: seconds in which any of them worked count."""
    images, spans = Counter[str](), dict[str, list[tuple[float, float]]]()
    for event in done:
        images[event["worker"]] += event["n_ok"]
        span = (event["time"] - event["seconds"]["total"], event["time"])
        spans.setdefault(event["worker"], []).append(span)
    seconds = {name: _covered(spans[name]) for name in spans}
    return {name: images[name] / seconds[name] for name in sorted(images) if seconds[name]}


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the seconds that lie in any of the spans."""
    total, reached = 0.0, -math.inf
    for first, last in sorted(spans):
        total += max(last - max(first, reached), 0.0)
        reached = max(reached, last)
    return total


def _reasons(rows: Iterable[UnitRow]) -> dict[str, int]:
    counts = Counter[str]()
    for row in rows:
        if row.n_bad:
            counts.update(json.loads(row.reasons))
    return dict(counts.most_common())


def _writer(cache: Cache) -> str:
    """Returns who holds the lock, without taking it from anybody."""
    return cache.storage.holder()


def to_json(status: Status) -> str:
    """Returns the status for machines."""
    # Not `asdict`: it copies every dictionary of every shard, seconds for 100,000 of them.
    facts = {name: getattr(status, name) for name in Status.__slots__}
    facts["shards"] = [
        {name: getattr(shard, name) for name in ShardStatus.__slots__} for shard in status.shards
    ]
    return json.dumps(facts, sort_keys=True)


def format_status(status: Status, *, shards: bool = False) -> str:
    """Returns the status for people; `shards` adds a line for each."""
    counts = {state: status.count(state) for state in ("done", "failed", "pending")}
    lines = [
        f"{status.url}: {status.stage}, run {status.run_id}",
        f"  shards   {len(status.shards)} = {counts['done']} done + {counts['failed']} failed + "
        f"{counts['pending']} pending"
        + (f"; {status.retried} took more than one attempt" if status.retried else "")
        + (f"; {status.others} more unit(s) of earlier runs" if status.others else ""),
        f"  images   {status.n_ok} ok, {status.n_bad} bad{_of_them(status.reasons)}",
        f"  size     {status.bytes / 1e6:.1f} MB",
        f"  driver   {'writing now: ' + status.writing if status.writing else 'none'}",
    ]
    if status.images_per_s is not None:
        eta = f", about {_duration(status.eta_s)} left" if status.eta_s is not None else ""
        when = "now" if status.writing else "at the end"
        overall = (
            f", {status.overall_images_per_s:.2f} over all" if status.overall_images_per_s else ""
        )
        lines.append(f"  speed    {status.images_per_s:.2f} images/s {when}{overall}{eta}")
        working = max(sum(status.seconds[name] for name in ("wait", "model", "write")), 1e-9)
        steps = ", ".join(
            f"{name} {100 * status.seconds[name] / working:.1f} %"
            for name in ("wait", "model", "write")
        )
        lines.append(
            f"  time     {steps} of {_duration(working)}; ahead of it on threads: "
            f"read {_duration(status.seconds['read'])}, "
            f"decode {_duration(status.seconds['decode'])}"
        )
    lines += [f"  worker   {name}: {rate:.2f} images/s" for name, rate in status.workers.items()]
    lines += [f"  views    {line}" for line in status.appended]
    note = note_on_cpus(status.cpus)
    lines += [f"  cpu      {note}"] if note else []
    lines += [f"  problem  {line}" for line in status.problems]
    listed = status.shards if shards else [s for s in status.shards if s.state == "failed"]
    lines += [_line(shard) for shard in listed]
    return "\n".join(lines)


def _of_them(reasons: Mapping[str, int]) -> str:
    parts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f" ({parts})" if parts else ""


def _line(shard: ShardStatus) -> str:
    facts = [f"{shard.state:8} {shard.shard}"]
    if shard.attempts > 1 or shard.state == "failed":
        facts.append(f"{shard.attempts} attempt(s)")
    if shard.state == "done":
        facts.append(f"{shard.images} images")
    if shard.images_per_s is not None:
        steps = " ".join(f"{name} {shard.seconds.get(name, 0.0):.2f}" for name in STEPS)
        facts.append(f"{shard.images_per_s:.2f} images/s ({steps} s)")
    if shard.reason:
        facts.append(shard.reason)
    return printable("  ".join(facts))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
