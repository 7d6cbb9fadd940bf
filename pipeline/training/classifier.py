"""Runs `train-classifier`: stages images, labels and selections, trains, writes what comes out."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltrp_core.classifiers import save_classifier
from ltrp_core.errors import RequestError
from ltrp_core.selectors import selector_spec
from pipeline.files import file_sha256
from pipeline.inputs import Shard
from pipeline.plots import plot_curves
from pipeline.store.kinds import open_cache_of
from pipeline.training.launch import Job, Launch, Process, launch
from pipeline.training.options import TrainingRunOptions
from pipeline.training.staged_choices import StagedChoices, check_selections, stage_choices
from pipeline.training.staged_labels import labels_sha256, stage_labels
from pipeline.training_data import StagedImages, stage_images
from stages import train_classifier
from stages.options import identity
from stages.protocols import Progress, Summary
from stages.train_classifier import TrainedClassifier
from stages.training.choosing import Chooser, check_stored
from stages.training.classifier_config import TrainClassifierConfig
from stages.training.held_out_classes import TOP1, TOP5
from stages.training.labeled_views import LabeledImages

STAGE = "train-classifier"
LAST = "last"
MEASURES = (TOP1, TOP5, "validation_loss")
"""What is shown of an epoch"""
_PATHS = ("init", "weights")


@dataclass(frozen=True, slots=True)
class ClassifierInputs:
    """What is trained and validated on; picklable."""

    shards: tuple[Shard, ...]
    selections: str = ""
    """--out folder of `select`; empty: none"""
    validation_shards: tuple[Shard, ...] = ()
    """Empty: a part of `shards` is validated on"""
    validation_selections: str = ""
    """Of `validation_shards`; empty: `selections` holds those, too"""


def run_train_classifier(
    config: TrainClassifierConfig,
    inputs: ClassifierInputs,
    out: Path,
    progress: Progress,
    options: TrainingRunOptions | None = None,
    how: Launch | None = None,
) -> tuple[list[dict[str, float]], Summary]:
    """Trains a classifier of kept patches into `out`; returns the curve too.

    Raises:
        RequestError: wrong input, or `out` holds another run.
    """
    job = ClassifierJob(config, inputs, out.absolute(), options or TrainingRunOptions())
    result = launch(job, progress, how)
    shutil.rmtree(job.staged if job.options.scratch else job.staged.parent, ignore_errors=True)
    summary = Summary(**result["summary"])
    summary.output = str(job.out)
    return [dict(row) for row in result["history"]], summary


class ClassifierJob(Job):
    """The training of a classifier from labeled images."""

    stage = STAGE

    def __init__(
        self,
        config: TrainClassifierConfig,
        inputs: ClassifierInputs,
        out: Path,
        options: TrainingRunOptions,
    ) -> None:
        self.config, self.inputs, self.out = config, inputs, out
        self.options, self.device = options, config.device
        self.precision = config.precision
        self.weights_sha256: str | None = None
        """Of the selector's weights, where the training was started; `identity` finds it"""

    @property
    def staged(self) -> Path:
        """Beside `out`, not in it: it is filled before `out` is claimed for these images."""
        return self.scratch(self.out.with_name(f".{self.out.name}.scratch"))

    def identity(self, progress: Progress) -> dict[str, Any]:
        """Returns options, images, labels, selections and weights; brings the images near."""
        data, validation = self._stage(progress)
        config = settled(self.config, data, validation)
        start = train_classifier.make_classifier(config, len(data.classes))
        if config.selector and (find := selector_spec(config.selector).weights_file):
            self.weights_sha256 = file_sha256(find(config.weights))
        Chooser.make(config, start.architecture, data, "cpu")
        found = {**identity(self.config), **_described(data)}
        if validation is not None:
            found["validation"] = _described(validation)
        if self.weights_sha256 is not None:
            found["weights_sha256"] = self.weights_sha256
        return found

    def train(self, process: Process) -> dict[str, Any]:
        """Trains; the first process writes the folder, and returns curve and summary."""
        data, validation = self._stage(process.progress)
        sets = [data] if validation is None else [data, validation]
        try:
            trained = train_classifier.run(
                settled(self.config, data, validation),
                data=data,
                validation=validation,
                folder=process.folder,
                progress=process.progress,
                ranks=process.ranks,
                device=process.device,
                loader_processes=process.loader_processes(decodes=True),
                weights_sha256=self.weights_sha256,
            )
        finally:
            for one in sets:
                _staged_images(one).close()
        if not process.ranks.is_first:
            return {}
        bad = [bad for one in sets for bad in one.images.bad]
        trained.notes += [f"left out {one.key}: {one.message}" for one in bad]
        return _write(trained, self.config, data, self.weights_sha256, self.out)

    def _stage(self, progress: Progress) -> tuple[LabeledImages, LabeledImages | None]:
        inputs, folder = self.inputs, self.staged
        if inputs.validation_selections and not (inputs.validation_shards and inputs.selections):
            raise RequestError(
                "--validation-selections are of --validation-shards, beside --selections; pass "
                "all three"
            )
        if inputs.selections:
            check_stored(self.config)
        data = self._labeled(inputs.shards, inputs.selections, "--selections", folder, progress)
        if not inputs.validation_shards:
            return data, None
        own = inputs.validation_selections
        return data, self._labeled(
            inputs.validation_shards,
            own or inputs.selections,
            "--validation-selections" if own else "--selections",
            folder / "validation",
            progress,
        )

    def _labeled(
        self,
        shards: Sequence[Shard],
        selections: str,
        option: str,
        folder: Path,
        progress: Progress,
    ) -> LabeledImages:
        ratio = self.config.keep_ratio
        if selections:
            cache = open_cache_of(option, selections, "select")
            check_selections(cache, option, ratio)
        data = stage_labels(shards, StagedImages(stage_images(shards, folder / "images", progress)))
        if not selections:
            return data
        staged = StagedChoices(stage_choices(cache, option, data, ratio, folder / "choices"))
        return dataclasses.replace(data, stored=staged)


def settled(
    config: TrainClassifierConfig, data: LabeledImages, validation: LabeledImages | None
) -> TrainClassifierConfig:
    """Returns the options with the size of the views that were selected from, if any were.

    Raises:
        RequestError: selections of other sizes than each other, or than --image-size.
    """
    sets = [data] if validation is None else [data, validation]
    runs = [one.stored.run for one in sets if isinstance(one.stored, StagedChoices)]
    if not runs:
        return config
    sizes = {(run.image_size, run.patch_size) for run in runs}
    size = runs[0].image_size
    if len(sizes) > 1 or config.image_size not in (0, size):
        theirs = " and ".join(f"{side} px ({patch} px patches)" for side, patch in sorted(sizes))
        raise RequestError(
            f"the selections are of views of {theirs}, and --image-size is {config.image_size}; "
            "take all of one size, and leave --image-size out"
        )
    return dataclasses.replace(config, image_size=size)


def _staged_images(data: LabeledImages) -> StagedImages:
    assert isinstance(data.images, StagedImages)
    return data.images


def _described(data: LabeledImages) -> dict[str, Any]:
    """Returns what identifies images, labels and selections."""
    found = {**data.images.identity, "labels_sha256": labels_sha256(data)}
    if isinstance(data.stored, StagedChoices):
        found["selections"] = dict(data.stored.identity)
    return found


def _write(
    trained: TrainedClassifier,
    config: TrainClassifierConfig,
    data: LabeledImages,
    weights_sha256: str | None,
    out: Path,
) -> dict[str, Any]:
    """Writes the classifier, the last epoch's weights, config and plots."""
    history = trained.trained.history
    # Paths of this machine stay here: config.json goes to others.
    extra: dict[str, Any] = {
        "training": {name: v for name, v in identity(config).items() if name not in _PATHS},
        "kept": trained.keep,
        "images": dict(trained.counts),
    }
    if trained.init_sha256:
        extra["started_from"] = {"sha256": trained.init_sha256}
    if isinstance(data.stored, StagedChoices):
        extra["selected_by"] = dict(data.stored.identity["run"])
    elif weights_sha256 is not None:
        extra["weights_sha256"] = weights_sha256
    vit, architecture, classes = trained.vit, trained.architecture, data.classes
    chosen = {name: value.clone() for name, value in vit.state_dict().items()}
    for state, epoch, folder in (
        (trained.last, len(history), out / LAST),
        (chosen, trained.kept_epoch, out),
    ):
        vit.load_state_dict(dict(state))
        row = history[epoch - 1]
        measured = {name: row[name] for name in row if name not in ("epoch", "lr")}
        own = extra | {"epoch": epoch, "measures": measured}
        save_classifier(vit, architecture, classes, folder, own)
    shown = ("epoch", "loss", *MEASURES)
    plot_curves([{k: row[k] for k in shown if k in row} for row in history], out, "curve")
    summary = trained.summary
    summary.notes += [*trained.notes, *_closing_notes(trained)]
    return {"history": history, "summary": dataclasses.asdict(summary)}


def _closing_notes(trained: TrainedClassifier) -> list[str]:
    history, epoch = trained.trained.history, trained.kept_epoch
    notes = [f"weights of epoch {epoch} of {len(history)} are kept; the last are in {LAST}/"]
    if trained.trained.stopped_early:
        notes.append("stopped early: no epoch was better for --patience epochs")
    row: Mapping[str, float] = history[epoch - 1]
    if TOP1 in row:
        notes.append(
            f"validation: top-1 {row[TOP1]:.1%} ({row['correct_top1']:.0f} of "
            f"{row['validated']:.0f} images), top-5 {row[TOP5]:.1%}"
        )
    return notes
