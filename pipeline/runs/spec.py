"""What a stage is, in one place: its command, its section in a run file, its order, what feeds it.

`STAGES` is read by the command line, by run files and by the line that says what to run next. A new
stage is one row here, and its command in `pipeline.commands`. Nothing is imported until it is used.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Options = Mapping[str, Any]
"""Parameters of a command, as they were parsed; names with underscores"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """One stage."""

    name: str
    """Of its section in a run file"""
    command: str
    """`module:name` of its click command"""
    line: str
    """What it does, for the list of commands"""
    words: tuple[str, ...] = ()
    """As it is typed after `ltrp-pipeline`; empty: its name"""
    configs: tuple[str, ...]
    """`module:name` of the dataclasses that its options are made from"""
    on_shards: bool = False
    """Whether it is given the shards of the file, if it does not name its own"""
    grows: bool = False
    """Whether its folder takes further shards in: what is there is not made again"""
    output: str = ""
    """A file that its folder has and no other stage's: what tells it where run.json does not"""
    fed_by: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Option -> what it is if the file does not say it, where the named stages are there"""
    takes_several: frozenset[str] = frozenset()
    """Which of these options may be given repeatedly"""
    next: Callable[[Options, str], Sequence[str] | None] = lambda options, output: None
    """From its options and its output to the words of the command that comes after it; None if that
    cannot be told"""

    @property
    def typed(self) -> tuple[str, ...]:
        """The words of the command after `ltrp-pipeline`."""
        return self.words or (self.name,)

    def config_types(self) -> list[type[Any]]:
        """Returns the dataclasses of its options."""
        return [load(path) for path in self.configs]

    def next_step(self, options: Options, output: str) -> str:
        """Returns the command that comes after it, whole, to be pasted; empty if there is none."""
        words = self.next(options, output)
        return "" if words is None else shlex.join(["ltrp-pipeline", *map(str, words)])


def load(path: str) -> Any:
    """Returns the object that `module:name` says."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _shards(options: Options) -> list[str]:
    return [word for shard in options.get("shards") or () for word in ("--shards", shard)]


def _after_pack(options: Options, output: str) -> Sequence[str]:
    return ["score", "--shards", output, "--mae", "mae_tiny", "--out", "cache"]


def _after_pretraining(options: Options, output: str) -> Sequence[str]:
    return ["score", *_shards(options), "--mae", output, "--out", "cache"]


def _after_scoring(options: Options, output: str) -> Sequence[str]:
    if options["sampler"] == "cover" and options["crop"] != "train":
        crop = ["--crop", options["crop"]] if options["crop"] != "eval" else []
        return ["select", *_shards(options), "--teacher", output, *crop, "--out", "selections"]
    return ["train-ranker", "--cache", output, *_shards(options), "--out", "ranker"]


def _after_ranker(options: Options, output: str) -> Sequence[str] | None:
    if not options.get("shards"):
        return None  # the cache has pixels, and does not say where its shards are
    return ["select", *_shards(options), "--ranker", output, "--out", "selections"]


def _after_selection(options: Options, output: str) -> Sequence[str]:
    from ltrp_core.errors import RequestError
    from ltrp_core.rankers import locate_ranker, read_config
    from ltrp_core.shipped_weights import SHIPPED_MAE, shipped_sha256

    try:
        ranker = read_config(locate_ranker(options["ranker"])) if options["ranker"] else {}
        scored_by = ranker["extra"]["scored_by"]["mae_sha256"]
    except (RequestError, KeyError, TypeError):
        scored_by = None
    if scored_by == shipped_sha256(SHIPPED_MAE):
        page = ["--mae", SHIPPED_MAE, "--out", "report"]
        return ["report", "--selections", output, *_shards(options), *page]
    return ["verify", output, "--deep"]  # where weights and annotations are, is not known


def _after_reducing(options: Options, output: str) -> Sequence[str]:
    return ["verify", output, "--deep"]


def _after_classifier(options: Options, output: str) -> Sequence[str] | None:
    if not options.get("selections"):
        return None  # what is to be compared with is not known
    shown = _shards({"shards": options.get("validation_shards") or options.get("shards")})
    selections = options.get("validation_selections") or options["selections"]
    return ["evaluate", "images", "--selections", selections, *shown, "--frozen", output]


STAGES: tuple[StageSpec, ...] = (
    StageSpec(
        name="pack",
        command="pipeline.commands.first_steps:pack",
        line="Turn a folder of images into tar shards.",
        configs=("stages.pack:PackConfig",),
        next=_after_pack,
    ),
    StageSpec(
        name="pretrain-mae",
        command="pipeline.commands.run:pretrain_mae",
        line="Train a masked autoencoder.",
        configs=(
            "stages.pretrain_mae:PretrainConfig",
            "pipeline.training.options:TrainingRunOptions",
        ),
        output="mae.safetensors",
        on_shards=True,
        next=_after_pretraining,
    ),
    StageSpec(
        name="score",
        command="pipeline.commands.run:score",
        line="Score patches into a cache.",
        configs=("stages.score:ScoreConfig", "pipeline.units.runner:UnitOptions"),
        on_shards=True,
        grows=True,
        fed_by={"mae": ("$pretrain-mae/mae.safetensors",)},
        next=_after_scoring,
    ),
    StageSpec(
        name="train-ranker",
        command="pipeline.commands.run:train_ranker",
        line="Train a ranker from a cache.",
        configs=("stages.train_ranker:TrainRankerConfig", "pipeline.training.options:RunOptions"),
        output="ranker.safetensors",
        on_shards=True,
        fed_by={"cache": ("$score",), "maps": ("$teacher",)},
        next=_after_ranker,
    ),
    StageSpec(
        name="select",
        command="pipeline.commands.run:select",
        line="Write the top-k patches of every image.",
        configs=("stages.select_patches:SelectConfig", "pipeline.units.runner:UnitOptions"),
        on_shards=True,
        grows=True,
        fed_by={"ranker": ("$train-ranker",)},
        next=_after_selection,
    ),
    StageSpec(
        name="reduce",
        command="pipeline.commands.reducing:reduce",
        line="Write shards that hold only what was kept.",
        configs=("stages.reduce:ReduceConfig", "pipeline.units.options:ShardOptions"),
        on_shards=True,
        grows=True,
        fed_by={"selections": ("$select",)},
        next=_after_reducing,
    ),
    StageSpec(
        name="train-classifier",
        command="pipeline.commands.run:train_classifier",
        line="Fine-tune a classifier on kept patches.",
        configs=(
            "stages.training.classifier_config:TrainClassifierConfig",
            "pipeline.training.options:TrainingRunOptions",
        ),
        output="classifier.safetensors",
        on_shards=True,
        next=_after_classifier,
    ),
    StageSpec(
        name="evaluate-patches",
        command="pipeline.commands.evaluations:patches",
        line="Measure selections against objects.",
        words=("evaluate", "patches"),
        configs=("stages.evaluate_patches:EvaluateConfig",),
        output="evaluation.parquet",
        fed_by={"selections": ("$select",), "teacher": ("$teacher",)},
        takes_several=frozenset({"selections"}),
    ),
    StageSpec(
        name="evaluate-images",
        command="pipeline.commands.evaluations:images",
        line="Measure selections by a classifier.",
        words=("evaluate", "images"),
        configs=("stages.evaluate_images:EvaluateImagesConfig",),
        on_shards=True,
        output="classification.parquet",
        fed_by={"selections": ("$select",)},
        takes_several=frozenset({"selections"}),
    ),
    StageSpec(
        name="evaluate-ranking",
        command="pipeline.commands.evaluations:ranking",
        line="Compare the order of patches by two sources of scores.",
        words=("evaluate", "ranking"),
        configs=("stages.evaluate_ranking:RankingConfig",),
        output="agreement.parquet",
        fed_by={"first": ("$select",), "second": ("$teacher",)},
    ),
    StageSpec(
        name="report",
        command="pipeline.commands.run:report",
        line="Draw a page of pictures and tables.",
        configs=("stages.report:ReportConfig",),
        output=".ltrp-report",
        on_shards=True,
        fed_by={
            "selections": ("$select",),
            "mae": ("$pretrain-mae/mae.safetensors",),
            "teacher": ("$teacher",),
            "evaluation": ("$evaluate-patches",),
            "ranking": ("$evaluate-ranking",),
            "training": ("$pretrain-mae", "$train-ranker"),
            "cache": ("$score",),
        },
        takes_several=frozenset({"selections", "ranking", "training", "cache"}),
    ),
)
"""In the order of a run."""

NAMES: tuple[str, ...] = tuple(spec.name for spec in STAGES)


def stage(name: str) -> StageSpec:
    """Returns the stage of a section's command.

    Raises:
        KeyError: there is none.
    """
    return {spec.name: spec for spec in STAGES}[name]
