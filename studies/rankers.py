"""What a ranker needs and which choices matter, by training it many times: docs/study.md.

    python studies/rankers.py --shards 'photos-{00..03}.tar' --test photos-19.tar \
        --teacher teacher --work work --out docs/study

Every variant differs from the reference in what its name says; all see equally many records. A run
is judged by Kendall's tau-b to the teacher's whole maps (`--teacher`, of `studies/teacher.py`) on
photographs that neither model was trained on. What `--work` holds is not run again.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import click
import pyarrow.parquet as pq
from matplotlib.figure import Figure

PATH = click.Path(path_type=Path)
RECIPE = {
    "ranker": "vit_tiny",
    "epochs": 12,
    "batch-size": 64,
    "base-lr": 2e-3,
    "warmup-epochs": 2,
    "precision": "bf16",
    "keep": "last",
    "loader-processes": 0,
}
CACHES = {
    "1 view, 1 partition": (1, 1, "iid"),
    "1 view, 4 partitions": (1, 4, "iid"),
    "2 views, 1 partition": (2, 1, "iid"),
    "4 views, 1 partition": (4, 1, "iid"),
    "4 views, 1 of a cover": (4, 1, "cover"),
}
REFERENCE = "4 views, 1 partition"


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to train."""

    group: str
    name: str
    cache: str = REFERENCE
    options: Mapping[str, Any] = field(default_factory=dict)
    most_seeds: int = 99
    """Fewer for what takes ten times as long."""


VARIANTS = [
    *(Variant(group="records of an image", name=name, cache=name) for name in CACHES),
    Variant(group="head", name="token"),
    Variant(group="head", name="cls", options={"head": "cls"}),
    Variant(group="input", name="sparse"),
    Variant(group="input", name="dense", options={"input": "dense"}, most_seeds=1),
    *(
        Variant(group="loss", name=name, options={"loss": name})
        for name in (
            "listmle",
            "listnet",
            "ranknet",
            "regression",
            "approx_ndcg",
            "lambda_loss",
            "plateau_listmle",
        )
    ),
]


@click.command()
@click.option("--mae", default="mae_tiny", show_default=True)
@click.option("--shards", required=True, help="to learn from")
@click.option("--test", required=True, help="shards that are ranked")
@click.option("--teacher", required=True, help="whole maps of the test shards")
@click.option("--seeds", default=3, show_default=True)
@click.option("--at-once", default=2, show_default=True, help="processes of one thread")
@click.option("--work", required=True, type=PATH)
@click.option("--out", required=True, type=PATH)
@click.option("--group", "groups", multiple=True, help="only these; may be given repeatedly")
def study(
    mae: str,
    shards: str,
    test: str,
    teacher: str,
    seeds: int,
    at_once: int,
    work: Path,
    out: Path,
    groups: Sequence[str],
) -> None:
    """Trains every variant with several seeds, measures it, writes a table and a plot."""
    work.mkdir(parents=True, exist_ok=True)
    variants = [one for one in VARIANTS if not groups or one.group in groups]

    def measured(job: tuple[Variant, int]) -> dict[str, Any]:
        variant, seed = job
        run = work / f"{_identity(variant)}-{seed}"
        values = {"shards": shards, "cache": work / _name(variant.cache), "seed": seed}
        if not (run / "agreement").exists():
            _train(run, {**RECIPE, **variant.options, **values}, test, teacher)
        table = pq.read_table(run / "agreement" / "agreement.parquet").to_pylist()
        tau = next(row for row in table if row["measure"] == "tau")
        return {
            "group": variant.group,
            "variant": variant.name,
            "seed": seed,
            **{name: round(tau[name], 4) for name in ("mean", "low", "high")},
        }

    with ThreadPoolExecutor(at_once) as pool:
        wanted = dict.fromkeys(one.cache for one in variants)
        list(pool.map(lambda name: _score(work, name, mae, shards), wanted))
        # Once each, though several groups have the reference among them.
        list(
            pool.map(
                measured, {(_identity(v), s): (v, s) for v, s in _jobs(variants, seeds)}.values()
            )
        )
        rows = list(pool.map(measured, _jobs(variants, seeds)))
    out.mkdir(parents=True, exist_ok=True)
    with (out / "rankers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    _tell(rows)
    _plot(rows, out / "rankers.png")


def _jobs(variants: Sequence[Variant], seeds: int) -> Iterator[tuple[Variant, int]]:
    """Yields what is trained, the long ones last."""
    for seed in range(seeds):
        yield from ((v, seed) for v in variants if v.most_seeds >= seeds)
    for variant in variants:
        if variant.most_seeds < seeds:
            yield from ((variant, seed) for seed in range(variant.most_seeds))


def _name(text: str) -> str:
    return text.replace(" ", "-").replace(",", "")


def _identity(variant: Variant) -> str:
    options = {k: v for k, v in variant.options.items() if (k, v) != ("loss", "listmle")}
    words = json.dumps(options, sort_keys=True) if options else "reference"
    letters = "".join(c if c.isalnum() or c == "_" else "-" for c in words).strip("-")
    return f"{_name(variant.cache)}-{letters}"


def _score(work: Path, name: str, mae: str, shards: str) -> None:
    views, partitions, sampler = CACHES[name]
    options = {"mae": mae, "shards": shards, "views": views, "partitions": partitions}
    _run("score", {**options, "sampler": sampler, "pixels": True, "workers": 0}, work / _name(name))


def _train(run: Path, options: Mapping[str, Any], test: str, teacher: str) -> None:
    _run("train-ranker", options, run / "ranker")
    _run("select", {"ranker": run / "ranker", "shards": test, "workers": 0}, run / "selections")
    arguments = [str(run / "selections"), teacher]
    _run("evaluate ranking", {}, run / "agreement", arguments)


def _run(
    command: str, options: Mapping[str, Any], out: Path, arguments: Sequence[str] = ()
) -> None:
    words = [sys.executable, "-m", "pipeline.cli", *command.split(), *arguments]
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    done = subprocess.run([*words, "--out", str(out)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{' '.join(words)}\n{done.stderr[-2000:]}")
    click.echo(f"{out}: {done.stdout.splitlines()[0] if done.stdout else 'done'}")


def _tell(rows: Sequence[Mapping[str, Any]]) -> None:
    for group, variant in dict.fromkeys((row["group"], row["variant"]) for row in rows):
        taus = [r["mean"] for r in rows if (r["group"], r["variant"]) == (group, variant)]
        spread = f" +- {stdev(taus):.3f}" if len(taus) > 1 else ""
        click.echo(f"{group:22} {variant:24} {fmean(taus):.3f}{spread}")


def _plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A dot a seed, with the interval over photographs; a bar at the mean of the seeds."""
    names = list(dict.fromkeys((row["group"], row["variant"]) for row in rows))
    figure = Figure(figsize=(6.4, 0.9 + 0.28 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        mine = [row for row in rows if (row["group"], row["variant"]) == name]
        for number, row in enumerate(mine):
            y = place + 0.18 * (number - (len(mine) - 1) / 2)
            axes.plot([row["low"], row["high"]], [y, y], color="#0072b2", alpha=0.35)
            axes.plot(row["mean"], y, ".", color="#0072b2")
        mean = fmean(row["mean"] for row in mine)
        axes.plot([mean, mean], [place - 0.35, place + 0.35], color="#c65000", linewidth=2)
    axes.set_yticks(range(len(names)), [f"{group}: {variant}" for group, variant in names])
    axes.invert_yaxis()
    axes.set_xlabel("Kendall's tau-b to the teacher's maps")
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    study()
