"""The commands of the stages: options from their configs, one run, its summary printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands.options import (
    PATH,
    PLACE,
    config_options,
    cut,
    finish,
    given,
    label_option,
    listed,
    on_shards,
    open_pool_of,
    optional_shards_option,
    out_option,
    ray_address_option,
    selections_option,
    shards_option,
    training_workers_option,
)
from pipeline.console.progress import open_progress
from pipeline.console.signals import interrupt_on_signals
from pipeline.console.terminal import printable, say
from pipeline.training.launch import Launch
from pipeline.training.options import RunOptions, TrainingRunOptions
from pipeline.units.run import run_append_views, run_score, run_select
from pipeline.units.runner import UnitOptions
from stages.pretrain_mae import PretrainConfig
from stages.report import ReportConfig
from stages.score import ScoreConfig
from stages.select_patches import SelectConfig
from stages.train_ranker import TrainRankerConfig
from stages.training.classifier_config import TrainClassifierConfig


def _launch(workers: int, ray_address: str | None) -> Launch:
    return Launch(
        workers=workers,
        ray_address=ray_address,
        after_start=interrupt_on_signals,
        on_note=lambda text: say(f"note: {printable(text)}", err=True),
    )


@click.command("pretrain-mae")
@shards_option
@out_option("mae")
@training_workers_option
@ray_address_option
@config_options(TrainingRunOptions)
@config_options(PretrainConfig)
def pretrain_mae(
    shards: tuple[str, ...], out: Path, workers: int, ray_address: str | None, **options: Any
) -> int:
    """Train a masked autoencoder on raw pixels.

    For images unlike those of other people's weights. Killed and started again, it goes on as if
    nothing had happened. Writes OUT/mae.safetensors, for `score --mae`; curves, a TensorBoard log,
    and drawn reconstructions of held-out images.

    Example: ltrp-pipeline pretrain-mae --shards shards --out mae --model mae_small
    """
    from pipeline.training.mae import run_pretrain

    config, run_options = cut(options, PretrainConfig), cut(options, TrainingRunOptions)
    summary = run_pretrain(
        config,
        listed(shards),
        out,
        open_progress(),
        run_options,
        _launch(workers, ray_address),
    )
    return finish(summary)


@click.command()
@shards_option
@out_option("cache", url=True)
@on_shards
@click.option(
    "--append-views",
    type=click.IntRange(min=1),
    help="score so many further views of the finished cache --out, by its own options",
)
@config_options(ScoreConfig)
def score(shards: tuple[str, ...], out: str, append_views: int | None, **options: Any) -> int:
    """Score patches into a cache.

    A frozen masked autoencoder reconstructs every image from sampled visible patches, and again
    without each of them; the change is the patch's score. One unit per shard; complete ones are
    left alone, so the same command goes on after an interruption.

    Example: ltrp-pipeline score --shards 'train-{0000..0146}.tar' --mae mae.pth --out cache
    """
    found = listed(shards, unit_size=options.pop("unit_size"))
    with open_pool_of(options) as pool:
        if append_views is not None:
            return finish(
                run_append_views(
                    given(set(options)), append_views, found, out, pool, open_progress()
                )
            )
        config, units = cut(options, ScoreConfig), cut(options, UnitOptions)
        return finish(run_score(config, found, out, pool, open_progress(), units))


@click.command("train-ranker")
@click.option("--cache", type=PLACE, required=True, help="--out folder of `score`")
@optional_shards_option
@click.option(
    "--maps",
    type=PLACE,
    help="cache of `score --sampler cover`: whole score maps are then validated on too",
)
@out_option("ranker")
@training_workers_option
@ray_address_option
@config_options(RunOptions)
@config_options(TrainRankerConfig)
def train_ranker(
    cache: str,
    shards: tuple[str, ...],
    maps: str | None,
    out: Path,
    workers: int,
    ray_address: str | None,
    **options: Any,
) -> int:
    """Train a ranker from a cache; the masked autoencoder is not needed.

    From a cache with --pixels, or with --shards: the recorded crops are replayed on the images,
    joined by key. Killed and started again, it goes on as if nothing had happened. Writes
    OUT/ranker.safetensors and OUT/config.json, for `select --ranker`; curves, a TensorBoard log.

    Example: ltrp-pipeline train-ranker --cache cache --shards shards --out ranker
    """
    from pipeline.training.curve_table import format_curve
    from pipeline.training.ranker import TrainingInputs, run_train_ranker

    config, run_options = cut(options, TrainRankerConfig), cut(options, RunOptions)
    found = tuple(listed(shards)) if shards else ()
    curve, summary = run_train_ranker(
        config,
        TrainingInputs(cache, found, maps),
        out,
        open_progress(),
        run_options,
        _launch(workers, ray_address),
    )
    say(format_curve(curve))
    return finish(summary)


@click.command("train-classifier")
@shards_option
@click.option(
    "--selections",
    type=PLACE,
    default="",
    help="--out folder of `select`: each image is seen through its stored patches, of its stored "
    "view (--crop eval or resize there)",
)
@click.option(
    "--validation-shards",
    type=PLACE,
    multiple=True,
    help="as --shards: what is validated on; default: a part of --shards",
)
@click.option(
    "--validation-selections",
    type=PLACE,
    default="",
    help="as --selections, of --validation-shards; default: --selections has them, too",
)
@out_option("classifier")
@training_workers_option
@ray_address_option
@config_options(TrainingRunOptions)
@config_options(TrainClassifierConfig)
def train_classifier(
    shards: tuple[str, ...],
    selections: str,
    validation_shards: tuple[str, ...],
    validation_selections: str,
    out: Path,
    workers: int,
    ray_address: str | None,
    **options: Any,
) -> int:
    """Fine-tune a classifier on kept patches.

    A vision transformer is given the kept patches, each with its true position: those of
    --selections, or those that --selector chooses in every view as it is drawn; with neither, the
    full image. Labels are .cls or .json members, or class folders. Killed and started again, it
    goes on as if nothing had happened. Writes OUT/classifier.safetensors and OUT/config.json, for
    `evaluate images --frozen`; curves, a TensorBoard log.

    Example: ltrp-pipeline train-classifier --shards shards --selections selections --keep-ratio 0.5
    --init mae_tiny
    """
    from pipeline.training.classifier import MEASURES, ClassifierInputs, run_train_classifier
    from pipeline.training.curve_table import format_curve

    config, run_options = cut(options, TrainClassifierConfig), cut(options, TrainingRunOptions)
    held_out = tuple(listed(validation_shards)) if validation_shards else ()
    curve, summary = run_train_classifier(
        config,
        ClassifierInputs(tuple(listed(shards)), selections, held_out, validation_selections),
        out,
        open_progress(),
        run_options,
        _launch(workers, ray_address),
    )
    say(format_curve(curve, MEASURES))
    return finish(summary)


@click.command()
@shards_option
@out_option("selections", url=True)
@on_shards
@config_options(SelectConfig)
def select(shards: tuple[str, ...], out: str, **options: Any) -> int:
    """Write the top-k patches of every image.

    Example: ltrp-pipeline select --shards shards --ranker ranker --keep-ratio 0.5
    """
    found = listed(shards, unit_size=options.pop("unit_size"))
    with open_pool_of(options) as pool:
        config, units = cut(options, SelectConfig), cut(options, UnitOptions)
        return finish(run_select(config, found, out, pool, open_progress(), units))


@click.command()
@selections_option
@label_option
@shards_option
@click.option("--mae", type=PLACE, required=True, help="weights the scores were made with")
@click.option("--teacher", type=PLACE, help="cache of `score --crop eval --sampler cover`")
@click.option("--evaluation", type=PATH, help="--out folder of `evaluate patches`")
@click.option("--annotations", type=PATH, help="as of `evaluate patches`, to draw the outlines")
@click.option(
    "--training",
    type=PATH,
    multiple=True,
    help="--out folders of the training stages, for curves and the ranker's attention",
)
@click.option(
    "--ranking",
    type=PATH,
    multiple=True,
    help="--out folders of `evaluate ranking`, for the tables",
)
@click.option(
    "--dino",
    type=PLACE,
    default="",
    help="weights of DINO's ViT-S (a file, or timm:vit_small_patch16_224.dino): how far its heads "
    "look, beside the ranker's (Fig. 8)",
)
@click.option(
    "--cache", type=PLACE, multiple=True, help="more caches to describe: --out folders of `score`"
)
@out_option("report")
@config_options(ReportConfig)
def report(shards: tuple[str, ...], label: tuple[str, ...], out: Path, **options: Any) -> int:
    """Draw a page of pictures and tables.

    One folder that opens from the disk, without a network: OUT/index.html. Photographs with a
    slider for the keep ratio, score maps and reconstructions; then the evaluation, the training's
    curves, how far the models' heads look, what the caches hold, and all options.

    Example: ltrp-pipeline report --selections selections --shards shards --mae mae.pth
    """
    from pipeline.report.gather import ReportInputs, run_report

    config = cut(options, ReportConfig)
    inputs = ReportInputs(shards=listed(shards), labels=label, **options)
    return finish(run_report(config, inputs, out, open_progress()))
