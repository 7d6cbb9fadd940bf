"""How long `evaluate patches` takes, first and again, on annotations as dense as COCO's.

    python benchmarks/evaluate.py [--quick] [--images N] [--scratch FOLDER]

Made here: N images of 640 x 480 px with 7.3 instances each in the mean, outlines of 20 to 60 points
and one crowd in a hundred as RLE; selections of random score maps on a 14 x 14 grid. Timed: the
whole command from its start to its end, imports and figures included, at six keep ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ltrp_core.selection import num_kept
from pipeline.store.cache import create_cache
from pipeline.store.records.forms import FORMS
from pipeline.store.units import publish, seal, unit_name
from stages.selection_arrays import SCHEMA, selection_fields

HEIGHT, WIDTH, GRID = 480, 640, 14
INSTANCES, CROWDS = 7.3, 0.01
RATIOS = (0.1, 0.25, 0.3, 0.5, 0.7, 0.75)
STORED = (0.25, 0.5, 0.75)


def outline(rng):
    """Returns a blob as a list x, y, x, y, ... in the image."""
    points = int(rng.integers(20, 61))
    angle = np.sort(rng.uniform(0, 2 * math.pi, points))
    # Log-normal sizes: many small objects, a few that fill the image.
    radius = min(rng.lognormal(3.6, 0.9), 300) * (1 + 0.2 * rng.standard_normal(points))
    x = rng.uniform(0, WIDTH) + radius * np.cos(angle)
    y = rng.uniform(0, HEIGHT) + radius * np.sin(angle)
    flat = np.stack([x.clip(0, WIDTH), y.clip(0, HEIGHT)], axis=1).ravel()
    return flat.round(2).tolist()


def crowd(rng):
    """Returns the uncompressed RLE of a scattered region, as COCO has them."""
    mask = np.kron(rng.random((24, 32)) < 0.2, np.ones((20, 20), bool))
    flat = mask.ravel(order="F")
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [0, *runs] if flat[0] else runs}


def write_annotations(path, keys, rng):
    """Writes a COCO instances file; returns the number of instances and points an instance."""
    annotations, points = [], 0
    for image, count in enumerate(rng.poisson(INSTANCES, len(keys))):
        for _ in range(count):
            is_crowd = rng.random() < CROWDS
            shape = crowd(rng) if is_crowd else [outline(rng)]
            points += 0 if is_crowd else len(shape[0]) // 2
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image,
                    "category_id": int(rng.integers(2)),
                    "segmentation": shape,
                    "bbox": [0, 0, 1, 1],
                    "iscrowd": int(is_crowd),
                }
            )
    images = [
        {"id": i, "file_name": f"{key}.jpg", "height": HEIGHT, "width": WIDTH}
        for i, key in enumerate(keys)
    ]
    categories = [{"id": 0, "name": "person"}, {"id": 1, "name": "dog"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(document))
    return len(annotations), points / max(len(annotations), 1)


def write_selections(path, keys, rng, per_unit):
    """Writes a cache of selections by random scores, as `select` would."""
    fields = selection_fields(STORED, GRID**2)
    run = {"keep_ratio": STORED, "image_size": GRID * 16, "patch_size": 16, "store": "zarr"}
    run |= {"schema": SCHEMA, "selector": "ranker"}
    cache = create_cache(path, "select", run)
    side = round(HEIGHT * 224 / 256)
    for start in range(0, len(keys), per_unit):
        part = keys[start : start + per_unit]
        count, shard = len(part), f"random-{start:06d}.tar"
        unit = unit_name(shard)
        scores = rng.standard_normal((count, GRID**2)).astype(np.float16)
        box = [(HEIGHT - side) // 2, (WIDTH - side) // 2, side, side]
        arrays = {
            "key": np.array(part, dtype=object),
            "size": np.tile(np.array([HEIGHT, WIDTH], np.int32), (count, 1)),
            "crop": np.tile(np.array(box, np.float32), (count, 1, 1)),
            "flip": np.zeros((count, 1), bool),
            "score": scores,
            "border_contrast": rng.random((count, GRID**2)).astype(np.float16),
            "patch_variance": rng.random((count, GRID**2)).astype(np.float16),
        }
        order = (-scores.astype(np.float32)).argsort(axis=1, kind="stable").astype(np.uint8)
        for ratio in STORED:
            arrays[f"kept_{ratio:g}"] = order[:, : num_kept(ratio, GRID**2)]
        with cache.storage.staging(unit) as staged:
            with FORMS["zarr"].writer(staged / FORMS["zarr"].file, fields) as writer:
                writer.append({name: arrays[name] for name in fields})
            source = {"name": shard, "size": 0, "sha256": "0" * 64}
            receipt = seal(
                staged, unit=unit, run_id=cache.run_id, n_ok=count, bad=[], input=source,
                damage=None,
            )  # fmt: skip
            publish(cache.storage, staged, receipt)


def timed(scratch, *options):
    """Runs the command; returns seconds of wall time, of CPU time, and its peak memory, MB."""
    command = [sys.executable, "-m", "pipeline.cli", "evaluate", "patches"]
    command += ["--selections", scratch / "selections", "--annotations", scratch / "instances.json"]
    for ratio in RATIOS:
        command += ["--keep-ratio", ratio]
    started = time.monotonic()
    process = subprocess.Popen(
        [str(part) for part in (*command, *options)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status != 0:
        raise SystemExit(output.decode())
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description="Times `evaluate patches`; prints one table.")
    parser.add_argument("--quick", action="store_true", help="200 images (else 5000)")
    parser.add_argument("--images", type=int, help="another number of images")
    parser.add_argument("--scratch", type=Path, help="where the data are made, and kept")
    options = parser.parse_args()
    count = options.images or (200 if options.quick else 5000)
    with tempfile.TemporaryDirectory() as folder:
        scratch = options.scratch or Path(folder)
        scratch.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        keys = [f"val/{i:012d}" for i in range(count)]
        instances, points = write_annotations(scratch / "instances.json", keys, rng)
        write_selections(scratch / "selections", keys, rng, per_unit=1000)
        print(
            f"{count} images, {instances / count:.1f} instances an image, {points:.0f} points an "
            f"outline, {len(RATIOS)} keep ratios; {os.cpu_count()} cores, {platform.machine()}, "
            f"torch {torch.__version__}"
        )
        print(f"{'run':<44}{'s':>8}{'CPU s':>8}{'peak MB':>10}")
        every = [f for name in ("all", "learned", "unseen") for f in ("--categories", name)]
        for name, out, more in (
            ("first", "all", ()),
            ("second, counts from the first", "all", ()),
            ("first, all + learned + unseen", "groups", every),
            ("second, all + learned + unseen", "groups", every),
        ):
            wall, cpu, megabytes = timed(scratch, "--out", scratch / out, *more)
            print(f"{name:<44}{wall:>8.1f}{cpu:>8.1f}{megabytes:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
