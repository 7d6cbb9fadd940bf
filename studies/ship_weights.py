"""Puts trained weights where the package carries them: float16, with their sums and curves.

    python studies/ship_weights.py --mae RUN/pretrain-mae
    python studies/ship_weights.py --ranker RUN/train-ranker
    python studies/ship_weights.py --ranker RUN/train-ranker --as ranker_tiny_l1

The folders are those of `ltrp-pipeline run tiny`; docs/weights.md tells the order. The model cards
are written by hand.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import click
import torch

from ltrp_core.mae import load_mae, save_mae
from ltrp_core.rankers import load_ranker, read_config, save_ranker
from ltrp_core.shipped_weights import SHIPPED_MAE, SHIPPED_RANKER, SHIPPED_RANKERS, WEIGHTS_FOLDER
from pipeline.training.mae import MAE_FILE

LOGS = Path(__file__).resolve().parent.parent / "docs" / "weights"
SUMS = WEIGHTS_FOLDER / "SHA256SUMS"


@click.command()
@click.option("--mae", type=click.Path(exists=True, path_type=Path), help="of `pretrain-mae`")
@click.option("--ranker", type=click.Path(exists=True, path_type=Path), help="of `train-ranker`")
@click.option("--as", "name", type=click.Choice(SHIPPED_RANKERS), default=SHIPPED_RANKER)
def ship(mae: Path | None, ranker: Path | None, name: str) -> None:
    """Replaces the weights of the package, or one of the two."""
    LOGS.mkdir(parents=True, exist_ok=True)
    if mae is not None:
        folder = WEIGHTS_FOLDER / SHIPPED_MAE
        folder.mkdir(parents=True, exist_ok=True)
        save_mae(load_mae(mae), folder / MAE_FILE, dtype=torch.float16)
        keep_curve(mae, SHIPPED_MAE)
    if ranker is not None:
        folder = WEIGHTS_FOLDER / name
        extra = read_config(ranker)["extra"]
        save_ranker(load_ranker(ranker), folder, extra, dtype=torch.float16)
        keep_curve(ranker, name)
    files = sorted(WEIGHTS_FOLDER.rglob("*.safetensors"))
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(WEIGHTS_FOLDER)}"
        for file in files
    ]
    SUMS.write_text("\n".join(lines) + "\n")
    for line, file in zip(lines, files, strict=True):
        click.echo(f"{line}  {file.stat().st_size / 1e6:.1f} MB")


def keep_curve(folder: Path, name: str) -> None:
    """Copies the log of a training: a JSON line per epoch, options in front."""
    shutil.copyfile(folder / "curve.jsonl", LOGS / f"{name}.jsonl")
    shutil.copyfile(folder / "run.json", LOGS / f"{name}.run.json")


if __name__ == "__main__":
    ship()
