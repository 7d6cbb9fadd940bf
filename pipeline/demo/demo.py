"""The demo: photographs, shards, masked autoencoder, scores, ranker, selections, page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

from pipeline import run_stage
from pipeline.demo.photographs import demo_photographs
from pipeline.evaluation_table import format_table
from pipeline.inputs import Shard, find_shards
from pipeline.mae_training import MAE_FILE, run_pretrain
from pipeline.progress import open_progress, print_summary
from pipeline.ranker_training import TrainingInputs, run_train_ranker
from pipeline.run_report import run_report
from pipeline.store.run_file import claim_folder
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
    photographs = dict(demo_photographs())
    out = out.absolute()
    claim_folder(out, "demo", {"quick": quick})
    demo = _Demo(out, QUICK if quick else FULL)
    steps: list[tuple[str, Callable[[], Summary]]] = [
        ("pack: photographs that two packages ship -> tar shards", partial(demo.pack, photographs)),
        ("pretrain-mae: a masked autoencoder from scratch", demo.pretrain),
        ("score: leave out each visible patch, cache how much changes", demo.score),
        ("score --crop eval --sampler cover: the teacher's own maps", demo.score_cover),
        ("train-ranker: a ViT-T learns the cached scores", demo.train_ranker),
        ("select: the ranker sees whole photographs, keeps k patches", demo.select),
        ("evaluate: do the kept patches lie on objects? (drawn by hand)", demo.evaluate),
        ("report: a page of pictures", demo.report),
    ]
    for number, (title, step) in enumerate(steps, 1):
        print(f"{number}  {title}", flush=True)
        summary = step()
        summary.next_step = ""
        print_summary(summary)
        if summary.failed:
            return 1
    seconds = time.monotonic() - started
    print(
        f"\n{seconds:.0f} s in all. Look at {out / 'report' / 'index.html'}\n"
        "An autoencoder that saw seven photographs for two minutes guesses colors, not objects:\n"
        "this shows how everything fits together. The README says how to run it on real weights.",
        flush=True,
    )
    return 0


class _Demo:
    """One method a stage; each finds its input where the one before left it."""

    def __init__(self, out: Path, size: DemoSize) -> None:
        self.out, self.size = out, size
        self.mae = out / "mae" / MAE_FILE
        # A .json inside the wheel is a real file: the package is never imported from a zip.
        self.annotations = Path(str(resources.files("pipeline.demo") / "annotations.json"))
        self.progress, self.pool = open_progress(), InProcessPool()

    @property
    def shards(self) -> list[Shard]:
        return find_shards([str(self.out / "shards")])

    def pack(self, photographs: Mapping[str, bytes]) -> Summary:
        folder = self.out / "photographs"
        folder.mkdir(exist_ok=True)
        for name, content in photographs.items():
            (folder / name).write_bytes(content)
        config = PackConfig(shard_size=4)
        return run_stage.run_pack(config, folder, self.out / "shards", self.progress)

    def pretrain(self) -> Summary:
        config = PretrainConfig(
            epochs=self.size.mae_epochs,
            views=self.size.mae_views,
            holdout=0.0,
            # Few photographs: many small steps reach further than the recipe's large batches.
            batch_size=8,
            base_lr=3.2e-2,
            warmup_epochs=2,
        )
        return run_pretrain(config, self.shards, self.out / "mae", self.progress)

    def score(self) -> Summary:
        config = ScoreConfig(mae=str(self.mae), views=self.size.score_views)
        cache = self.out / "cache"
        return run_stage.run_score(config, self.shards, cache, self.pool, self.progress)

    def score_cover(self) -> Summary:
        config = ScoreConfig(mae=str(self.mae), crop="eval", sampler="cover", partitions=22)
        cache = self.out / "teacher"
        return run_stage.run_score(config, self.shards, cache, self.pool, self.progress)

    def train_ranker(self) -> Summary:
        config = TrainRankerConfig(
            ranker="vit_tiny",
            epochs=self.size.ranker_epochs,
            batch_size=32,
            base_lr=4e-3,
            warmup_epochs=1,
            records_per_image=0,
        )
        _, summary = run_train_ranker(
            config,
            TrainingInputs(
                cache=str(self.out / "cache"),
                shards=tuple(self.shards),
                maps=str(self.out / "teacher"),
            ),
            self.out / "ranker",
            self.progress,
        )
        return summary

    def select(self) -> Summary:
        config = SelectConfig(ranker=str(self.out / "ranker"))
        cache = self.out / "selections"
        return run_stage.run_select(config, self.shards, cache, self.pool, self.progress)

    def evaluate(self) -> Summary:
        rows, summary = run_stage.run_evaluate_patches(
            EvaluateConfig(),
            selections=self.out / "selections",
            annotations=self.annotations,
            teacher=self.out / "teacher",
            foreground="masks",
            out=self.out / "evaluation",
            progress=self.progress,
        )
        print(format_table(rows), flush=True)
        return summary

    def report(self) -> Summary:
        return run_report(
            ReportConfig(),
            selections=self.out / "selections",
            shards=self.shards,
            mae=str(self.mae),
            teacher=self.out / "teacher",
            evaluation=self.out / "evaluation",
            annotations=self.annotations,
            training=[self.out / "mae", self.out / "ranker"],
            cache=[self.out / "cache"],
            out=self.out / "report",
            progress=self.progress,
        )
