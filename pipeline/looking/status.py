"""How far a run is, what failed and where the time goes: from names, the manifest and the log.

Receipts are read only of units that the manifest does not have yet, so that a cache of 100,000
units is looked at in seconds. `verify` is what checks them.
"""

from __future__ import annotations

import fcntl
import io
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow.parquet as pq

from pipeline.run_log import read_log
from pipeline.store.cache import Cache
from pipeline.store.lock import LEASE_S, LOCK
from pipeline.store.manifest import MANIFEST, SCHEMA, UnitRow
from pipeline.store.places import LocalPlace
from pipeline.store.receipts import Receipt
from pipeline.store.units import RECEIPT, UNITS, unit_name

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
    images_per_s: float | None
    """Of all workers together, over the last five minutes of work."""
    seconds: Mapping[str, float]
    workers: Mapping[str, float]
    """images/s by worker"""
    eta_s: float | None
    appended: tuple[str, ...]

    def count(self, state: str) -> int:
        """Returns the shards in a state."""
        return sum(shard.state == state for shard in self.shards)


def read_status(cache: Cache, *, now: float | None = None) -> Status:
    """Returns where a cache stands.

    Args:
        now: seconds since the epoch; the present if omitted.
    """
    now = time.time() if now is None else now
    rows = _rows(cache)
    events = list(read_log(cache.place))
    given = next((e["shards"] for e in reversed(events) if e["event"] == "start"), None)
    names = given if given is not None else [row.shard for row in rows.values()]
    newest = {e["unit"]: e for e in events if e["event"] in ("done", "failed")}
    shards = tuple(_shard(name, rows, newest) for name in names)
    done = [e for e in events if e["event"] == "done"]
    rate = _rate(done)
    pending = [shard for shard in shards if shard.state == "pending"]
    images = sum(row.n_in for row in rows.values())
    a_shard = images / len(rows) if rows else None
    writing = _writer(cache)
    known = rate is not None and a_shard is not None and bool(writing)
    return Status(
        url=cache.url,
        stage=str(cache.run["stage"]),
        run_id=cache.run_id,
        writing=writing,
        shards=shards,
        others=len(set(rows) - {unit_name(name) for name in names}),
        n_ok=sum(row.n_ok for row in rows.values()),
        n_bad=sum(row.n_bad for row in rows.values()),
        reasons=_reasons(rows.values()),
        bytes=sum(row.bytes for row in rows.values()),
        images_per_s=rate,
        seconds={name: sum(e["seconds"].get(name, 0.0) for e in done) for name in STEPS},
        workers=_workers(done),
        eta_s=len(pending) * a_shard / rate if known and rate and a_shard else None,
        appended=tuple(
            f"{part.url.rsplit('/', 1)[-1]}: {part.identity['views']} view(s), "
            f"{len(part.rows)} of {len(rows)} units"
            for part in cache.parts
        ),
    )


def _rows(cache: Cache) -> dict[str, UnitRow]:
    """Returns the rows of the units that are there, from the manifest where it has them."""
    there = cache.place.names(UNITS)
    known: dict[str, UnitRow] = {}
    for content in cache.place.read_many([MANIFEST]).values():
        table = pq.read_table(io.BytesIO(content), schema=SCHEMA)
        columns = [table[name].to_pylist() for name in SCHEMA.names]
        known = {values[0]: UnitRow(*values) for values in zip(*columns, strict=True)}
    rows = {unit: known[unit] for unit in there if unit in known}
    new = {f"{UNITS}/{unit}/{RECEIPT}": unit for unit in there if unit not in known}
    for name, content in cache.place.read_many(new).items():
        try:
            receipt = Receipt.parse(content)
        except ValueError:
            continue  # `verify` names it
        if receipt.run_id == cache.run_id:
            rows[new[name]] = UnitRow.of(receipt)
    return rows


def _shard(name: str, rows: Mapping[str, UnitRow], newest: Mapping[str, Any]) -> ShardStatus:
    unit = unit_name(name)
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


def _rate(done: list[dict[str, Any]]) -> float | None:
    if not done:
        return None
    last = max(event["time"] for event in done)
    recent = [event for event in done if event["time"] > last - _RECENT_S]
    first = min(event["time"] - event["seconds"]["total"] for event in recent)
    return float(sum(event["n_ok"] for event in recent) / max(last - first, 1e-9))


def _workers(done: list[dict[str, Any]]) -> dict[str, float]:
    images, seconds = Counter[str](), Counter[str]()
    for event in done:
        images[event["worker"]] += event["n_ok"]
        seconds[event["worker"]] += event["seconds"]["total"]
    return {name: images[name] / seconds[name] for name in sorted(images) if seconds[name]}


def _reasons(rows: Iterable[UnitRow]) -> dict[str, int]:
    counts = Counter[str]()
    for row in rows:
        if row.n_bad:
            counts.update(json.loads(row.reasons))
    return dict(counts.most_common())


def _writer(cache: Cache) -> str:
    """Returns who holds the lock, without taking it from anybody."""
    place = cache.place
    if isinstance(place, LocalPlace):
        try:
            with (place.path / LOCK).open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return file.read().strip()
        except OSError:
            return ""
        return ""
    for content in place.read_many([LOCK]).values():
        holder = json.loads(content)
        if time.time() - float(holder.get("renewed", 0.0)) <= LEASE_S:
            return json.dumps({"host": holder["host"], "pid": holder["pid"]})
    return ""


def to_json(status: Status) -> str:
    """Returns the status for machines."""
    return json.dumps(asdict(status), indent=1, sort_keys=True)


def format_status(status: Status, *, shards: bool = False) -> str:
    """Returns the status for people; `shards` adds a line for each."""
    counts = {state: status.count(state) for state in ("done", "failed", "pending")}
    lines = [
        f"{status.url}: {status.stage}, run {status.run_id}",
        f"  shards   {len(status.shards)} = {counts['done']} done + {counts['failed']} failed + "
        f"{counts['pending']} pending"
        + (f"; {status.others} more unit(s) of earlier runs" if status.others else ""),
        f"  images   {status.n_ok} ok, {status.n_bad} bad"
        + "".join(f", {count} {reason}" for reason, count in status.reasons.items()),
        f"  size     {status.bytes / 1e6:.1f} MB",
        f"  driver   {'writing now: ' + status.writing if status.writing else 'none'}",
    ]
    if status.images_per_s is not None:
        eta = f", about {_duration(status.eta_s)} left" if status.eta_s is not None else ""
        lines.append(f"  speed    {status.images_per_s:.2f} images/s{eta}")
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
    listed = status.shards if shards else [s for s in status.shards if s.state == "failed"]
    lines += [_line(shard) for shard in listed]
    return "\n".join(lines)


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
    return "  ".join(facts)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
