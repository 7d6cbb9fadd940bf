"""Runs the report stage: gathers what the other stages left on the disk, writes the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ltrp_core.errors import RequestError
from ltrp_core.mae import MaskedAutoencoder, load_mae
from ltrp_core.rankers import load_ranker, read_config
from ltrp_core.rankers.folder import CONFIG, WEIGHTS
from ltrp_core.selectors import SelectorOptions
from ltrp_core.selectors.class_attention import open_dino
from ltrp_core.shipped_weights import SHIPPED_RANKERS, WEIGHTS_FOLDER
from pipeline.annotations import open_annotations
from pipeline.evaluation.ranking import read_tables
from pipeline.evaluation.selections import open_selections
from pipeline.evaluation.tables import read_differences, read_groups, read_rows
from pipeline.files import file_sha256
from pipeline.inputs import Shard
from pipeline.inputs.samples import read_samples
from pipeline.inputs.shards import with_image_ext
from pipeline.report import ReportData, RunCard, TrainingCurve, read_cache_figures, write_report
from pipeline.store.cache import Cache
from pipeline.store.kinds import CACHES, check_kind, open_cache_of
from pipeline.store.run_file import read_run
from pipeline.store.run_log import images_per_second
from pipeline.store.storage.local import LocalStorage
from pipeline.store.units import unit_name
from pipeline.training.folder import read_curve
from stages import report
from stages.evaluation.compared import missing_references
from stages.evaluation.rows import EvaluationRow
from stages.protocols import Progress, Sample, Summary
from stages.score_maps import ScoreMaps, teacher_maps
from stages.types import SelectRun


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportInputs:
    """What the other stages left on the disk."""

    selections: Sequence[str | Path]
    """Of `select`: the gallery shows the first images of the first one, beside all of them"""
    shards: Sequence[Shard]
    """That they were selected from"""
    mae: str
    """Weights the scores were made with"""
    labels: Sequence[str] = ()
    """What the page calls the selections"""
    teacher: str | Path | None = None
    """Cache of `score --crop eval --sampler cover`"""
    evaluation: Path | None = None
    """Of `evaluate patches`"""
    annotations: Path | None = None
    """Of any format that `evaluate patches` takes, to draw the outlines"""
    training: Sequence[Path] = ()
    """Folders of the training stages: their curves, and how far the heads look of the ranker that
    selected"""
    cache: Sequence[str | Path] = ()
    """Further caches that are described"""
    ranking: Sequence[Path] = ()
    """Of `evaluate ranking`"""
    dino: str = ""
    """Weights of DINO's ViT-S, whose heads stand beside the ranker's"""


def run_report(
    config: report.ReportConfig, inputs: ReportInputs, out: Path, progress: Progress
) -> Summary:
    """Writes the page into `out`/index.html.

    Args:
        config: options of the gallery.
        inputs: what is shown.
        out: a new or empty folder, or an earlier report, which is replaced.
        progress: counts the images.

    Raises:
        RequestError: an input is missing, is no such thing or does not fit the others.
    """
    selections = open_selections(inputs.selections, inputs.labels)
    selected = next(iter(selections.values()))
    model = _teacher_model(inputs.mae, selected)
    dino = _dino(inputs.dino)
    cover, teacher = _cover(inputs.teacher, selected)
    _check_folders(inputs)
    curves = [_curve(folder) for folder in inputs.training]
    caches = [
        *(open_cache_of("--cache", path, *CACHES) for path in inputs.cache),
        *([cover] if cover else []),
        *selections.values(),
    ]
    source = open_annotations(inputs.annotations) if inputs.annotations is not None else None
    summary = Summary(stage="report", done=1, notes=source.notes if source is not None else [])
    gallery = []
    units = report.gallery_keys(selected, config)
    with progress.task("report", len(units), "images") as bar:
        for image in report.run(
            config,
            _samples(inputs.shards, selected, set(units.values())),
            selections=selections,
            mae=model,
            teacher=teacher,
            annotations=source,
        ):
            gallery.append(image)
            bar.advance(1)
    if gallery:
        summary.notes += missing_references({name for image in gallery for name in image.scores})
    evaluation = inputs.evaluation
    cards = [_training_card(folder) for folder in inputs.training]
    data = ReportData(
        title="Which patches matter",
        grid=model.grid,
        gallery=gallery,
        rows=_evaluation_rows(evaluation),
        differences=read_differences(evaluation) if evaluation is not None else [],
        ranking=[table for folder in inputs.ranking for table in read_tables(folder)],
        attention=_profiles(model, dino, inputs.training, selections, gallery, summary),
        curves=curves,
        caches=[read_cache_figures(found) for found in caches],
        runs=cards + [_cache_card(found) for found in caches],
    )
    summary.n_ok = len(gallery)
    summary.output = str(write_report(data, out))
    return summary


def _teacher_model(mae: str, selected: Cache) -> MaskedAutoencoder:
    check_kind("--mae", mae, "pretrain-mae", known_only=True)
    model = load_mae(mae).eval()
    grid = SelectRun.of(selected.run, "--selections").grid
    if grid != model.grid:
        raise RequestError(
            f"the selections are of a {grid} x {grid} grid, the masked autoencoder {mae} of "
            f"{model.grid} x {model.grid}; pass the one the ranker learned from"
        )
    return model


def _cover(teacher: str | Path | None, selected: Cache) -> tuple[Cache | None, ScoreMaps | None]:
    if teacher is None:
        return None, None
    cover, run = open_cache_of("--teacher", teacher, "score"), SelectRun.of(selected.run)
    return cover, teacher_maps(cover, run.grid, run.crop)


def _check_folders(inputs: ReportInputs) -> None:
    """Raises RequestError unless every folder was made by the command that its option names."""
    for folder in inputs.training:
        check_kind("--training", folder, "pretrain-mae", "train-ranker", known_only=True)
    for folder in inputs.ranking:
        check_kind("--ranking", folder, "evaluate ranking", known_only=True)
    if inputs.evaluation is not None:
        check_kind("--evaluation", inputs.evaluation, "evaluate patches")


def _samples(shards: Sequence[Shard], selected: Cache, units: set[str]) -> Iterator[Sample]:
    """Yields the samples of the shards that some units were made of, read as they were then."""
    for shard in with_image_ext(shards, str(selected.identity.get("image_ext", ""))):
        name = unit_name(shard.name)
        if name in units:
            was_whole = selected.rows[name].damage is None
            yield from read_samples(shard, "strict" if was_whole else "salvage")


def _evaluation_rows(folder: Path | None) -> list[EvaluationRow]:
    if folder is None:
        return []
    return [row for group in read_groups(folder) for row in read_rows(folder, group)]


def _profiles(
    mae: MaskedAutoencoder,
    dino: nn.Module | None,
    training: Sequence[Path],
    selections: Mapping[str, Cache],
    gallery: Sequence[report.GalleryImage],
    summary: Summary,
) -> list[report.AttentionProfile]:
    return [
        *_attention(mae, training, selections, gallery, summary),
        *_dino_attention(dino, gallery, summary),
    ]


def _attention(
    mae: MaskedAutoencoder,
    training: Sequence[Path],
    selections: Mapping[str, Cache],
    gallery: Sequence[report.GalleryImage],
    summary: Summary,
) -> Iterator[report.AttentionProfile]:
    """Yields the profiles of the teacher and of the ranker that selected, if it is at hand.

    That is, if its folder is given or the package carries it. Where no ranker selected, the first
    one given is as good as any. A ranker that is no plain vision transformer has none, and the
    summary says so.
    """
    if not gallery:
        return
    photos = [image.photo for image in gallery]
    yield report.attention_profile("Teacher's encoder", mae, photos)
    runs = [SelectRun.of(cache.run, label) for label, cache in selections.items()]
    wanted = next((run.weights for run in runs if run.weights), None)
    folders = [folder for folder in training if (folder / WEIGHTS).is_file()]
    shipped = [WEIGHTS_FOLDER / name for name in SHIPPED_RANKERS] if wanted is not None else []
    for folder in [*folders, *shipped]:
        if wanted is None or file_sha256(folder / WEIGHTS) == wanted:
            try:
                yield report.attention_profile("Ranker", load_ranker(folder), photos)
            except RequestError as error:
                summary.notes.append(f"the page has no attention distances of the ranker: {error}")
            return
    if folders:
        summary.notes.append(
            f"none of the rankers in {', '.join(map(str, folders))} is the one that selected; the "
            "page has no attention distances of it"
        )


def _dino(weights: str) -> nn.Module | None:
    return open_dino(SelectorOptions(weights=weights)).module.eval() if weights else None


def _dino_attention(
    dino: nn.Module | None, gallery: Sequence[report.GalleryImage], summary: Summary
) -> Iterator[report.AttentionProfile]:
    """Yields the profile of DINO, which learned without labels and without masks (Fig. 8)."""
    if not gallery or not isinstance(dino, VisionTransformer):
        return
    try:
        yield report.attention_profile("DINO", dino, [image.photo for image in gallery])
    except RequestError as error:
        summary.notes.append(f"the page has no attention distances of DINO: {error}")


def _identity(folder: Path) -> dict[str, object]:
    try:
        return read_run(LocalStorage(folder))
    except RequestError as error:
        raise RequestError(
            f"{folder} is no --out folder of a training stage: run.json is missing or unreadable"
        ) from error


def _curve(folder: Path) -> TrainingCurve:
    """Returns how a training went; of a ranker also which epoch is kept, and the ceiling."""
    stage, rows = str(_identity(folder)["stage"]), read_curve(folder)
    if not (folder / CONFIG).is_file():
        return TrainingCurve(stage=stage, name=folder.name, rows=rows)
    extra = read_config(folder).get("extra", {})
    return TrainingCurve(
        stage=stage,
        name=folder.name,
        rows=rows,
        kept_epoch=extra.get("epoch"),
        measures=extra.get("measures", {}),
        ceiling=extra.get("ceiling", {}),
    )


def _training_card(folder: Path) -> RunCard:
    options = _identity(folder)
    curve = read_curve(folder)
    facts = {"epochs": len(curve), **(curve[-1] if curve else {})}
    return RunCard(stage=str(options.pop("stage")), name=folder.name, options=options, facts=facts)


def _cache_card(cache: Cache) -> RunCard:
    options = dict(cache.run)
    rows = cache.rows.values()
    facts = {
        "units": len(rows),
        "images ok": sum(row.n_ok for row in rows),
        "images bad": sum(row.n_bad for row in rows),
        "images/s per worker": images_per_second(cache.storage) or "-",
        "bytes": sum(row.bytes for row in rows),
    }
    name = cache.url.rstrip("/").rsplit("/", 1)[-1]
    return RunCard(stage=str(options.pop("stage")), name=name, options=options, facts=facts)
