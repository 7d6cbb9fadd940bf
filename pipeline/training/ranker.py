"""Runs `train-ranker`: stages the cache, trains in one process or many, writes what comes out."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltrp_core.rankers import save_ranker
from pipeline.inputs import Shard
from pipeline.plots import MEASURES, plot_curves
from pipeline.publishing.model_card import write_model_card
from pipeline.store import open_cache
from pipeline.store.kinds import open_cache_of
from pipeline.training.launch import Job, Launch, Process, launch
from pipeline.training.options import RunOptions
from pipeline.training_data import StagedRecords, check_cache, stage_records
from stages import train_ranker
from stages.options import identity
from stages.protocols import Progress, Summary
from stages.train_ranker import TrainedRanker, TrainRankerConfig
from stages.types import ScoreRun

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
    how: Launch | None = None,
) -> tuple[list[dict[str, float]], Summary]:
    """Trains a ranker from a cache into `out`; returns the curve too.

    Raises:
        RequestError: wrong input, or `out` holds another run.
    """
    result = launch(
        RankerJob(config, inputs, out.absolute(), options or RunOptions()), progress, how
    )
    summary = Summary(**result["summary"])
    summary.output = str(out.absolute())
    return [dict(row) for row in result["history"]], summary


class RankerJob(Job):
    """The training of a ranker from a cache."""

    stage = STAGE

    def __init__(
        self, config: TrainRankerConfig, inputs: TrainingInputs, out: Path, options: RunOptions
    ) -> None:
        self.config, self.inputs, self.out = config, inputs, out
        self.options: RunOptions = options
        self.device, self.precision = config.device, config.precision

    def identity(self, progress: Progress) -> dict[str, Any]:
        """Returns options, records, and what epochs are judged by."""
        del progress
        cache, maps = open_cache_of("--cache", self.inputs.cache, "score"), self.inputs.maps
        check_cache(cache, self.inputs.shards)
        train_ranker.check_config(self.config, ScoreRun.of(cache.run, cache.url))
        caches = {"cache": cache}
        if maps:
            caches["maps"] = open_cache_of("--maps", maps, "score")
        # A cache that grew since would be trained on in another order.
        return identity(self.config) | {
            name: {**found.run, "records": found.shards_sha256()} for name, found in caches.items()
        }

    def train(self, process: Process) -> dict[str, Any]:
        """Trains; the first process writes the folder, and returns curve and summary."""
        scratch = self.scratch(self.out / "scratch")
        records, maps = self._stage(scratch, process.progress)
        try:
            trained = train_ranker.run(
                self.config,
                records=records,
                maps=maps,
                folder=process.folder,
                progress=process.progress,
                ranks=process.ranks,
                device=process.device,
                loader_processes=process.loader_processes(decodes=not records.is_decoded),
            )
        finally:
            records.close()
        if not process.ranks.is_first:
            return {}
        result = _write(trained, self.config, records, self.out)
        shutil.rmtree(scratch if self.options.scratch else scratch.parent, ignore_errors=True)
        return result

    def _stage(
        self, scratch: Path, progress: Progress
    ) -> tuple[StagedRecords, StagedRecords | None]:
        limit = int(self.options.render_once * 2**30)
        inputs = self.inputs
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
        "scored_by": dict(records.identity),
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
