"""The commands: options from the stages' configs, one stage run, its summary printed."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource

from pipeline import run_stage
from pipeline.inputs import find_shards
from pipeline.progress import open_progress, print_summary
from pipeline.signals import interrupt_on_signals
from pipeline.store.cache import open_cache
from pipeline.store.lock import place_lock
from pipeline.store.units import quarantine
from pipeline.unit_runner import UnitOptions
from pipeline.workers import WorkerPool, open_pool
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
    elif hint is bool:
        settings = {"help": field.metadata["help"], "is_flag": True, "default": field.default}
    elif isinstance(hint, types.UnionType):
        raise TypeError(f"option {field.name}: give it one type, not {hint}")
    else:
        settings["type"] = hint
    return click.option(f"--{field.name.replace('_', '-')}", field.name, **settings)


def _out(default: str, *, url: bool = False) -> Callable[[Command], Command]:
    kind, words = (str, "output folder, or an s3:// gs:// URL") if url else (_PATH, "output folder")
    return click.option("--out", type=kind, default=default, show_default=True, help=words)


_shards = click.option(
    "--shards",
    multiple=True,
    required=True,
    help="tars or folders of images: paths, globs, 'train-{0000..0146}.tar', s3:// gs:// hf://"
    " URLs; may be given repeatedly",
)
_unit_size = click.option(
    "--unit-size",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="images a unit, where --shards is a folder of images",
)
_workers = click.option(
    "--workers",
    default="auto",
    show_default=True,
    help="Ray actors: a number, auto (one a GPU, else one a CPU), or 0 = no Ray, this process",
)
_ray_address = click.option("--ray-address", default=None, help="of a running Ray cluster")
_shard_timeout = click.option(
    "--shard-timeout",
    type=click.FloatRange(min=1.0),
    default=3600.0,
    show_default=True,
    help="seconds until a Ray worker that is still at one shard is replaced",
)


def _on_shards(command: Command) -> Command:
    """Adds the options of a stage that turns every shard into a unit."""
    for add in (config_options(UnitOptions), _shard_timeout, _ray_address, _workers, _unit_size):
        command = add(command)
    return command


def _cut(options: dict[str, Any], config: type[Any]) -> Any:
    """Takes the fields of `config` out of `options`; returns the config."""
    names = {field.name for field in dataclasses.fields(config)}
    return config(**{name: options.pop(name) for name in names & set(options)})


def _given(names: set[str]) -> dict[str, Any]:
    """Returns those options of the running command that were given, not left at their default."""
    context = click.get_current_context()
    sources = {name: context.get_parameter_source(name) for name in names}
    return {n: context.params[n] for n in names if sources[n] is ParameterSource.COMMANDLINE}


def _open_pool(options: dict[str, Any]) -> AbstractContextManager[WorkerPool]:
    return open_pool(
        options.pop("workers"),
        ray_address=options.pop("ray_address"),
        item_timeout_s=options.pop("shard_timeout"),
        after_start=interrupt_on_signals,
    )


def _finish(summary: Summary) -> int:
    print_summary(summary)
    return 1 if summary.failed or summary.stopped else 0


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
@_out("cache", url=True)
@_on_shards
@click.option(
    "--append-views",
    type=click.IntRange(min=1),
    help="score so many further views of the finished cache --out, by its own options",
)
@config_options(ScoreConfig)
def score(shards: tuple[str, ...], out: str, append_views: int | None, **options: Any) -> int:
    """Score patches into a cache.

    A frozen masked autoencoder reconstructs every image from sampled visible patches, and again
    without each of them; the change is the patch's score. One unit a shard; complete ones are
    left alone, so the same command goes on after an interruption.

    Example: ltrp-pipeline score --shards 'train-{0000..0146}.tar' --mae mae.pth --out cache
    """
    found = find_shards(shards, unit_size=options.pop("unit_size"))
    with _open_pool(options) as pool:
        if append_views is not None:
            return _finish(
                run_stage.run_append_views(
                    _given(set(options)), append_views, found, out, pool, open_progress()
                )
            )
        config, units = _cut(options, ScoreConfig), _cut(options, UnitOptions)
        return _finish(run_stage.run_score(config, found, out, pool, open_progress(), units))


@click.command("train-ranker")
@click.option("--cache", required=True, help="--out folder of `score`")
@_shards
@_out("ranker")
@config_options(TrainRankerConfig)
def train_ranker(cache: str, shards: tuple[str, ...], out: Path, **options: Any) -> int:
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
@_out("selections", url=True)
@_on_shards
@config_options(SelectConfig)
def select(shards: tuple[str, ...], out: str, **options: Any) -> int:
    """Write the top-k patches of every image.

    Example: ltrp-pipeline select --shards shards --ranker ranker --keep-ratio 0.5
    """
    found = find_shards(shards, unit_size=options.pop("unit_size"))
    with _open_pool(options) as pool:
        config, units = _cut(options, SelectConfig), _cut(options, UnitOptions)
        return _finish(run_stage.run_select(config, found, out, pool, open_progress(), units))


@click.group()
def evaluate() -> None:
    """Compare selections with annotations."""


@evaluate.command("patches")
@click.option("--selections", required=True, help="--out folder of `select`")
@click.option("--annotations", type=_PATH, required=True, help="COCO instances JSON")
@click.option("--teacher", help="cache of `score --crop eval --sampler cover`")
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
    selections: str,
    annotations: Path,
    teacher: str | None,
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
@click.option("--selections", required=True, help="--out folder of `select`")
@_shards
@click.option("--mae", required=True, help="weights the scores were made with")
@click.option("--teacher", help="cache of `score --crop eval --sampler cover`")
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
@click.argument("cache")
@click.option(
    "--to", "store", type=click.Choice(["zarr", "webdataset"]), required=True, help="wanted form"
)
@click.option("--out", required=True, help="folder or URL of the new cache")
def convert(cache: str, store: str, out: str) -> int:
    """Write a cache in the other form.

    Zarr arrays to WebDataset tars or back, without loss; CACHE itself is not touched.

    Example: ltrp-pipeline convert cache --to webdataset --out tars
    """
    from pipeline.store.convert import convert as convert_cache

    return _finish(convert_cache(open_cache(cache), out, store, open_progress()))


@click.command()
@click.argument("cache")
@click.option("--deep", is_flag=True, help="also read every file against its sha256")
@click.option(
    "--repair", is_flag=True, help="move damaged units to quarantine/: the next run makes them anew"
)
def verify(cache: str, deep: bool, repair: bool) -> int:
    """Check a cache, unit by unit; prints one line a fault.

    Example: ltrp-pipeline verify cache --deep
    """
    from pipeline.store.verify import problems

    opened = open_cache(cache)
    faults = list(problems(opened, deep=deep))
    for fault in faults:
        click.echo(fault.what)
    if repair:
        damaged = [fault.unit for fault in faults if fault.unit is not None]
        with place_lock(opened.place):
            for unit in damaged:
                quarantine(opened.place, unit)
        click.echo(f"{len(damaged)} unit(s) moved to quarantine; run the same `score` again")
    rows = opened.rows.values()
    n_in, n_ok, n_bad = (sum(getattr(r, name) for r in rows) for name in ("n_in", "n_ok", "n_bad"))
    click.echo(
        f"{len(rows)} complete units, {n_in} samples = {n_ok} ok + {n_bad} bad, "
        f"{len(faults)} faults"
    )
    return 1 if faults else 0
