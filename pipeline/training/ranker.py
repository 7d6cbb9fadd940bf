"""Runs `train-ranker`: stages the cache, trains in one process or many, writes what comes out."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltrp_core.rankers import save_ranker
from pipeline.inputs import Shard
from pipeline.plots import MEASURES, plot_curves
from pipeline.publishing.model_card import write_model_card
from pipeline.store import Cache, open_cache
from pipeline.store.kinds import open_cache_of
from pipeline.training.folder import DiskTrainingFolder
from pipeline.training.launch import loader_processes, train_on_ray
from pipeline.training.options import RunOptions
from pipeline.training_data import StagedRecords, check_cache, stage_records
from stages import train_ranker
from stages.options import identity
from stages.protocols import Progress, Summary
from stages.train_ranker import TrainedRanker, TrainRankerConfig
from stages.training.ddp import Ranks

STAGE = "train-ranker"
LAST = "last"


@dataclass(frozen=True, slots=True)
class TrainingInputs:
    """What is trained on; picklable."""

    cache: str
    shards: tuple[Shard, ...]
    maps: str | None
    """Cache of `cover` partitions to validate whole score maps on"""


def run_train_ranker(
    config: TrainRankerConfig,
    inputs: TrainingInputs,
    out: Path,
    progress: Progress,
    options: RunOptions | None = None,
    *,
    workers: int = 0,
    ray_address: str | None = None,
    after_start: Callable[[], None] = lambda: None,
    on_note: Callable[[str], None] = lambda text: None,
) -> tuple[list[dict[str, float]], Summary]:
    """Trains a ranker from a cache into `out`; returns the curve too.

    Args:
        workers: processes that train together through Ray Train; 0 = this one, without Ray.

    Raises:
        RequestError: wrong input, or `out` holds another run.
    """
    options = options or RunOptions()
    out = out.absolute()
    cache = open_cache_of("--cache", inputs.cache, "score")
    check_cache(cache, inputs.shards)
    train_ranker.check_config(config, cache.run)
    DiskTrainingFolder(out, STAGE).open(_run_identity(config, cache, inputs.maps))
    work = functools.partial(_train, config, inputs, out, options)
    if workers == 0:
        result = work(progress=progress, on_note=on_note)
    else:
        result = train_on_ray(
            work,
            out,
            STAGE,
            device=config.device,
            workers=workers,
            ray_address=ray_address,
            progress=progress,
            after_start=after_start,
            on_note=on_note,
        )
    curve = [dict(row) for row in result["history"]]
    summary = Summary(**result["summary"])
    summary.output = str(out)
    summary.next_step = f"ltrp-pipeline select --shards ... --ranker {out} --out selections"
    return curve, summary


def _run_identity(config: TrainRankerConfig, cache: Cache, maps: str | None) -> dict[str, Any]:
    """Returns what the run's id is the hash of: options, records, and what epochs are judged by."""
    caches = {"cache": cache, **({"maps": open_cache_of("--maps", maps, "score")} if maps else {})}
    return identity(config) | {
        name: {**found.run, "records": _records_sha256(found)} for name, found in caches.items()
    }


def _records_sha256(cache: Cache) -> str:
    """A cache that grew since would be trained on in another order."""
    rows = [(row.unit, row.n_ok, row.shard_sha256) for _, row in sorted(cache.rows.items())]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _train(
    config: TrainRankerConfig,
    inputs: TrainingInputs,
    out: Path,
    options: RunOptions,
    *,
    progress: Progress,
    on_note: Callable[[str], None],
    ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
    device: str = "",
) -> dict[str, Any]:
    """Trains on one rank; the first one writes `out` and returns what the command prints."""
    folder = DiskTrainingFolder(
        out,
        STAGE,
        every_s=options.checkpoint_every,
        log_to=options.log_to,
        on_note=on_note,
    )
    # By host: ranks of one machine share what is brought near, others have their own disk.
    scratch = Path(options.scratch or out / "scratch").absolute() / socket.gethostname()
    records, maps = _stage(inputs, scratch, progress, options)
    try:
        trained = train_ranker.run(
            config,
            records=records,
            maps=maps,
            folder=folder,
            progress=progress,
            ranks=ranks,
            device=device,
            loader_processes=loader_processes(options, ranks, decodes=not records.is_decoded),
        )
    finally:
        folder.close()
        records.close()
    if not ranks.is_first:
        return {}
    result = _write(trained, config, records, out)
    shutil.rmtree(scratch if options.scratch else scratch.parent, ignore_errors=True)
    return result


def _stage(
    inputs: TrainingInputs, scratch: Path, progress: Progress, options: RunOptions
) -> tuple[StagedRecords, StagedRecords | None]:
    limit = int(options.render_once * 2**30)
    folders = {"records": inputs.cache, **({"maps": inputs.maps} if inputs.maps else {})}
    staged = [
        StagedRecords(
            stage_records(
                open_cache(cache),
                inputs.shards,
                scratch / name,
                progress=progress,
                views_bytes=limit,
            )
        )
        for name, cache in folders.items()
    ]
    return staged[0], staged[1] if len(staged) > 1 else None


def _write(
    trained: TrainedRanker, config: TrainRankerConfig, records: StagedRecords, out: Path
) -> dict[str, Any]:
    """Writes the ranker, the last epoch's weights, config, card and plots."""
    history = trained.trained.history
    kept = history[trained.kept_epoch - 1]
    # Paths of this machine stay here: config.json goes to others.
    options = {name: v for name, v in identity(config).items() if name not in ("init", "init_from")}
    report = trained.started_from
    if report is not None:
        options["started_from"] = {"kind": report.kind, "sha256": report.sha256}
    extra = {
        "training": options,
        "scored_by": dict(records.run),
        "epoch": trained.kept_epoch,
        "measures": _measures(kept),
        "ceiling": dict(trained.ceiling),
        "records": dict(trained.counts),
    }
    save_ranker(trained.ranker, out, extra)
    chosen = trained.ranker.state_dict()
    chosen = {name: value.clone() for name, value in chosen.items()}
    trained.ranker.load_state_dict(dict(trained.last))
    save_ranker(
        trained.ranker,
        out / LAST,
        extra | {"epoch": len(history), "measures": _measures(history[-1])},
    )
    trained.ranker.load_state_dict(chosen)
    write_model_card(out)
    plot_curves(history, out, "curve")
    summary = trained.summary
    summary.notes += trained.notes + _closing_notes(trained)
    return {"history": history, "summary": dataclasses.asdict(summary)}


def _measures(row: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name in MEASURES}


def _closing_notes(trained: TrainedRanker) -> list[str]:
    history, epoch = trained.trained.history, trained.kept_epoch
    notes = [f"weights of epoch {epoch} of {len(history)} are kept; the last are in {LAST}/"]
    if trained.trained.stopped_early:
        notes.append("stopped early: no epoch was better for --patience epochs")
    row, ceiling = history[epoch - 1], trained.ceiling
    for measure, words in (("cover_tau", "whole score maps"), ("tau", "partitions")):
        if measure in row:
            notes.append(f"held-out {words}: tau {row[measure]:.3f}")
    for name, words in (("cover_tau", "whole score maps"), ("tau", "the labels")):
        if name in ceiling:
            notes.append(f"two draws of the teacher agree on {words} with tau {ceiling[name]:.3f}")
    return notes
