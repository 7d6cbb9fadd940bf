"""Tar in, cache out: where the time of a shard goes, and the whole against the model alone.

    python benchmarks/end_to_end.py --shards PHOTOS --picture docs/profile.png
    python benchmarks/end_to_end.py --quick

Each model scores the same photographs twice in one run: as `score --workers 0` does, from the tar
to the committed unit, and the bare `leave_one_out_scores` on views that are ready, in batches of
the same size. The picture shows the steps of the former; reading and decoding run ahead on threads.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from cache_runs import photographs, write_tar

from ltrp_core.mae import create_mae, save_mae
from ltrp_core.scoring import leave_one_out_scores
from ltrp_core.views import normalize
from pipeline.console.progress import open_progress
from pipeline.inputs import find_shards
from pipeline.inputs.samples import read_samples
from pipeline.store import open_cache
from pipeline.store.run_log import read_log
from pipeline.units.run import run_score
from pipeline.workers import InProcessPool
from stages.score import ScoreConfig, UnitScorer

_STEPS = {
    "read": "#999999",
    "decode": "#56b4e9",
    "wait": "#d55e00",
    "model": "#0072b2",
    "write": "#e69f00",
}


def measured(mae: str, folder: Path, out: Path) -> dict[str, Any]:
    """Seconds of each step of one shard, of the whole unit, and of the bare model."""
    config = ScoreConfig(mae=mae, partitions=1, batch_size=8)
    found = find_shards([str(folder)])
    run_score(config, found, out, InProcessPool(), open_progress())
    (done,) = [e for e in read_log(open_cache(out).storage) if e["event"] == "done"]
    scorer = UnitScorer(config)
    prepared = [scorer.prepare(sample) for shard in found for sample in read_samples(shard)]
    pixels = torch.cat([one.pixels for one in prepared])
    visible = torch.stack([torch.from_numpy(one.rows["visible"][0]) for one in prepared])
    started = time.monotonic()
    for some, rows in zip(pixels.split(8), visible.split(8), strict=True):
        leave_one_out_scores(scorer.mae, normalize(some), rows, chunk=scorer.chunk)
    bare = time.monotonic() - started
    return {**done["seconds"], "bare": bare, "images": done["n_ok"]}


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """A bar a model: the steps that the unit waits for, and below them those ahead on threads."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 0.9 + 0.8 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    names = []
    for place, (name, seconds) in enumerate(rows.items()):
        names.append(f"{name}\n{1e3 * seconds['total'] / seconds['images']:.0f} ms an image")
        for steps, height, shift in (
            (("wait", "model", "write"), 0.4, 0.0),
            (("read", "decode"), 0.2, 0.33),
        ):
            left = 0.0
            for step in steps:
                share = 100 * seconds[step] / seconds["total"]
                axes.barh(place + shift, share, height, left=left, color=_STEPS[step])
                left += share
    for step, color in _STEPS.items():
        label = f"{step}, ahead on threads" if step in ("read", "decode") else step
        axes.barh(0, 0, color=color, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="% of the time of one shard", xlim=(0, 100))
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.3), ncols=5, frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, help="tar or folder of tars of photographs")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--models", nargs="+", default=["mae_tiny", "mae_small", "mae_base"])
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images, arguments.models = 8, ["mae_tiny"]
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{'model':10} {'ms/image':>9} {'wait':>7} {'write':>7} {'decode':>7} {'of bare':>8}")
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        scratch, source = Path(name), photographs(arguments.shards)
        folder = scratch / "shards"
        folder.mkdir()
        some = [(f"{i:04d}.jpg", next(source)) for i in range(arguments.images)]
        write_tar(folder / "one.tar", some)
        for model in arguments.models:
            torch.manual_seed(0)
            save_mae(create_mae(model), scratch / f"{model}.safetensors")
            rows[model] = measured(
                str(scratch / f"{model}.safetensors"), folder, scratch / f"cache-{model}"
            )
            s = rows[model]
            print(
                f"{model:10} {1e3 * s['total'] / s['images']:9.1f} {s['wait'] / s['total']:7.2%} "
                f"{s['write'] / s['total']:7.2%} {s['decode'] / s['total']:7.1%} "
                f"{s['bare'] / s['total']:8.1%}",
                flush=True,
            )
    if arguments.picture:
        draw(rows, arguments.picture)


if __name__ == "__main__":
    main()
