"""What a run will take: from the listing of the shards and a short trial on this device."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ltrp_core.errors import RequestError
from ltrp_core.scoring import scored_by
from pipeline.inputs import Shard
from pipeline.inputs.samples import SampleStream
from pipeline.inputs.shards import FolderShard
from pipeline.store.records.forms import FORMS
from pipeline.store.storage import is_url
from stages.protocols import Arrays
from stages.score import ScoreConfig, UnitScorer

_RECEIPT_BYTES = 3000
_ROWS_FOR_SIZE = 5000


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Measured on this device where it says so, counted or extrapolated elsewhere."""

    shards: int
    input_bytes: int
    images: int
    """Counted where shards are folders, else from the mean size of the images that were tried."""
    images_are_exact: bool
    records: int
    """(view, partition) pairs of all images"""
    passes: int
    """Decoder passes: one per record, and one more for each patch that is left out"""
    encoder_passes: int
    """One a record; in the encoder phase as many as decoder passes"""
    device: str
    threads: int
    tried: int
    trial_s: float
    images_per_s: float
    record_bytes: float
    """Of the trial's own records, written as the run would write them"""
    cache_bytes: int
    objects: int
    free_bytes: int | None
    """Where the cache will lie; None in an object store"""


def make_plan(
    config: ScoreConfig, shards: Sequence[Shard], out: str, *, store: str, seconds: float
) -> Plan:
    """Scores images of the first shards for `seconds`, and extrapolates.

    Raises:
        RequestError: the weights or options cannot be used, or no image can be read.
        DamagedShardError: the first shard is not whole enough to try.
    """
    scorer = UnitScorer(config)
    blocks, tried, read_bytes, trial_s = _trial(scorer, shards, seconds)
    if not blocks:
        raise RequestError(
            f"none of the {len(shards)} shard(s) from {shards[0].path} on holds an image that can "
            "be read; there is nothing to plan from"
        )
    input_bytes = sum(shard.size for shard in shards)
    exact = all(isinstance(shard, FolderShard) for shard in shards)
    images = (
        sum(len(shard.files) for shard in shards if isinstance(shard, FolderShard))
        if exact
        else round(input_bytes / (read_bytes / tried))
    )
    each = blocks[0]["visible"].shape[1] * blocks[0]["visible"].shape[2]
    left_out = blocks[0]["visible"].shape[3] if scored_by(config.metric) == "visible" else 0
    record_bytes, files = _measured_size(blocks, scorer, store, images, len(shards))
    device = scorer.device
    return Plan(
        shards=len(shards),
        input_bytes=input_bytes,
        images=images,
        images_are_exact=exact,
        records=images * each,
        passes=images * each * (left_out + 1),
        encoder_passes=images * each * (left_out + 1 if config.phase == "encoder" else 1),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        threads=torch.get_num_threads(),
        tried=tried,
        trial_s=trial_s,
        images_per_s=tried / trial_s,
        record_bytes=record_bytes,
        cache_bytes=round(record_bytes * images * each) + _RECEIPT_BYTES * len(shards),
        objects=(files + 1) * len(shards),
        free_bytes=None if is_url(out) else _free(Path(out)),
    )


def _trial(
    scorer: UnitScorer, shards: Sequence[Shard], seconds: float
) -> tuple[list[Arrays], int, float, float]:
    """Returns (rows, images, bytes of them in the shards, seconds); the first batch only warms."""
    blocks: list[Arrays] = []
    started, tried, share = time.monotonic(), 0, 0.0
    warm: float | None = None
    for shard in shards:
        count = 0
        with SampleStream(shard, prepare=scorer.prepare, threads=os.cpu_count() or 1) as stream:
            for rows in scorer.batches(itertools.chain(stream)):
                count += len(rows["key"])
                blocks.append(rows)
                if warm is None:
                    warm = time.monotonic()
                    continue
                tried += len(rows["key"])
                if time.monotonic() - warm >= seconds:
                    break
            else:
                share += shard.size
                continue
        share += _bytes_of(shard, count)
        break
    scored = sum(len(rows["key"]) for rows in blocks)
    if not tried or warm is None:  # one batch is all there is
        return blocks, scored, share, time.monotonic() - started
    return blocks, tried, share * tried / scored, time.monotonic() - warm


def _bytes_of(shard: Shard, images: int) -> float:
    """Returns how much of a shard its first images take."""
    if isinstance(shard, FolderShard):
        return shard.size * images / len(shard.files)
    last = 0
    for member in itertools.islice(shard.open("salvage"), images):
        last = member.offset + len(member.data)
    return float(last)


def _measured_size(
    blocks: Sequence[Arrays], scorer: UnitScorer, store: str, images: int, shards: int
) -> tuple[float, int]:
    """Returns bytes per record and files per unit, of the trial's records written as a unit."""
    rows = max(1, min(images // max(shards, 1), _ROWS_FOR_SIZE))
    form = FORMS[store]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, form.file)
        with form.writer(path, scorer.fields) as writer:
            written = 0
            for block in blocks:
                writer.append(block)
                written += len(block["key"])
                if written >= rows:
                    break
        files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
        fixed = sum(p.stat().st_size for p in files if p.name == "zarr.json")
        total = sum(p.stat().st_size for p in files)
    each = blocks[0]["visible"].shape[1] * blocks[0]["visible"].shape[2]
    return (total - fixed) / (written * each) + fixed / (rows * each), len(files)


def _free(out: Path) -> int:
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def format_plan(plan: Plan, *, workers: int = 64) -> str:
    """Returns the plan for people: hours for 1, 2, 4, ... up to `workers` workers."""
    hours = plan.images / plan.images_per_s / 3600
    about = "" if plan.images_are_exact else "about "
    kind = "GPU" if plan.device != "CPU" else f"worker of {plan.threads} CPU threads"
    lines = [
        f"input    {plan.shards} shards, {_size(plan.input_bytes)}, {about}{plan.images} images",
        f"work     {plan.records} records, {plan.passes:.3g} decoder passes, "
        f"{plan.encoder_passes:.3g} encoder passes",
        f"trial    {plan.images_per_s:.2f} images/s on this device ({plan.device}, "
        f"{plan.threads} threads): {plan.tried} images in {plan.trial_s:.1f} s",
        f"in all   {hours:.2f} hours of one {kind}; if workers do not hinder each other:",
    ]
    count = 1
    while count <= workers:
        lines.append(f"           {count:5} worker(s)  {_hours(hours / count)}")
        count *= 2
    lines.append(
        f"output   {_size(plan.cache_bytes)} ({plan.record_bytes:.1f} bytes per record, "
        f"measured on the trial), {plan.objects} files"
    )
    if plan.free_bytes is not None:
        fits = "fits" if plan.cache_bytes < 0.9 * plan.free_bytes else "DOES NOT FIT"
        lines.append(f"disk     {_size(plan.free_bytes)} free: {fits}")
    return "\n".join(lines)


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def _hours(hours: float) -> str:
    return f"{hours:.2f} h" if hours < 100 else f"{hours / 24:.1f} days"
