"""The commands that measure: selections by objects and by classifiers, scores against scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.annotations import format_names
from pipeline.commands.options import (
    PATH,
    PLACE,
    OneOf,
    config_options,
    finish,
    label_option,
    listed,
    out_option,
    selections_option,
    shards_option,
    unit_size_option,
)
from pipeline.console.progress import open_progress
from pipeline.console.terminal import say
from pipeline.evaluation.patches import run_evaluate_patches
from stages.evaluate_images import EvaluateImagesConfig
from stages.evaluate_patches import EvaluateConfig
from stages.evaluate_ranking import RankingConfig


@click.group()
def evaluate() -> None:
    """Measure selections and scores."""


@evaluate.command("patches")
@selections_option
@label_option
@click.option(
    "--annotations",
    type=PATH,
    required=True,
    help="COCO instances JSON, or a folder: PASCAL VOC, ADE20K, or mask PNGs",
)
@click.option(
    "--format",
    type=OneOf(format_names),
    default="auto",
    show_default=True,
    help="of the annotations; auto: by what is there",
)
@click.option("--teacher", type=PLACE, help="cache of `score --crop eval --sampler cover`")
@click.option(
    "--foreground",
    type=click.Choice(["masks", "boxes"]),
    default="masks",
    show_default=True,
    help="what of an object counts where annotations have both: its outline or its box",
)
@out_option("evaluation")
@config_options(EvaluateConfig)
def patches(
    selections: tuple[str, ...],
    label: tuple[str, ...],
    annotations: Path,
    format: str,
    teacher: str | None,
    foreground: str,
    out: Path,
    **options: Any,
) -> int:
    """Precision, recall, F1 and IoU of kept patches against objects (Fig. 5).

    Beside each selection: its top-k alone, the teacher, patch variance, center, random and the
    oracle, all at the same k. Objects of all categories, or of those that ImageNet-1K has, or has
    not, as a label. Prints the tables; writes them as text, Markdown, CSV and Parquet, with
    figures, and the measures of every image. A second run into the same folder need not read
    annotations again.

    Example: ltrp-pipeline evaluate patches --selections selections --annotations instances.json

    Any number of selections, each minus one of them: --selections A --selections B --selections C
    --against B
    """
    _, summary = run_evaluate_patches(
        EvaluateConfig(**options),
        selections=selections,
        labels=label,
        annotations=annotations,
        teacher=teacher,
        foreground=foreground,
        format=format,
        out=out,
        progress=open_progress(),
    )
    say((out / "evaluation.txt").read_text("utf-8"), nl=False)
    return finish(summary)


@evaluate.command("images")
@selections_option
@label_option
@shards_option
@unit_size_option
@out_option("classification")
@config_options(EvaluateImagesConfig)
def images(
    selections: tuple[str, ...],
    label: tuple[str, ...],
    shards: tuple[str, ...],
    unit_size: int,
    out: Path,
    **options: Any,
) -> int:
    """Top-1 and top-5 of a classifier that sees the kept patches alone (Fig. 4).

    The classifier is not trained here: a timm model by name, with its pretrained weights from the
    hub or those of a file. A vision transformer is given only the kept tokens, any other model the
    view with the rest filled. Beside the selections: the full image, and selectors without weights
    at the same k. SHARDS are those that were selected from, with labels: .cls or .json members, or
    class folders. Prints the tables; writes them as text, Markdown, CSV and Parquet, with figures,
    and the measures of every image.

    Example: ltrp-pipeline evaluate images --selections selections --shards val --frozen
    timm:vit_small_patch16_224
    """
    from pipeline.evaluation.images import run_evaluate_images

    _, summary = run_evaluate_images(
        EvaluateImagesConfig(**options),
        selections=selections,
        labels=label,
        shards=listed(shards, unit_size),
        out=out,
        progress=open_progress(),
    )
    say((out / "classification.txt").read_text("utf-8"), nl=False)
    return finish(summary)


@evaluate.command("ranking")
@click.argument("first", type=PLACE)
@click.argument("second", type=PLACE)
@out_option("ranking")
@config_options(RankingConfig)
def ranking(first: str, second: str, out: Path, **options: Any) -> int:
    """Compare the order of patches by two sources of scores.

    FIRST and SECOND are caches of `select`, or of `score --sampler cover`: a ranker and its
    teacher, two rankers, two draws of a teacher. Images are joined by key and must have the same
    views. Of a teacher that scored every patch twice it also tells how much of its order is noise.

    Example: ltrp-pipeline evaluate ranking selections teacher --out ranking
    """
    from pipeline.evaluation.ranking import run_evaluate_ranking

    summary = run_evaluate_ranking(RankingConfig(**options), first, second, out, open_progress())
    say((out / "ranking.txt").read_text("utf-8"), nl=False)
    return finish(summary)
