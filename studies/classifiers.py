"""What kept patches are worth to a model that is trained on them, in minutes: docs/classifying.md.

    python studies/classifiers.py caltech101.tar --work work

Eight classes of Caltech-101, 50 photographs each, every fourth one to validate on. One classifier
for each selector and keep ratio, and one for the full image, all from mae_tiny at 112 px (7 x 7
patches), chosen inside on every random crop. A finished training in `--work` is not run again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

import click

RECIPE = {
    "init": "mae_tiny",
    "image-size": 112,
    "epochs": 12,
    "batch-size": 32,
    "base-lr": 8e-3,
    "loader-processes": 0,
}
SELECTORS = {"ranker": ("--weights", "ranker_tiny"), "random": (), "center": ()}
_CLASSES, _OF_EACH, _FEWEST = 8, 50, 80


def cut(archive: Path, work: Path) -> None:
    """Writes the photographs into `work`/train and `work`/val, one folder a class."""
    names = defaultdict(list)
    with tarfile.open(archive) as tar:
        members = {one.name: one for one in tar if one.isfile() and one.name.endswith(".jpg")}
        for name in sorted(members):
            names[name.split("/")[1]].append(name)
        # The folder of clutter is no class.
        large = sorted(
            (one for one in names if len(names[one]) >= _FEWEST and "Google" not in one),
            key=str.lower,
        )
        for folder in large[:: len(large) // _CLASSES][:_CLASSES]:
            for number, name in enumerate(names[folder][:_OF_EACH]):
                path = work / ("val" if number % 4 == 3 else "train") / folder / Path(name).name
                path.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(members[name])
                assert content is not None
                path.write_bytes(content.read())


def train(work: Path, name: str, *more: object) -> dict[str, float]:
    """Trains one classifier; returns the row of its last epoch."""
    options = [word for key, value in RECIPE.items() for word in (f"--{key}", value)]
    command = [
        sys.executable, "-m", "pipeline.cli", "train-classifier", "--shards", work / "train",
        "--validation-shards", work / "val", *options, "--out", work / name, *more,
    ]  # fmt: skip
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    row: dict[str, float] = json.loads((work / name / "curve.jsonl").read_text().splitlines()[-1])
    return row


@click.command()
@click.argument("archive", type=click.Path(path_type=Path, exists=True))
@click.option("--work", type=click.Path(path_type=Path), default=Path("work"))
@click.option("--selector", multiple=True, type=click.Choice(list(SELECTORS)), default=SELECTORS)
@click.option("--keep-ratio", multiple=True, type=float, default=(0.25, 0.5))
def main(
    archive: Path, work: Path, selector: tuple[str, ...], keep_ratio: tuple[float, ...]
) -> None:
    """Trains all, and prints top-1 after the last epoch: no epoch is chosen by it."""
    cut(archive, work)
    rows = {("full image", 1.0): train(work, "full")}
    for ratio in keep_ratio:
        for name in selector:
            more = ("--selector", name, *SELECTORS[name], "--keep-ratio", ratio)
            rows[name, ratio] = train(work, f"{name}-{ratio:g}", *more)
    click.echo("kept  by           top-1           cross entropy")
    for (name, ratio), row in rows.items():
        right = f"{row['correct_top1']:.0f} of {row['validated']:.0f}"
        figures = f"{row['accuracy_top1']:.3f} {right:>10}  {row['validation_loss']:.3f}"
        click.echo(f"{ratio:<5g} {name:<12} {figures}")


if __name__ == "__main__":
    main()
