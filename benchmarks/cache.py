"""What a record costs on the disk, and how fast units are read.

    python benchmarks/cache.py --cache CACHE      # of `score --partitions 10 --score-dtype float32`
    python benchmarks/cache.py --quick            # a small cache with random weights, made here

`size`: the largest unit of the cache, written again in every form and dtype; everything is counted,
the receipt too. `read`: whole units into arrays, without and with pixels; beside it the plain
reading of the same files. Files are warm in the page cache. Whole runs (Ray, memory, kills) are in
cache_runs.py.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.stats
import torch
import zarr
from skimage import data

from ltrp_core.mae import create_mae, save_mae
from pipeline.store import Cache, open_cache
from pipeline.store.records import zarr_records
from pipeline.store.records.forms import FORMS, Form
from pipeline.store.units import seal
from stages.protocols import ArrayField, Arrays, Sample
from stages.score import ScoreConfig, UnitScorer


def made_here(folder: Path, samples: int) -> tuple[dict[str, ArrayField], Arrays]:
    """Returns fields and rows of crops of one photograph, scored with random weights."""
    torch.manual_seed(0)
    save_mae(create_mae("mae_tiny"), folder / "mae.safetensors")
    config = ScoreConfig(
        mae=str(folder / "mae.safetensors"), partitions=10, score_dtype="float32", batch_size=8
    )
    scorer = UnitScorer(config)
    image = data.astronaut()
    prepared = [
        scorer.prepare(Sample(f"n0144{i:04d}_{i}", image[i % 99 : i % 99 + 300, i % 83 :]))
        for i in range(samples)
    ]
    blocks = list(scorer.batches(prepared))
    arrays = {name: np.concatenate([block[name] for block in blocks]) for name in scorer.fields}
    return scorer.fields, arrays


def largest_unit(cache: Cache) -> tuple[dict[str, ArrayField], Arrays]:
    unit = max(cache.rows.values(), key=lambda row: row.n_ok).unit
    path = cache.storage.path / "units" / unit / "records.zarr"
    return zarr_records.read_fields(path), cache.read(unit)


def written_size(form: Form, fields: dict[str, ArrayField], arrays: Arrays, folder: Path) -> int:
    """Bytes of a unit with its receipt."""
    folder.mkdir()
    with form.writer(folder / form.file, fields) as writer:
        writer.append({name: arrays[name] for name in fields})
    source = {"name": "train-000000.tar", "size": 500_000_000, "sha256": "0" * 64}
    receipt = seal(
        folder, unit="train-000000-01234567", run_id="0" * 16, n_ok=len(arrays["key"]), bad=[],
        input=source, damage=None,
    )  # fmt: skip
    return receipt.num_bytes + len(receipt.to_bytes())


def size(fields: dict[str, ArrayField], arrays: Arrays, scratch: Path) -> None:
    samples, views, partitions, n = arrays["score"].shape
    records = samples * views * partitions
    print(
        f"\n## size: a unit of {samples} samples, {views} view(s), {partitions} partitions, n = {n}"
    )
    print(f"{'form':12} {'scores':8} {'bytes':>10} {'a record':>9} {'at 5000':>9}")
    for name, form in FORMS.items():
        for dtype in ("float16", "float32"):
            kind = {**fields, "score": replace(fields["score"], dtype=dtype)}
            kind.pop("pixels", None)
            values = {**arrays, "score": arrays["score"].astype(dtype)}
            total = written_size(form, kind, values, scratch / f"{name}-{dtype}")
            half = {key: array[: samples // 2] for key, array in values.items()}
            less = written_size(form, kind, half, scratch / f"{name}-{dtype}-half")
            each = (total - less) / (samples - samples // 2)
            at_5000 = (total + each * (5000 - samples)) / (5000 * views * partitions)
            print(f"{name:12} {dtype:8} {total:10d} {total / records:9.2f} {at_5000:9.2f}")
    exact = arrays["score"].reshape(-1, n)
    rounded = exact.astype(np.float16)
    taus = [
        scipy.stats.kendalltau(a, b).statistic
        for a, b in zip(exact[:2000], rounded[:2000], strict=True)
    ]
    print(f"Kendall tau-b of float16 against {exact.dtype} scores: mean {np.mean(taus):.5f}, "
          f"worst {np.min(taus):.4f} of {len(taus)} records")  # fmt: skip


def best(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def plain_read(files: list[Path]) -> Callable[[], None]:
    """Reads files into fresh memory that holds them all, as any reader must."""
    sizes = [path.stat().st_size for path in files]

    def read() -> None:
        whole = np.empty(sum(sizes), dtype=np.uint8)
        start = 0
        for path, count in zip(files, sizes, strict=True):
            with path.open("rb", buffering=0) as file:
                file.readinto(whole[start : start + count])
            start += count

    return read


def read_rates(
    fields: dict[str, ArrayField], arrays: Arrays, scratch: Path, rounds: int, samples: int
) -> None:
    repeats = -(-samples // len(arrays["key"]))
    tiled = {name: np.concatenate([array] * repeats)[:samples] for name, array in arrays.items()}
    tiled["key"] = np.array([f"n0144{i:05d}_{i}" for i in range(samples)], dtype=object)
    tiled["score"] = tiled["score"].astype(np.float16)
    small = {**fields, "score": replace(fields["score"], dtype="float16")}
    small.pop("pixels", None)
    shape = (*arrays["score"].shape[1:], 16, 16, 3)
    large = {**small, "pixels": ArrayField(dtype="uint8", shape=shape, fill=0, raw=True)}
    records = samples * int(np.prod(shape[:2]))
    print(f"\n## read: whole units of {samples} samples, {records} records")
    path = scratch / "records.zarr"
    with FORMS["zarr"].writer(path, small) as writer:
        writer.append(tiled)
    seconds = best(lambda: zarr_records.read(path), rounds)
    print(
        f"without pixels: {1000 * seconds:.1f} ms, {records / seconds / 1e6:.2f} million records/s"
    )
    count = samples
    rng = np.random.default_rng(0)
    path = scratch / "pixels" / "records.zarr"
    path.parent.mkdir()
    with FORMS["zarr"].writer(path, large) as writer:
        for start in range(0, count, 50):
            rows = {name: array[start : min(start + 50, count)] for name, array in tiled.items()}
            full = (len(rows["key"]), *shape)
            rows["pixels"] = rng.integers(0, 256, full, dtype=np.uint8)
            writer.append(rows)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    total = sum(p.stat().st_size for p in files)
    sides = {
        "plain read of the files": plain_read(files),
        "units with pixels, ours": lambda: zarr_records.read(path),
        "the same, Zarr's own reader": lambda: zarr.open_group(path, mode="r")["pixels"][:],
    }
    base = 0.0
    print(f"with pixels: {total / 1e6:.0f} MB in {len(files)} files of {count} samples")
    for name, work in sides.items():
        seconds = best(work, rounds)
        base = base or seconds
        print(f"  {name:30} {total / seconds / 1e9:6.2f} GB/s  {100 * base / seconds:5.0f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", help="a Zarr cache of `score`; made here if omitted")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        f"zarr {zarr.__version__}, NumPy {np.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if arguments.cache and not arguments.quick:
            fields, arrays = largest_unit(open_cache(arguments.cache))
        else:
            fields, arrays = made_here(scratch, 8)
        size(fields, arrays, scratch)
        samples = 500 if arguments.quick else 5000
        read_rates(fields, arrays, scratch, 3 if arguments.quick else arguments.rounds, samples)


if __name__ == "__main__":
    main()
