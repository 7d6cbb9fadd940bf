"""What a worker does with one shard: read, decode ahead, run the stage, write, check, commit."""

from __future__ import annotations

import errno
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.faults import fault_point
from pipeline.inputs import OnDamage, Shard
from pipeline.inputs.samples import SampleStream
from pipeline.store.manifest import UnitRow, check_same_members
from pipeline.store.records.checks import RowDigests, check_records
from pipeline.store.records.forms import form_of
from pipeline.store.storage import Storage, open_storage
from pipeline.store.units import publish, seal, unit_name, write_errors
from pipeline.workers import Slot
from stages.protocols import MEMBERS, ArrayField, Arrays, BadSample, JoiningStage, UnitStage

MakeStage = Callable[[str], UnitStage]
"""Makes the stage on a device, `auto` = whatever there is; picklable and small."""

NAMED = 3
"""Bad images that the summary names."""
_SPARE_BYTES = 16 << 20
_FEW_BYTES_AN_IMAGE = 20_000
"""Small for a photograph; for the largest number of records that a shard can give."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkSettings:
    """What every unit of a run has in common; small, it travels to the workers."""

    cache: str
    run_id: str
    store: str
    fields: Mapping[str, ArrayField]
    on_damage: OnDamage
    decode_threads: int
    """0 = one per CPU of the worker"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingUnit:
    """What a worker is sent."""

    shard: Shard
    before: UnitRow | None = None
    """A unit that was made of the shard before: of another content, the shard is refused."""
    made_before: str = "it was scored first"
    """How that unit came to be, for the message"""

    @property
    def name(self) -> str:
        """The unit's name."""
        return unit_name(self.shard.name)


class ChangedShardError(ValueError):
    """A shard has another content than when a unit was made of it before."""


class NoGoodImageError(ValueError):
    """A shard of which no image can be used: most likely another kind of file than is thought."""


class UnitWork:
    """One worker's state: the stage with its model, and how a shard becomes a unit."""

    def __init__(self, make: MakeStage, settings: WorkSettings, slot: Slot) -> None:
        self.stage = make(slot.device)
        self.settings = settings
        self.threads = settings.decode_threads or slot.cpus
        self.storage = open_storage(settings.cache)
        self.cpu = cpu_kind(str(getattr(self.stage, "device", slot.device)))

    def __call__(self, unit: PendingUnit) -> dict[str, Any]:
        """Commits one unit; returns its manifest row, where the time went, notes, the CPU."""
        started = time.monotonic()
        fault_point("before_read", unit.name)
        _check_space(self.storage, unit.shard, self.settings.fields)
        form = form_of(self.settings.store)
        if isinstance(self.stage, JoiningStage):
            self.stage.begin(unit.name)
        clock = {"model": 0.0, "write": 0.0}
        digests = RowDigests(self.settings.fields)
        n_ok = 0
        stream = SampleStream(
            unit.shard,
            on_damage=self.settings.on_damage,
            prepare=self.stage.prepare,
            threads=self.threads,
        )
        with closing(stream), self.storage.staging(unit.name) as staged:
            records = staged / form.file
            with form.writer(records, self.settings.fields) as writer:
                for rows in _timed(self.stage.batches(stream), clock, "model"):
                    fault_point("mid_forward", unit.name)
                    _check_finite(rows, unit.shard)
                    start = time.monotonic()
                    n_ok += len(rows["key"])
                    digests.update(rows)
                    writer.append(rows)
                    clock["write"] += time.monotonic() - start
                start = time.monotonic()
            if unit.before is None:
                if n_ok == 0:
                    check_any_good(unit.shard, stream.bad)
            elif stream.identity["sha256"] != unit.before.shard_sha256:
                raise ChangedShardError(f"{unit.shard.path} changed since {unit.made_before}")
            else:
                check_same_members(unit.before, n_ok + len(stream.bad))
            fault_point("after_attempt_write", unit.name)
            check_records(records, self.settings.fields, digests)
            write_errors(staged, stream.bad)
            receipt = seal(
                staged,
                unit=unit.name,
                run_id=self.settings.run_id,
                n_ok=n_ok,
                bad=stream.bad,
                input=stream.identity,
                damage=stream.damage,
            )
            receipt = publish(self.storage, staged, receipt)
            clock["write"] += time.monotonic() - start
        clock["model"] -= stream.seconds["wait"]
        seconds = {**stream.seconds, **clock, "total": time.monotonic() - started}
        return {
            "row": UnitRow.of(receipt),
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "notes": self.stage.take_notes(),
            "cpu": self.cpu,
            "choices": dict(stream.choices),
            "bad": [f"{bad.key} of {unit.shard.name}: {bad.reason}" for bad in stream.bad[:NAMED]],
        }


def check_any_good(shard: Shard, bad: Sequence[BadSample]) -> None:
    """Checks a shard that gave no sample.

    Earlier versions committed a unit of it, to which views are still appended.

    Raises:
        NoGoodImageError: it holds members, and none is an image that can be used.
    """
    if not bad:
        return
    counts = Counter(one.reason for one in bad)
    reasons = ", ".join(f"{number} {reason}" for reason, number in counts.most_common())
    raise NoGoodImageError(
        f"{shard.path} has no image that can be used ({reasons}); the first: {bad[0].key}: "
        f"{bad[0].message}"
    )


def cpu_kind(device: str) -> str:
    """Returns what tells CPUs apart that round sums differently; empty where a GPU computes.

    Torch picks its kernels by it: another width of vectors adds in another order.
    """
    import torch  # here: the driver of a Ray run needs none

    from stages.devices import resolve_device

    if resolve_device(device).type != "cpu":
        return ""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _timed(batches: Iterator[Arrays], clock: dict[str, float], name: str) -> Iterator[Arrays]:
    """Yields the batches, adding the time it takes to get them to `clock[name]`."""
    while True:
        started = time.monotonic()
        rows = next(batches, None)
        clock[name] += time.monotonic() - started
        if rows is None:
            return
        yield rows


def _check_finite(rows: Arrays, shard: Shard) -> None:
    for name, values in rows.items():
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise ValueError(
                f"{name} of {shard.name} is not finite; are the weights damaged, or is a float16 "
                "too small for them (--score-dtype float32, --precision bf16 or float32)?"
            )


def _check_space(storage: Storage, shard: Shard, fields: Mapping[str, ArrayField]) -> None:
    """Raises ENOSPC before an hour is spent on a unit that cannot be written."""
    free = storage.free_bytes()
    if free is None:
        return
    row = sum(
        int(np.prod(field.shape)) * np.dtype(field.dtype).itemsize
        for field in fields.values()
        if field.dtype not in ("string", MEMBERS)
    )
    copied = shard.size if any(field.dtype == MEMBERS for field in fields.values()) else 0
    needed = _SPARE_BYTES + copied + row * (shard.size // _FEW_BYTES_AN_IMAGE)
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}: {free >> 20} MiB free, {shard.name} may need "
            f"{needed >> 20} MiB",
            storage.url,
        )
