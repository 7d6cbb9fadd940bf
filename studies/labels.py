"""Labels at equal computing time: how good a ranker do a few seconds of scoring buy? docs/study.md.

    python studies/labels.py --learn photos/learn-00.tar --images 256 --measure photos/measure.tar \
        --objects data/coco-sample --objects data/coco128-train \
        --classifier efficientnet-lite0-57934424.pth --work work --out docs/study

A point is a kind of label and how many partitions a view it is scored on. At every point the same
photographs are scored into an ordinary cache, and the same ranker is trained on it from random
weights, with lists of as many patches in as many steps. It is judged on other photographs: by
objects, by a frozen classifier that sees only the kept patches, and by dear maps of both kinds. The
time of scoring is that of the one thread in which the scoring function runs; decoding, rendering
and writing count apart. What `--work` holds is not run again, and after every point the tables and
the plot are written anew, so that a run that is ended early has what it measured.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from unittest import mock

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from approximations import early_exit, thin_decoder
from judging import Judge, Measures, Way

from ltrp_core.bootstrap import bootstrap_interval
from ltrp_core.linear import frozen_weights
from ltrp_core.mae import MaskedAutoencoder, load_mae
from ltrp_core.scoring import leave_one_out_scores, surprise_scores
from pipeline.cli import cli
from stages import score as score_stage

PATH = click.Path(path_type=Path)
SURPRISE = "surprise"
WAYS: dict[str, Way] = {
    "l1": leave_one_out_scores,
    "l1, 50 % of the mask tokens": partial(thin_decoder, share=0.5),
    "l1, 25 % of the mask tokens": partial(thin_decoder, share=0.25),
    "l1, half the decoder's blocks": partial(early_exit, blocks=0.5),
    SURPRISE: surprise_scores,
}
"""Labels of the visible patches (1, n) of one view and partition; surprise: of the masked."""


class Point(NamedTuple):
    """What a ranker is taught."""

    kind: str
    partitions: int

    @property
    def name(self) -> str:
        """Of its folders."""
        return re.sub(r"\W+", "-", f"{self.kind} {self.partitions}")


EXACT, HALF = Point("l1", 1), "l1, half the decoder's blocks"
THIN, THINNER = "l1, 50 % of the mask tokens", "l1, 25 % of the mask tokens"
# What decides comes first: a run that is ended early has it.
JOBS = [
    (EXACT, 0),
    (Point(SURPRISE, 5), 0),
    (Point(HALF, 1), 0),
    (Point(THIN, 1), 0),
    (Point(SURPRISE, 1), 0),
    (Point(THINNER, 1), 0),
    (EXACT, 1),
    (Point(HALF, 2), 0),
    (Point(THIN, 2), 0),
    (Point(THINNER, 3), 0),
    (Point(SURPRISE, 12), 0),
    (Point(SURPRISE, 5), 1),
    (Point(SURPRISE, 1), 1),
    (Point(HALF, 1), 1),
    (Point(THIN, 1), 1),
    (Point(THINNER, 1), 1),
    (Point(SURPRISE, 3), 0),
]
RECIPE = {
    "ranker": "vit_tiny",
    "list-length": 19,
    "batch-size": 16,
    "base-lr": 8e-3,
    "warmup-epochs": 1,
    "precision": "float32",
    "holdout": 0,
    "keep": "last",
    "loader-processes": 0,
    "checkpoint-every": 3600,
    "device": "cpu",
}


@click.command()
@click.option("--mae", default="mae_tiny", show_default=True)
@click.option("--learn", required=True, type=PATH, help="tar that is scored and learned from")
@click.option("--images", default=256, show_default=True, help="of its first photographs")
@click.option("--measure", required=True, help="shards; those called by a synset are classified")
@click.option("--objects", multiple=True, required=True, type=PATH, help="images, instances.json")
@click.option("--classifier", default="", help="EfficientNet-Lite0's weights; empty: timm's")
@click.option("--epochs", default=10, show_default=True)
@click.option("--map-images", default=40, show_default=True, help="classified ones with dear maps")
@click.option("--jobs", default=len(JOBS), show_default=True, help="so many of the first ones")
@click.option("--work", required=True, type=PATH)
@click.option("--out", required=True, type=PATH)
def study(
    mae: str,
    learn: Path,
    images: int,
    measure: str,
    objects: Sequence[Path],
    classifier: str,
    epochs: int,
    map_images: int,
    jobs: int,
    work: Path,
    out: Path,
) -> None:
    """Scores, trains and measures every point that `--work` lacks; writes tables and a plot."""
    torch.set_num_threads(1)
    for folder in (work, out):
        folder.mkdir(parents=True, exist_ok=True)
    _claim(work, {**RECIPE, "mae": mae, "images": images, "epochs": epochs, "maps": map_images})
    judge = Judge(load_mae(mae), WAYS, objects, measure, classifier, map_images, work)
    shard = _first(learn, images, work / "learn.tar")
    memory: dict[bytes, tuple[Tensor, float]] = {}
    found: dict[tuple[Point, int], Measures] = {}
    for point, seed in JOBS[:jobs]:
        run = work / f"{point.name}-seed-{seed}"
        if not (run / "measures.npz").exists():
            _score(work / point.name, point, mae, shard, memory)
            options = {**RECIPE, "epochs": epochs, "seed": seed, "cache": work / point.name}
            _call("train-ranker", options, run / "ranker")
            np.savez(run / "measures.npz", **judge.of_ranker(run / "ranker"))
        found[point, seed] = dict(np.load(run / "measures.npz"))
        _write(out / "labels.csv", list(_rows(found, judge, work)))
        _write(out / "labels_differences.csv", list(_differences(found)))
        _plot(found, judge, out / "labels.png")
        click.echo(f"{time.strftime('%H:%M')} {time.process_time():.0f} s: {run.name} done")


# ---- scoring ---------------------------------------------------------------------------------


def _claim(work: Path, options: Mapping[str, Any]) -> None:
    """Refuses a folder whose points were made otherwise."""
    path, text = work / "options.json", json.dumps(options, sort_keys=True)
    if path.exists() and path.read_text() != text:
        raise click.ClickException(f"{work} was begun with {path.read_text()}; pass another --work")
    path.write_text(text)


def _first(tar: Path, images: int, out: Path) -> Path:
    """Returns a tar of the first images of another."""
    if not out.exists():
        with tarfile.open(tar) as whole, tarfile.open(out, "w") as part:
            for info in itertools.islice(whole, images):
                part.addfile(info, whole.extractfile(info))
    return out


def _score(
    folder: Path, point: Point, mae: str, shards: Path, memory: dict[bytes, tuple[Tensor, float]]
) -> None:
    """Writes the cache of a point, and beside it how long the scoring and all else took."""
    if (receipt := folder.with_suffix(".json")).exists():
        return
    options = {"mae": mae, "shards": shards, "partitions": point.partitions, "workers": 0}
    options |= {"pixels": True, "precision": "float32", "device": "cpu"}
    if point.kind == SURPRISE:
        options["metric"] = SURPRISE
    started, spent = time.process_time(), [0.0]
    with _scoring(point.kind, memory, spent) as made_now:
        _call("score", options, folder)
    rest = time.process_time() - started - made_now[0]
    receipt.write_text(json.dumps({"scoring": spent[0], "rest": rest}))


@contextmanager
def _scoring(
    kind: str, memory: dict[bytes, tuple[Tensor, float]], spent: list[float]
) -> Iterator[list[float]]:
    """Within it `score` labels by a way, one pair after another, with the time each takes.

    Partition r of a view is the same however many there are, so that a pair is labeled once a kind,
    and counts with its time wherever it is used. Yields the seconds that were not remembered.
    """
    made_now = [0.0]

    def labels(mae: MaskedAutoencoder, images: Tensor, visible: Tensor, **_: Any) -> Tensor:
        scores = []
        with torch.no_grad(), frozen_weights():
            for row, image in enumerate(images.split(1)):
                digest = hashlib.sha256(image.numpy().tobytes() + kind.encode())
                for given in visible[row].split(1):
                    (key := digest.copy()).update(given.numpy().tobytes())
                    if key.digest() not in memory:
                        started = time.thread_time()
                        made = WAYS[kind](mae, image, given)
                        memory[key.digest()] = made.flatten(), time.thread_time() - started
                        made_now[0] += memory[key.digest()][1]
                    scores.append(memory[key.digest()][0])
                    spent[0] += memory[key.digest()][1]
        return torch.stack(scores).view(*visible.shape[:2], -1)

    name = "surprise_scores" if kind == SURPRISE else "leave_one_out_scores"
    with mock.patch.object(score_stage, name, labels):
        yield made_now


def _call(command: str, options: Mapping[str, Any], out: Path) -> None:
    words = [command]
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    if cli.main([*words, "--out", str(out)], standalone_mode=False):
        raise click.ClickException(" ".join(words))


# ---- tables ----------------------------------------------------------------------------------


def _rows(
    found: Mapping[tuple[Point, int], Measures], judge: Judge, work: Path
) -> Iterator[dict[str, Any]]:
    """Yields a row for every source without labels, then for every point and seed."""
    empty = dict.fromkeys(("partitions", "seed", "seconds", "scoring", "rest"), "")
    for source, measures in judge.heuristics.items():
        yield {"labels": source, **empty, **_figures(measures)}
    for (point, seed), measures in found.items():
        spent = json.loads((work / point.name).with_suffix(".json").read_text())
        yield {
            "labels": point.kind,
            "partitions": point.partitions,
            "seed": seed,
            # A photograph: in turns with the other kinds, times the partitions.
            "seconds": round(point.partitions * judge.seconds[point.kind], 4),
            # All photographs, as it was when they were scored.
            **{name: round(value, 1) for name, value in spent.items()},
            **_figures(measures),
        }


def _figures(measures: Measures) -> dict[str, float]:
    row: dict[str, float] = {}
    for name, values in measures.items():
        low, high = _interval(values.tobytes())
        mean = float(np.nanmean(values))
        row |= {name: round(mean, 4), f"{name} low": low, f"{name} high": high}
    return row


@cache
def _interval(values: bytes) -> tuple[float, float]:
    low, high = bootstrap_interval(np.frombuffer(values), seed=0)
    return round(low, 4), round(high, 4)


def _differences(found: Mapping[tuple[Point, int], Measures]) -> Iterator[dict[str, Any]]:
    """Yields, image by image and over the seeds that both have, a point minus exact l1."""
    for point in dict.fromkeys(point for point, _ in found):
        seeds = [s for p, s in found if p == point and (EXACT, s) in found]
        pairs = [(found[point, seed], found[EXACT, seed]) for seed in seeds]
        minus = {m: np.mean([own[m] - base[m] for own, base in pairs], axis=0) for m in pairs[0][0]}
        about = {"labels": point.kind, "partitions": point.partitions, "seeds": len(seeds)}
        yield about | _figures(minus)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _plot(found: Mapping[tuple[Point, int], Measures], judge: Judge, path: Path) -> None:
    """Quality by seconds of scoring: a dot a seed, a line through the means of a kind."""
    shown = {"precision 0.25": "precision, 25 % kept", "top-1 0.5": "top-1, 50 % kept"}
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = {**shown, "": "tau-b to dear maps of its own kind"}
    for axes, (measure, title) in zip(panels, titles.items(), strict=True):
        for color, kind in zip(("C0", "C1", "C2", "C4", "C3"), WAYS, strict=True):
            own = measure or ("tau surprise" if kind == SURPRISE else "tau l1")
            dots: dict[float, list[float]] = {}
            for (point, _), measures in found.items():
                if point.kind == kind:
                    seconds = point.partitions * judge.seconds[kind]
                    dots.setdefault(seconds, []).append(float(np.nanmean(measures[own])))
            for seconds, values in dots.items():
                axes.plot([seconds] * len(values), values, "_", color=color)
            if x := sorted(dots):
                axes.plot(x, [fmean(dots[one]) for one in x], "o-", color=color, label=kind)
        if measure:
            mean = judge.heuristics["patch-variance"][measure].mean()
            axes.axhline(mean, color="gray", linestyle=":", label="patch variance, no label")
        axes.set(xscale="log", xlabel="seconds of scoring a photograph", title=title)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=6, loc="lower left")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    study()
