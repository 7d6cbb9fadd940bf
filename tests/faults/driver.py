"""Runs `score` as a process of its own that can be killed, and compares what is left."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from pipeline.faults import VARIABLE

PROGRAM = [sys.executable, "-m", "pipeline.cli"]
LEFT_BY_A_KILL = (".lock", "log")
"""What a cache holds besides its result: who works on it, and who did what when."""


def write_shards(folder, photographs, make_tar, count, images=4):
    """Writes `count` tars of `images` photographs with keys of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = list(photographs.values())
    for number in range(count):
        members = [
            (f"{number:02d}_{i}.jpg", contents[(number + i) % len(contents)]) for i in range(images)
        ]
        make_tar(folder / f"part-{number:02d}.tar", members)
    return folder


def command(shards, mae, out, *options):
    parts = [*PROGRAM, "score", "--shards", shards, "--mae", mae, "--out", out, *options]
    if "--workers" not in options:
        parts += ["--workers", 0]
    return [str(part) for part in parts]


def start(shards, mae, out, *options, fault=None, env=None):
    """Starts a driver; `fault` is what LTRP_FAULT says."""
    environment = {**os.environ, **(env or {})}
    if fault is not None:
        environment[VARIABLE] = json.dumps(fault)
    return subprocess.Popen(
        command(shards, mae, out, *options),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, expect=None, timeout=120):
    """Waits for a driver; returns what it said on standard error."""
    _, err = process.communicate(timeout=timeout)
    assert expect is None or process.returncode == expect, (process.returncode, err)
    return err


def drive(shards, mae, out, *options, expect=0, fault=None, env=None, timeout=120):
    return finish(start(shards, mae, out, *options, fault=fault, env=env), expect, timeout)


def fingerprint(cache: Path) -> str:
    """sha256 over every file of a cache that is its result: units, manifest, run.json."""
    digest = hashlib.sha256()
    for path in sorted(cache.rglob("*")):
        name = path.relative_to(cache)
        if path.is_file() and name.parts[0] not in LEFT_BY_A_KILL:
            digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def units(cache: Path) -> list[str]:
    folder = cache / "units"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def take_away(cache: Path, names: list[str]) -> None:
    """Deletes units, as a person would."""
    for name in names:
        shutil.rmtree(cache / "units" / name)


def wait_for_units(cache: Path, count: int, process=None, timeout=60.0) -> None:
    """Waits until `count` units are there, or the process has ended."""
    deadline = time.monotonic() + timeout
    while len(units(cache)) < count and time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            return
        time.sleep(0.02)


def events(cache: Path) -> list[dict]:
    lines = [line for path in sorted((cache / "log").iterdir()) for line in path.open()]
    return [json.loads(line) for line in lines]
