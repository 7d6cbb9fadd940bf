"""`train-ranker` as a user runs it: without images, on several workers, with wrong input."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from command_line import PROGRAM, one_line_error, run
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ltrp_core.rankers import load_ranker

OPTIONS = ("--ranker", "vit_tiny", "--batch-size", 6, "--base-lr", 0.02, "--checkpoint-every", 0.2)


@pytest.fixture
def cache(shards, small_mae, tmp_path):
    run(
        "score", "--shards", shards, "--mae", small_mae, "--out", tmp_path / "cache", "--pixels",
        "--views", 2, "--partitions", 2,
    )  # fmt: skip
    return tmp_path / "cache"


def curve(folder):
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def test_a_cache_with_pixels_needs_no_images(cache, tmp_path):
    out, err = run(
        "train-ranker", "--cache", cache, "--out", tmp_path / "r", "--epochs", 3, *OPTIONS
    )
    table = out.splitlines()
    assert table[0].split()[:4] == ["epoch", "loss", "lr", "tau"]
    assert [line.split()[0] for line in table[1:]] == ["1", "2", "3"]
    assert "weights of epoch" in err
    assert load_ranker(tmp_path / "r").grid == 6
    assert pq.read_table(tmp_path / "r" / "metrics.parquet").to_pylist() == curve(tmp_path / "r")
    assert "vit_tiny" in (tmp_path / "r" / "README.md").read_text()
    assert not (tmp_path / "r" / "scratch").exists()
    log = EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    log.Reload()
    logged = [event.value for event in log.Scalars("train-ranker/loss")]
    assert logged == pytest.approx([row["loss"] for row in curve(tmp_path / "r")])


def test_a_finished_run_is_not_run_again(cache, tmp_path):
    command = ("train-ranker", "--cache", cache, "--out", tmp_path / "r", "--epochs", 2, *OPTIONS)
    first, _ = run(*command)
    weights = (tmp_path / "r" / "ranker.safetensors").read_bytes()
    second, _ = run(*command)
    assert first == second
    assert (tmp_path / "r" / "ranker.safetensors").read_bytes() == weights


def test_wrong_input_is_one_line(cache, shards, small_mae, tmp_path):
    plain = tmp_path / "plain"
    run("score", "--shards", shards, "--mae", small_mae, "--out", plain, "--partitions", 1)
    train = ("train-ranker", "--out", tmp_path / "r", "--cache")
    assert "holds no pixels; pass the scored images" in one_line_error(*train, plain)
    assert "is no cache" in one_line_error(*train, tmp_path / "nowhere")
    assert "unknown ranker" in one_line_error(*train, cache, "--ranker", "vit_smal")
    assert not (tmp_path / "r" / "ranker.safetensors").exists()


def command(cache, out, *more):
    parts = [*PROGRAM, "train-ranker", "--cache", cache, "--out", out, "--epochs", 12, *OPTIONS]
    return [str(part) for part in (*parts, *more)]


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_train_as_one(cache, tmp_path):
    """To rounding: gradients are added in another order."""
    subprocess.run(command(cache, tmp_path / "one"), check=True, capture_output=True)
    done = subprocess.run(
        command(cache, tmp_path / "two", "--workers", 2),
        check=True,
        capture_output=True,
        text=True,
    )
    assert "weights of epoch" in done.stderr
    losses = [[row["loss"] for row in curve(tmp_path / side)] for side in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    weights = [load_file(tmp_path / side / "last/ranker.safetensors") for side in ("one", "two")]
    assert torch.allclose(weights[0]["head.weight"], weights[1]["head.weight"], atol=1e-2)


@pytest.mark.ray
@pytest.mark.faults
def test_a_lost_worker_costs_no_bit(cache, tmp_path):
    two = command(cache, tmp_path / "two", "--workers", 2)
    subprocess.run(two, check=True, capture_output=True)
    killed = subprocess.Popen(
        command(cache, tmp_path / "killed", "--workers", 2),
        env=os.environ | {"LTRP_TEST": str(os.getpid())},
        stderr=subprocess.PIPE,
        text=True,
    )
    kill_a_rank_after(killed, tmp_path / "killed" / "checkpoints")
    _, err = killed.communicate(timeout=300)
    assert killed.returncode == 0, err
    assert "note: a worker was lost" in err
    for name in ("ranker.safetensors", "curve.jsonl", "last/ranker.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def kill_a_rank_after(driver: subprocess.Popen, checkpoints: Path) -> None:
    """SIGKILLs the second rank as soon as there is a checkpoint."""
    end = time.monotonic() + 120
    while not list(checkpoints.glob("*.json")):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    ranks = sorted(ranks_of(os.getpid()))
    assert len(ranks) == 2
    os.kill(ranks[-1], signal.SIGKILL)


def ranks_of(mark: int) -> Iterator[int]:
    """Yields the processes that train, of the driver that was started with this mark."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_text(errors="replace")
            environment = (process / "environ").read_text(errors="replace")
        except OSError:
            continue
        if "TrainWorker" in title and f"LTRP_TEST={mark}" in environment:
            yield int(process.name)
