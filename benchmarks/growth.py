"""How cost grows: with patches, images, views, workers, and with the number of shards.

    python benchmarks/growth.py                       # all sections
    python benchmarks/growth.py --only shards --shards 100000
    python benchmarks/growth.py --quick

`sizes`: time and peak memory of scoring over n, L, model and batch, random weights. `views`: images
a second where one decoding serves several views. `workers`: a whole run on Ray with 1, 2 and 4
actors. `shards`: the real driver (listing, lock, log, manifest, summary) over that many units whose
workers do nothing but put a tiny unit in place; then `status` and a second run, which finds all of
it done.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cache_runs import photographs, write_tar

from ltrp_core.mae import MaskedAutoencoder, mae_config
from ltrp_core.scoring import leave_one_out_scores
from ltrp_core.scoring.cost import scoring_operations
from pipeline.console.progress import open_progress
from pipeline.inputs import find_shards
from pipeline.store.manifest import UnitRow
from pipeline.store.receipts import FileStamp, Receipt
from pipeline.units.runner import CacheRunner
from pipeline.workers import Outcome
from stages.protocols import ArrayField

PROGRAM = [sys.executable, "-m", "pipeline.cli"]
_RECORDS = b"a unit of a simulated run"


def peak_mb() -> float:
    """Most resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- one process: sizes ----------------------------------------------------------------------


def one_size(model: str, n: int, grid: int, batch: int, rounds: int) -> None:
    """Times one size in this process and prints a line of JSON; memory is the process's own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mae = MaskedAutoencoder(replace(mae_config(model), grid=grid)).eval()
    before = peak_mb()
    images = torch.randn(batch, 3, mae.config.image_size, mae.config.image_size)
    visible = torch.stack([torch.randperm(grid**2)[:n].sort().values for _ in range(batch)])
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        leave_one_out_scores(mae, images, visible)
        times.append((time.perf_counter() - started) / batch)
    values = {"s": statistics.median(times[1:]), "mb": peak_mb() - before}
    print(json.dumps({**values, "gflop": scoring_operations(mae.config, n) / 1e9}))


def sizes(model: str, rounds: int) -> None:
    """Each size in a process of its own, so that peaks do not add up."""
    cases = [
        *((model, n, 14, 1) for n in (9, 19, 29, 39, 49, 58)),
        *((model, max(1, round(0.1 * g * g)), g, 1) for g in (14, 20, 26, 32)),
        *((name, 19, 14, 1) for name in ("mae_tiny", "mae_small", "mae_base")),
        *((model, 19, 14, batch) for batch in (1, 4, 16)),
    ]
    print(f"\n{'model':10} {'n':>4} {'L':>5} {'batch':>5} {'ms':>8} {'GFLOP':>7} {'GFLOP/s':>8} MB")
    for name, n, grid, batch in dict.fromkeys(cases):
        words = [name, str(n), str(grid), str(batch), str(rounds)]
        told = subprocess.run(
            [sys.executable, __file__, "--one-size", *words],
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(told.stdout.splitlines()[-1])
        print(
            f"{name:10} {n:4} {grid**2:5} {batch:5} {1e3 * found['s']:8.1f} "
            f"{found['gflop']:7.1f} {found['gflop'] / found['s']:8.0f} {found['mb']:.0f}",
            flush=True,
        )


# ---- whole runs: views and workers -----------------------------------------------------------


def scored(shards: Path, out: Path, *options: str) -> dict[str, float]:
    """Runs `score` and returns the images, the seconds that its workers took, and its wall time."""
    command = [*PROGRAM, "score", "--mae", "mae_tiny", "--shards", str(shards), "--out", str(out)]
    started = time.monotonic()
    subprocess.run([*command, "--partitions", "1", *options], check=True, capture_output=True)
    wall = time.monotonic() - started
    events = [
        json.loads(line) for path in (out / "log").glob("*") for line in path.open(encoding="utf-8")
    ]
    done = [event for event in events if event["event"] == "done"]
    first = min(event["time"] - event["seconds"]["total"] for event in done)
    return {
        "images": sum(event["n_ok"] for event in done),
        "working": max(event["time"] for event in done) - first,
        "wall": wall,
        **{
            part: sum(event["seconds"].get(part, 0.0) for event in done)
            for part in ("read", "decode", "model", "write")
        },
    }


def make_shards(folder: Path, count: int, images: int) -> None:
    folder.mkdir()
    source = photographs(None)
    for number in range(count):
        some = itertools.islice(source, images)
        write_tar(
            folder / f"s-{number:03d}.tar", [(f"{number}-{i}.jpg", b) for i, b in enumerate(some)]
        )


def views(scratch: Path, images: int) -> None:
    make_shards(scratch / "views", 1, images)
    print(f"\n{'views':>5} {'views/s':>8} {'decode, % of the time':>22}")
    for number in (1, 2, 4, 8):
        told = scored(
            scratch / "views", scratch / f"v{number}", "--workers", "0", "--views", str(number)
        )
        rate = told["images"] * number / told["working"]
        print(f"{number:5} {rate:8.2f} {told['decode'] / told['working']:22.1%}", flush=True)


def workers(scratch: Path, shards: int, images: int) -> None:
    make_shards(scratch / "workers", shards, images)
    alone = 0.0
    print(f"\n{'actors':>6} {'images/s':>9} {'times one':>9}   on {os.cpu_count()} cores")
    for number in (1, 2, 4):
        told = scored(scratch / "workers", scratch / f"w{number}", "--workers", f"cpu={number}")
        rate = told["images"] / told["working"]
        alone = alone or rate
        print(f"{number:6} {rate:9.2f} {rate / alone:9.2f}", flush=True)


# ---- the driver alone: shards ----------------------------------------------------------------


class TrivialPool:
    """Puts a tiny unit in place for every item: the workers of a cluster, at no cost."""

    start_up_s = 0.0

    def __init__(self, out: Path) -> None:
        self.units = out / "units"
        self.notes: list[str] = []
        self._stamp = FileStamp(len(_RECORDS), hashlib.sha256(_RECORDS).hexdigest())

    def slots(self) -> Collection[str]:
        """Returns what the workers of a cluster would have."""
        return {"cuda"}

    def map(self, make: Any, items: Sequence[Any], *, gpu_only: bool = False) -> Iterator[Outcome]:
        """Yields one outcome an item, in order."""
        run_id = json.loads((self.units.parent / "run.json").read_text())["run_id"]
        seconds = {"read": 0.1, "decode": 0.2, "model": 9.0, "write": 0.1, "total": 9.4}
        for item in items:
            folder = self.units / item.name
            sha256 = hashlib.sha256(item.name.encode()).hexdigest()
            folder.mkdir(parents=True)
            (folder / "records.tar").write_bytes(_RECORDS)
            receipt = Receipt(
                unit=item.name,
                run_id=run_id,
                n_in=1000,
                n_ok=999,
                n_bad=1,
                reasons={"truncated": 1},
                damage=None,
                files={"records.tar": self._stamp},
                input={"name": item.shard.name, "size": item.shard.size, "sha256": sha256},
            )
            (folder / "receipt.json").write_bytes(receipt.to_bytes())
            result = {"row": UnitRow.of(receipt), "seconds": seconds, "notes": []}
            yield Outcome(item=item, result=result, worker=f"host-{len(item.name) % 8}:cuda")


def simulate(folder: Path, out: Path) -> None:
    """One run of the driver in this process; prints a line of JSON."""
    # What the command of a run on a cluster has imported by then counts as the driver's memory.
    importlib.import_module("ray")
    importlib.import_module("pipeline.commands.run")
    imports = peak_mb()
    progress = open_progress()
    started = time.monotonic()
    shards = find_shards([str(folder)])
    listed = time.monotonic() - started
    runner = CacheRunner(out=str(out), shards=shards, pool=TrivialPool(out), progress=progress)
    fields = {"key": ArrayField(dtype="string", shape=(), fill="")}
    summary = runner.run("score", lambda device: None, identity={"views": 1}, fields=fields)
    total = time.monotonic() - started
    facts = {"listed": listed, "total": total, "done": summary.done, "skipped": summary.skipped}
    print(json.dumps({**facts, "imports": imports, "mb": peak_mb()}))


def shards(scratch: Path, count: int) -> None:
    folder, out = scratch / "tars", scratch / "cache"
    folder.mkdir()
    originals: list[Path] = []
    for number in range(count):
        path = folder / f"train-{number:06d}.tar"
        # A file may have some 65,000 names; 50,000 of them are one file here.
        if number % 50_000 == 0:
            write_tar(path, [("a.jpg", b"not decoded")])
            originals.append(path)
        else:
            os.link(originals[-1], path)
    print(f"\n{count} shards")
    for name in ("first run", "second run, all done"):
        told = subprocess.run(
            [sys.executable, __file__, "--simulate", str(folder), str(out)],
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(told.stdout.splitlines()[-1])
        working = found["total"] - found["listed"]
        print(
            f"{name}: listed in {found['listed']:.1f} s, then {working:.1f} s = "
            f"{count / working:.0f} units/s; {found['done']} done, {found['skipped']} already "
            f"there; peak memory of the driver {found['mb']:.0f} MiB, "
            f"{found['imports']:.0f} of it imports",
            flush=True,
        )
    times = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run([*PROGRAM, "status", str(out)], check=True, capture_output=True)
        times.append(time.monotonic() - started)
    print(f"status: {statistics.median(times):.1f} s ({min(times):.1f} to {max(times):.1f})")
    manifest = (out / "manifest.parquet").stat().st_size
    log = sum(path.stat().st_size for path in (out / "log").iterdir())
    print(f"manifest {manifest / count:.0f} B a unit, log {log / count:.0f} B a unit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sections = ("sizes", "views", "workers", "shards")
    parser.add_argument("--only", nargs="+", default=list(sections), choices=sections)
    parser.add_argument("--model", default="mae_base")
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--one-size", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--simulate", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_size:
        model, *numbers = arguments.one_size
        n, grid, batch, rounds = map(int, numbers)
        return one_size(model, n, grid, batch, rounds)
    if arguments.simulate:
        return simulate(*arguments.simulate)
    quick = arguments.quick
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if "sizes" in arguments.only:
            sizes("mae_tiny" if quick else arguments.model, 1 if quick else arguments.rounds)
        if "views" in arguments.only:
            views(scratch, 8 if quick else 40)
        if "workers" in arguments.only:
            workers(scratch, 4 if quick else 48, 4 if quick else 20)
        if "shards" in arguments.only:
            shards(scratch, 500 if quick else arguments.shards)


if __name__ == "__main__":
    main()
