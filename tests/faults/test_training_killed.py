"""Training processes that are killed at any time: what comes out is that of an undisturbed run."""

import random
import signal
import subprocess
import time

import pytest
from command_line import PROGRAM, run

RESULTS = (
    "ranker.safetensors",
    "last/ranker.safetensors",
    "config.json",
    "curve.jsonl",
    "metrics.parquet",
    "README.md",
)


@pytest.fixture
def cache(shards, small_mae, tmp_path):
    run(
        "score", "--shards", shards, "--mae", small_mae, "--out", tmp_path / "cache", "--pixels",
        "--views", 2, "--partitions", 3,
    )  # fmt: skip
    return tmp_path / "cache"


def command(cache, out):
    parts = [
        *PROGRAM, "train-ranker", "--cache", cache, "--out", out, "--ranker", "vit_tiny",
        "--epochs", 30, "--batch-size", 2, "--base-lr", 0.01, "--ema", 0.9,
        "--checkpoint-every", 0.3,
    ]  # fmt: skip
    return [str(part) for part in parts]


def killed_until_done(cache, out, kills, seed):
    """Starts the same command until it ends by itself; returns how often it was killed."""
    draw = random.Random(seed)
    count = 0
    while True:
        process = subprocess.Popen(command(cache, out), stderr=subprocess.PIPE, text=True)
        if count < kills:
            # From the start of the process on: imports, staging, training, writing.
            try:
                process.wait(draw.uniform(2.0, 12.0))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                count += 1
        _, err = process.communicate(timeout=300)
        if process.returncode == 0:
            return count
        assert process.returncode == -signal.SIGKILL, err


@pytest.mark.parametrize("kills", [pytest.param(2, id="2"), pytest.param(20, id="20")])
@pytest.mark.faults
def test_a_training_run_that_is_killed_at_any_time_writes_the_same_bytes(cache, tmp_path, kills):
    subprocess.run(command(cache, tmp_path / "whole"), check=True, capture_output=True)
    count = killed_until_done(cache, tmp_path / "killed", kills, seed=kills)
    assert count > 0
    for name in RESULTS:
        whole, killed = ((tmp_path / side / name).read_bytes() for side in ("whole", "killed"))
        assert whole == killed, name


def test_an_interrupted_training_run_ends_soon_and_goes_on(cache, tmp_path):
    subprocess.run(command(cache, tmp_path / "whole"), check=True, capture_output=True)
    out = tmp_path / "stopped"
    process = subprocess.Popen(command(cache, out), stderr=subprocess.PIPE, text=True)
    while not list(out.glob("checkpoints/*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, time.monotonic() - started < 10) == (130, True), err
    subprocess.run(command(cache, out), check=True, capture_output=True)
    assert (out / "ranker.safetensors").read_bytes() == (
        tmp_path / "whole" / "ranker.safetensors"
    ).read_bytes()
