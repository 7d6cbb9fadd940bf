"""The commands: options from the stages' configs, one stage run, its summary printed."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from pipeline import run_stage
from pipeline.progress import open_progress, print_summary
from pipeline.shards import find_shards
from pipeline.signals import interrupt_on_signals
from pipeline.store.cache import open_cache
from pipeline.workers import open_pool
from stages.evaluate_patches import EvaluateConfig
from stages.pack import PackConfig
from stages.pretrain_mae import PretrainConfig
from stages.protocols import Summary
from stages.report import ReportConfig
from stages.score import ScoreConfig
from stages.select_patches import SelectConfig
from stages.train_ranker import TrainRankerConfig

Command = Callable[..., Any]

_PATH = click.Path(path_type=Path)  # type: ignore[type-var]


def config_options(config: type[Any]) -> Callable[[Command], Command]:
    """Returns a decorator that adds one option for every field of a config dataclass."""
    hints = typing.get_type_hints(config)

    def decorate(command: Command) -> Command:
        for field in reversed(dataclasses.fields(config)):
            command = _option(field, hints[field.name])(command)
        return command

    return decorate


def _option(field: dataclasses.Field[Any], hint: Any) -> Callable[[Command], Command]:
    required = field.default is dataclasses.MISSING
    settings: dict[str, Any] = {"help": field.metadata["help"], "required": required}
    if not required:
        settings |= {"default": field.default, "show_default": True}
    if typing.get_origin(hint) is tuple:
        settings |= {"type": typing.get_args(hint)[0], "multiple": True}
    elif typing.get_origin(hint) is Literal:
        settings["type"] = click.Choice(typing.get_args(hint))
    elif hint is Path:
        settings["type"] = _PATH
    elif isinstance(hint, types.UnionType):
        raise TypeError(f"option {field.name}: give it one type, not {hint}")
    else:
        settings["type"] = hint
    return click.option(f"--{field.name.replace('_', '-')}", field.name, **settings)


def _out(default: str) -> Callable[[Command], Command]:
    return click.option(
        "--out", type=_PATH, default=default, show_default=True, help="output folder"
    )


_shards = click.option(
    "--shards",
    multiple=True,
    required=True,
    help="tars: paths, globs, folders, 'train-{0000..0146}.tar'; may be given repeatedly",
)
_workers = click.option(
    "--workers",
    default="auto",
    show_default=True,
    help="Ray actors: a number, auto (one a GPU, else one a CPU), or 0 = no Ray, this process",
)
_ray_address = click.option("--ray-address", default=None, help="of a running Ray cluster")


def _finish(summary: Summary) -> int:
    print_summary(summary)
    return 1 if summary.failed else 0


@click.command()
@click.argument("images", type=_PATH)
@_out("shards")
@config_options(PackConfig)
def pack(images: Path, out: Path, **options: Any) -> int:
    """Turn a folder of images into tar shards.

    IMAGES is searched with its subfolders; the first subfolder names the class (ImageFolder).

    Example: ltrp-pipeline pack photos --out shards
    """
    return _finish(run_stage.run_pack(PackConfig(**options), images, out, open_progress()))


@click.command("pretrain-mae")
@_shards
@_out("mae")
@config_options(PretrainConfig)
def pretrain_mae(shards: tuple[str, ...], out: Path, **options: Any) -> int:
    """Train a masked autoencoder on raw pixels.

    Writes OUT/mae.safetensors, for `score --mae`.

    Example: ltrp-pipeline pretrain-mae --shards shards --out mae --model mae_small
    """
    config, found = PretrainConfig(**options), find_shards(shards)
    return _finish(run_stage.run_pretrain(config, found, out, open_progress()))


@click.command()
@_shards
@_out("cache")
@_workers
@_ray_address
@config_options(ScoreConfig)
def score(
    shards: tuple[str, ...], out: Path, workers: str, ray_address: str | None, **options: Any
) -> int:
    """Score patches into a cache.

    A frozen masked autoencoder reconstructs every image from sampled visible patches, and again
    without each of them; the change is the patch's score. One unit a shard; complete ones are
    left alone, so the same command goes on after an interruption.

    Example: ltrp-pipeline score --shards 'train-{0000..0146}.tar' --mae mae.pth --out cache
    """
    config, found = ScoreConfig(**options), find_shards(shards)
    with open_pool(workers, ray_address, interrupt_on_signals) as pool:
        return _finish(run_stage.run_score(config, found, out, pool, open_progress()))


@click.command("train-ranker")
@click.option("--cache", type=_PATH, required=True, help="--out folder of `score`")
@_shards
@_out("ranker")
@config_options(TrainRankerConfig)
def train_ranker(cache: Path, shards: tuple[str, ...], out: Path, **options: Any) -> int:
    """Train a ranker from a cache; the masked autoencoder is not needed.

    The recorded crops are replayed on the images, joined by key. Writes OUT/ranker.safetensors
    and OUT/config.json, for `select --ranker`.

    Example: ltrp-pipeline train-ranker --cache cache --shards shards --out ranker
    """
    config, found = TrainRankerConfig(**options), find_shards(shards)
    measures, summary = run_stage.run_train_ranker(config, cache, found, out, open_progress())
    click.echo("  ".join(f"{name} {value:.4g}" for name, value in measures.items()))
    return _finish(summary)


@click.command()
@_shards
@_out("selections")
@_workers
@_ray_address
@config_options(SelectConfig)
def select(
    shards: tuple[str, ...], out: Path, workers: str, ray_address: str | None, **options: Any
) -> int:
    """Write the top-k patches of every image.

    Example: ltrp-pipeline select --shards shards --ranker ranker --keep-ratio 0.5
    """
    config, found = SelectConfig(**options), find_shards(shards)
    with open_pool(workers, ray_address, interrupt_on_signals) as pool:
        return _finish(run_stage.run_select(config, found, out, pool, open_progress()))


@click.group()
def evaluate() -> None:
    """Compare selections with annotations."""


@evaluate.command("patches")
@click.option("--selections", type=_PATH, required=True, help="--out folder of `select`")
@click.option("--annotations", type=_PATH, required=True, help="COCO instances JSON")
@click.option("--teacher", type=_PATH, help="cache of `score --crop eval --sampler cover`")
@click.option(
    "--foreground",
    type=click.Choice(["masks", "boxes"]),
    default="masks",
    show_default=True,
    help="what of an object counts: its outline or its box",
)
@_out("evaluation")
@config_options(EvaluateConfig)
def patches(
    selections: Path,
    annotations: Path,
    teacher: Path | None,
    foreground: str,
    out: Path,
    **options: Any,
) -> int:
    """Precision, recall, F1 and IoU of kept patches against objects (Fig. 5).

    Beside the ranker: its top-k alone, the teacher, patch variance, center, random and the oracle,
    all at the same k. Prints the table; writes it as text, Markdown, CSV and Parquet.

    Example: ltrp-pipeline evaluate patches --selections selections --annotations instances.json
    """
    from pipeline.evaluation_table import format_table

    rows, summary = run_stage.run_evaluate_patches(
        EvaluateConfig(**options),
        selections=selections,
        annotations=annotations,
        teacher=teacher,
        foreground=foreground,
        out=out,
        progress=open_progress(),
    )
    click.echo(format_table(rows))
    return _finish(summary)


@click.command()
@click.option("--selections", type=_PATH, required=True, help="--out folder of `select`")
@_shards
@click.option("--mae", required=True, help="weights the scores were made with")
@click.option("--teacher", type=_PATH, help="cache of `score --crop eval --sampler cover`")
@click.option("--evaluation", type=_PATH, help="--out folder of `evaluate patches`")
@click.option("--annotations", type=_PATH, help="COCO instances JSON, to draw the outlines")
@click.option(
    "--training", type=_PATH, multiple=True, help="--out folders of the training stages, for curves"
)
@_out("report")
@config_options(ReportConfig)
def report(shards: tuple[str, ...], **options: Any) -> int:
    """Draw a page of pictures and tables.

    One folder that opens from the disk, without a network: OUT/index.html.

    Example: ltrp-pipeline report --selections selections --shards shards --mae mae.pth
    """
    from pipeline.run_report import run_report

    names = {field.name for field in dataclasses.fields(ReportConfig)}
    config = ReportConfig(**{name: options.pop(name) for name in names})
    found = find_shards(shards)
    return _finish(run_report(config, shards=found, progress=open_progress(), **options))


@click.command()
@_out("demo-out")
@click.option("--quick", is_flag=True, help="a short training: within 90 s on two cores")
def demo(out: Path, quick: bool) -> int:
    """Run every stage on a few photographs.

    The photographs are those that scikit-image and scikit-learn ship; the masked autoencoder and
    the ranker are trained here, for real. Ends with a table and OUT/report/index.html.

    Example: ltrp-pipeline demo --out demo-out
    """
    from pipeline.demo.demo import run_demo

    return run_demo(out, quick=quick)


@click.command()
@click.argument("cache", type=_PATH)
@click.option("--deep", is_flag=True, help="also read every file against its sha256")
def verify(cache: Path, deep: bool) -> int:
    """Check a cache, unit by unit; prints one line a fault.

    Example: ltrp-pipeline verify cache --deep
    """
    from pipeline.store.verify import problems

    opened = open_cache(cache)
    faults = list(problems(opened, deep=deep))
    for fault in faults:
        click.echo(fault)
    n_ok = sum(receipt.n_ok for receipt in opened.receipts.values())
    n_bad = sum(receipt.n_bad for receipt in opened.receipts.values())
    click.echo(
        f"{len(opened.units)} complete units, {n_ok} samples ok, {n_bad} bad, {len(faults)} faults"
    )
    return 1 if faults else 0
