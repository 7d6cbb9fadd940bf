"""The demo: photographs, shards, masked autoencoder, scores, ranker, selections, page."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ltrp_core.errors import RequestError
from pipeline import run_stage
from pipeline.demo.photographs import demo_photographs
from pipeline.evaluation_table import format_table
from pipeline.progress import open_progress, print_summary
from pipeline.run_report import run_report
from pipeline.shards import find_shards
from pipeline.store.cache import claim_folder
from pipeline.workers import InProcessPool
from stages.evaluate_patches import EvaluateConfig
from stages.pack import PackConfig
from stages.pretrain_mae import PretrainConfig
from stages.protocols import Summary
from stages.report import ReportConfig
from stages.score import ScoreConfig
from stages.select_patches import SelectConfig
from stages.train_ranker import TrainRankerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSize:
    """How long the demo trains; everything else is the same."""

    mae_epochs: int
    mae_views: int
    score_views: int
    ranker_epochs: int


FULL = DemoSize(mae_epochs=32, mae_views=32, score_views=12, ranker_epochs=12)
QUICK = DemoSize(mae_epochs=8, mae_views=32, score_views=2, ranker_epochs=6)


def run_demo(out: Path, *, quick: bool) -> int:
    """Runs every stage into subfolders of `out`; returns the exit status.

    A second run with the same `out` goes on where the first one ended.

    Raises:
        RequestError: the photographs' packages are missing, or `out` holds something else.
    """
    started = time.monotonic()
    out = out.absolute()
    claim_folder(out, "demo", {"quick": quick})
    for step in _steps(out, QUICK if quick else FULL):
        summary = step()
        summary.next_step = ""
        print_summary(summary)
        if summary.failed:
            return 1
    _say(f"\n{time.monotonic() - started:.0f} s in all. Look at {out / 'report' / 'index.html'}")
    return 0


def _steps(out: Path, size: DemoSize) -> list[Callable[[], Summary]]:
    """Returns the stages in order; each finds its input where the one before left it."""
    progress, pool = open_progress(), InProcessPool()
    photographs, shards = out / "photographs", out / "shards"
    mae = out / "mae" / run_stage.MAE_FILE
    # A .json inside the wheel is a real file: the package is never imported from a zip.
    annotations = Path(str(resources.files("pipeline.demo") / "annotations.json"))

    def pack() -> Summary:
        _say("1  pack: photographs that scikit-image and scikit-learn ship -> tar shards")
        _write_photographs(photographs)
        return run_stage.run_pack(PackConfig(shard_size=4), photographs, shards, progress)

    def pretrain() -> Summary:
        _say("2  pretrain-mae: a masked autoencoder of 4.6 M parameters, from scratch")
        config = PretrainConfig(
            epochs=size.mae_epochs,
            views=size.mae_views,
            # Few photographs: many small steps reach further than the recipe's large batches.
            batch_size=8,
            base_lr=3.2e-2,
            warmup_epochs=2,
        )
        return run_stage.run_pretrain(config, _found(shards), out / "mae", progress)

    def score() -> Summary:
        _say("3  score: leave each visible patch out, cache how much the picture changes")
        config = ScoreConfig(mae=str(mae), views=size.score_views)
        return run_stage.run_score(config, _found(shards), out / "cache", pool, progress)

    def score_cover() -> Summary:
        _say("4  score --crop eval --sampler cover: the teacher's own map of every photograph")
        config = ScoreConfig(mae=str(mae), crop="eval", sampler="cover", partitions=22)
        return run_stage.run_score(config, _found(shards), out / "teacher", pool, progress)

    def train_ranker() -> Summary:
        _say("5  train-ranker: a ViT-T learns the cached scores; the autoencoder is done")
        config = TrainRankerConfig(
            ranker="vit_tiny",
            head="token",
            epochs=size.ranker_epochs,
            batch_size=32,
            base_lr=4e-3,
            warmup_epochs=1,
        )
        measures, summary = run_stage.run_train_ranker(
            config, out / "cache", _found(shards), out / "ranker", progress
        )
        held_out = "  ".join(f"{k} {v:.3f}" for k, v in measures.items() if k in ("tau", "rho"))
        summary.notes.append(f"on held-out photographs: {held_out}")
        return summary

    def select() -> Summary:
        _say("6  select: the ranker looks at whole photographs and keeps k patches")
        config = SelectConfig(ranker=out / "ranker")
        return run_stage.run_select(config, _found(shards), out / "selections", pool, progress)

    def evaluate() -> Summary:
        _say("7  evaluate: do the kept patches lie on objects? (outlines drawn by hand)")
        rows, summary = run_stage.run_evaluate_patches(
            EvaluateConfig(),
            selections=out / "selections",
            annotations=annotations,
            teacher=out / "teacher",
            foreground="masks",
            out=out / "evaluation",
            progress=progress,
        )
        _say(format_table(rows))
        return summary

    def report() -> Summary:
        _say("8  report: a page of pictures")
        return run_report(
            ReportConfig(),
            selections=out / "selections",
            shards=_found(shards),
            mae=str(mae),
            teacher=out / "teacher",
            evaluation=out / "evaluation",
            annotations=annotations,
            training=[out / "mae", out / "ranker"],
            out=out / "report",
            progress=progress,
        )

    return [pack, pretrain, score, score_cover, train_ranker, select, evaluate, report]


def _say(text: str) -> None:
    print(text, flush=True)


def _found(shards: Path) -> list[run_stage.Shard]:
    return find_shards([str(shards)])


def _write_photographs(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    try:
        for name, content in demo_photographs():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise RequestError(f"cannot write the photographs into {folder}: {error}") from error
