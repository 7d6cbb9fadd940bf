"""Whole runs of `score`: what Ray, writing and committing cost, memory, and kills.

    python benchmarks/cache_runs.py --shards FOLDER   # tars of photographs
    python benchmarks/cache_runs.py --quick           # the same, smaller, on the demo's photographs

Sections (`--only` names some): `ray` times Ray workers against this process on the same shards,
`write` the share of reading, decoding, writing and committing in scoring, `memory` the peak of a
worker on one shard of full-size JPEGs, `kills` compares caches of killed runs with a quiet one.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ltrp_core.mae import MAEConfig, MaskedAutoencoder, create_mae, save_mae
from pipeline.demo.photographs import demo_photographs

PROGRAM = [sys.executable, "-m", "pipeline.cli", "score"]


def photographs(folder: Path | None) -> Iterator[bytes]:
    """JPEGs of the tars in a folder, in order, over and over; without it, of the demo."""
    if folder is None:
        yield from itertools.cycle(content for _, content in demo_photographs())
    while True:
        found = False
        for path in sorted(folder.glob("*.tar")) if folder.is_dir() else [folder]:
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.name.lower().endswith((".jpg", ".jpeg")):
                        found = True
                        yield tar.extractfile(member).read()
        if not found:
            raise SystemExit(f"{folder} holds no tar of JPEGs")


def write_tar(path: Path, images: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in images:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_shards(folder: Path, source: Iterator[bytes], shards: int, images: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(shards):
        members = [(f"{number:03d}_{i:05d}.jpg", next(source)) for i in range(images)]
        write_tar(folder / f"part-{number:03d}.tar", members)
    return folder


TRIVIAL = MAEConfig(
    width=48, depth=1, heads=2, decoder_width=32, decoder_depth=1, decoder_heads=2,
    patch_size=16, grid=14,
)  # fmt: skip
"""224 px, 196 patches, next to no arithmetic: where the model's time is not the question."""


def weights(folder: Path, name: str) -> Path:
    torch.manual_seed(0)
    path = folder / f"{name}.safetensors"
    save_mae(MaskedAutoencoder(TRIVIAL) if name == "trivial" else create_mae(name), path)
    return path


def score(shards: Path, mae: Path, out: Path, *options: object) -> tuple[float, str]:
    """Runs the program; returns its wall time and what it said."""
    command = [*PROGRAM, "--shards", shards, "--mae", mae, "--out", out, *options]
    started = time.perf_counter()
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        sys.exit(done.stderr)
    return time.perf_counter() - started, done.stderr


def log(cache: Path) -> list[dict]:
    return [json.loads(line) for path in (cache / "log").iterdir() for line in path.open()]


def working_seconds(cache: Path) -> float:
    """From the first shard's start to the last one's end: without the start of the workers."""
    done = [event for event in log(cache) if event["event"] == "done"]
    first = min(event["time"] - event["seconds"]["total"] for event in done)
    return max(event["time"] for event in done) - first


def ray_overhead(source: Iterator[bytes], scratch: Path, model: str, rounds: int) -> None:
    shards = write_shards(scratch / "ray-shards", source, 50, 20)
    mae = weights(scratch, model)
    print(
        f"\n## Ray against this process: 50 shards of 20 images, {model}, one partition, one worker"
    )
    print(f"{'side':12} {'working s':>10} {'wall s':>8} {'images/s':>9}")
    times: dict[str, list[float]] = {"in process": [], "Ray": []}
    for number in range(rounds):
        for side, workers in (("in process", 0), ("Ray", 1)):
            out = scratch / f"ray-{side}-{number}"
            wall, _ = score(shards, mae, out, "--workers", workers, "--partitions", 1)
            seconds = working_seconds(out)
            times[side].append(seconds)
            print(f"{side:12} {seconds:10.2f} {wall:8.2f} {1000 / seconds:9.1f}")
    ours, theirs = (sorted(times[side])[rounds // 2] for side in ("Ray", "in process"))
    print(f"overhead of Ray: {100 * (ours / theirs - 1):.1f} % of the working time (median)")


def write_share(source: Iterator[bytes], scratch: Path, model: str, images: int) -> None:
    shards = write_shards(scratch / "write-shards", source, 1, images)
    score(shards, weights(scratch, model), scratch / "write", "--workers", 0)
    (event,) = [e for e in log(scratch / "write") if e["event"] == "done"]
    seconds = event["seconds"]
    print(f"\n## Where the time goes: one shard of {images} images, {model}, this device")
    for name in ("read", "decode", "wait", "model", "write", "total"):
        print(f"{name:8} {seconds[name]:9.3f} s {100 * seconds[name] / seconds['total']:6.2f} %")
    print(
        f"write, check, hash and commit: {100 * seconds['write'] / seconds['model']:.2f} % of model"
    )


def peak_memory(scratch: Path, images: int) -> None:
    """A shard of full-size JPEGs: 500 x 375 px and now and then one of 24 megapixels."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)

    def photo(width: int, height: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((width, height)).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    plain, huge = photo(500, 375), photo(6000, 4000)
    members = [(f"{i:05d}.jpg", huge if i % 50 == 0 else plain) for i in range(images)]
    shards = scratch / "memory"
    shards.mkdir()
    write_tar(shards / "big.tar", members)
    mae = weights(scratch, "trivial")
    code = (
        "import resource, sys; from pipeline.cli import main\n"
        "from ltrp_core.mae.checkpoints import load_mae; load_mae(sys.argv[5])\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "end = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(start, end, file=sys.stderr)\n"
    )
    print(f"\n## Peak memory on one shard of {images} JPEGs (every 50th has 24 megapixels)")
    for options in ((), ("--pixels", "--partitions", 10)):
        command = [sys.executable, "-c", code, "--shards", shards, "--mae", mae, "--workers", 0,
                   "--out", scratch / f"memory-{len(options)}", *options]  # fmt: skip
        command.insert(3, "score")
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=True
        )
        start, end = (int(part) / 1024 for part in done.stderr.splitlines()[-1].split())
        name = " ".join(map(str, options)) or "as it is"
        print(
            f"{name:28} {start:7.0f} MB with the model, peak {end:7.0f} MB: {end - start:+.0f} MB"
        )


def fingerprint(cache: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(cache.rglob("*")):
        name = path.relative_to(cache)
        if path.is_file() and name.parts[0] not in ("log", ".lock"):
            digest.update(f"{name}".encode() + path.read_bytes())
    return digest.hexdigest()


def kills(source: Iterator[bytes], scratch: Path, times: int) -> None:
    shards = write_shards(scratch / "kill-shards", source, 40, 10)
    mae = weights(scratch, "trivial")
    score(shards, mae, scratch / "quiet", "--workers", 0)
    cache, chance, killed = scratch / "killed", random.Random(0), 0
    command = [*PROGRAM, "--shards", shards, "--mae", mae, "--out", cache, "--workers", 0]
    while killed < times:
        process = subprocess.Popen(
            [str(part) for part in command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(2.0, 8.0))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        units = sorted((cache / "units").glob("*"))
        if len(units) == 40:
            subprocess.run(["rm", "-r", *map(str, units[1:])], check=True)
    score(shards, mae, cache, "--workers", 0)
    same = fingerprint(cache) == fingerprint(scratch / "quiet")
    print(f"\n## {times} SIGKILLs of the driver at random times (seed 0), then one run to the end")
    print(f"equal to an undisturbed cache, byte by byte: {same}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, help="tar of JPEGs, or a folder of them")
    parser.add_argument("--model", default="mae_base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=16, help="of the section `write`")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", default=["ray", "write", "memory", "kills"])
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.rounds, arguments.kills = "mae_tiny", 1, 3
    source = photographs(arguments.shards)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
          f"torch {torch.__version__}, {resource.getpagesize()} B pages")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if "ray" in arguments.only:
            ray_overhead(source, scratch, "mae_tiny", arguments.rounds)
        if "write" in arguments.only:
            write_share(source, scratch, arguments.model, arguments.images)
        if "memory" in arguments.only:
            peak_memory(scratch, 500 if arguments.quick else 5000)
        if "kills" in arguments.only:
            kills(source, scratch, arguments.kills)


if __name__ == "__main__":
    main()
