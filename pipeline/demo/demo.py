"""The demo: photographs, shards, scores, selections, page; by weights of ours or trained here."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

from ltrp_core.shipped_weights import SHIPPED_MAE, SHIPPED_RANKER
from pipeline.console.progress import open_progress, print_summary
from pipeline.console.terminal import say
from pipeline.demo.photographs import demo_photographs
from pipeline.evaluation.patches import run_evaluate_patches
from pipeline.evaluation.tables import format_table
from pipeline.inputs import Shard, find_shards
from pipeline.packing import run_pack
from pipeline.report.gather import ReportInputs, run_report
from pipeline.store.run_file import claim_folder
from pipeline.training.mae import MAE_FILE, run_pretrain
from pipeline.training.ranker import TrainingInputs, run_train_ranker
from pipeline.units.run import run_score, run_select
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
class DemoTraining:
    """How long the demo trains."""

    mae_epochs: int
    mae_views: int
    score_views: int
    ranker_epochs: int


FULL = DemoTraining(mae_epochs=19, mae_views=32, score_views=7, ranker_epochs=12)
QUICK = DemoTraining(mae_epochs=5, mae_views=32, score_views=2, ranker_epochs=4)


def run_demo(out: Path, *, training: DemoTraining | None) -> int:
    """Runs the stages into subfolders of `out`; returns the exit status.

    A second run with the same `out` goes on where the first one ended.

    Args:
        out: a new or empty folder, or an earlier demo.
        training: of a masked autoencoder and a ranker; None: those that the package carries.

    Raises:
        RequestError: the photographs' packages are missing, or `out` holds something else.
    """
    started = time.monotonic()
    photographs = dict(demo_photographs())
    out = out.absolute()
    claim_folder(out, "demo", {"training": training and dataclasses.asdict(training)})
    demo: _Demo = _Demo(out) if training is None else _TrainedDemo(out, training)
    steps: list[_Step] = [
        (
            "pack: photographs of three packages, two crops -> tar shards",
            partial(demo.pack, photographs),
        ),
        *demo.steps(),
        ("select: the ranker sees whole photographs, keeps k patches", demo.select),
        ("evaluate: do the kept patches lie on objects? (drawn by hand)", demo.evaluate),
        ("report: a page of pictures", demo.report),
    ]
    for number, (title, step) in enumerate(steps, 1):
        say(f"{number}  {title}")
        summary = step()
        print_summary(summary)
        if summary.failed:
            return 1
    seconds = time.monotonic() - started
    say(f"\n{seconds:.0f} s in all. Look at {out / 'report' / 'index.html'}\n{demo.last_words}")
    return 0


_Step = tuple[str, Callable[[], Summary]]


class _Demo:
    """One method a stage; each finds its input where the one before left it."""

    last_words = (
        "mae_tiny scored and ranker_tiny selected: small weights that the package carries.\n"
        "demo --train shows how such weights are made, the README how to use larger ones."
    )

    def __init__(self, out: Path) -> None:
        self.out = out
        self.mae, self.ranker = SHIPPED_MAE, SHIPPED_RANKER
        self.training: list[Path] = []
        self.caches: list[str | Path] = []
        # A .json inside the wheel is a real file: the package is never imported from a zip.
        self.annotations = Path(str(resources.files("pipeline.demo") / "annotations.json"))
        self.progress, self.pool = open_progress(), InProcessPool()

    def steps(self) -> list[_Step]:
        """Returns what becomes of the shards before the ranker selects."""
        return [("score --crop eval --metric surprise: the teacher's own maps", self.score_maps)]

    @property
    def shards(self) -> list[Shard]:
        return find_shards([str(self.out / "shards")])

    def pack(self, photographs: Mapping[str, bytes]) -> Summary:
        folder = self.out / "photographs"
        folder.mkdir(exist_ok=True)
        for name, content in photographs.items():
            (folder / name).write_bytes(content)
        config = PackConfig(shard_size=4)
        return run_pack(config, folder, self.out / "shards", self.progress)

    def score_maps(self) -> Summary:
        config = ScoreConfig(mae=self.mae, crop="eval", metric="surprise")
        return run_score(config, self.shards, self.out / "teacher", self.pool, self.progress)

    def select(self) -> Summary:
        config = SelectConfig(ranker=self.ranker)
        cache = self.out / "selections"
        return run_select(config, self.shards, cache, self.pool, self.progress)

    def evaluate(self) -> Summary:
        rows, summary = run_evaluate_patches(
            EvaluateConfig(),
            selections=[self.out / "selections"],
            annotations=self.annotations,
            teacher=self.out / "teacher",
            foreground="masks",
            out=self.out / "evaluation",
            progress=self.progress,
        )
        say(format_table(rows))
        return summary

    def report(self) -> Summary:
        inputs = ReportInputs(
            selections=[self.out / "selections"],
            shards=self.shards,
            mae=self.mae,
            teacher=self.out / "teacher",
            evaluation=self.out / "evaluation",
            annotations=self.annotations,
            training=self.training,
            cache=self.caches,
        )
        return run_report(ReportConfig(), inputs, self.out / "report", self.progress)


class _TrainedDemo(_Demo):
    """The demo whose masked autoencoder and ranker know nothing but its photographs."""

    last_words = (
        "An autoencoder that saw ten photographs for two minutes guesses colors, not objects:\n"
        "this shows how everything fits together. The README says how to run it on real weights."
    )

    def __init__(self, out: Path, size: DemoTraining) -> None:
        super().__init__(out)
        self.size = size
        self.mae, self.ranker = str(out / "mae" / MAE_FILE), str(out / "ranker")
        self.training, self.caches = [out / "mae", out / "ranker"], [out / "cache"]

    def steps(self) -> list[_Step]:
        return [
            ("pretrain-mae: a masked autoencoder from scratch", self.pretrain),
            ("score: leave out each visible patch, cache how much changes", self.score),
            ("score --crop eval --sampler cover: the teacher's own maps", self.score_maps),
            ("train-ranker: a ViT-T learns the cached scores", self.train_ranker),
        ]

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
        config = ScoreConfig(mae=self.mae, views=self.size.score_views)
        cache = self.out / "cache"
        return run_score(config, self.shards, cache, self.pool, self.progress)

    def score_maps(self) -> Summary:
        """The paper's label, as what the ranker learns here."""
        config = ScoreConfig(mae=self.mae, crop="eval", sampler="cover", partitions=22)
        return run_score(config, self.shards, self.out / "teacher", self.pool, self.progress)

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
