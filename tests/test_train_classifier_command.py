"""`train-classifier` as a user runs it: alone, before `evaluate images`, killed, on two workers."""

import csv
import json
import signal
import subprocess
import time

import pyarrow.parquet as pq
import pytest
from command_line import PROGRAM, one_line_error, run
from labeled_shards import write_labeled
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OPTIONS = ("--batch-size", 5, "--base-lr", 0.05, "--loader-processes", 0, "--checkpoint-every", 0.2)
VALIDATION = ("astronaut_3", "cat_2", "cat_3", "coffee_0", "coffee_3")


@pytest.fixture
def folder(photographs, tmp_path):
    """Shards with labels, to train on and to validate on, and selections of half of all patches."""
    train = [name for name in photographs if name not in VALIDATION]
    write_labeled(tmp_path / "train", photographs, names=train)
    write_labeled(tmp_path / "val", photographs, names=VALIDATION)
    for name in ("train", "val"):
        run("select", "--shards", tmp_path / name, "--selector", "patch-variance",
            "--image-size", 48, "--patch-size", 8, "--keep-ratio", 0.5,
            "--out", tmp_path / f"of-{name}")  # fmt: skip
    return tmp_path


def arguments(folder, mae, out, *more):
    return ("train-classifier", "--shards", folder / "train", "--validation-shards",
            folder / "val", "--init", mae, "--out", folder / out, *OPTIONS, *more)  # fmt: skip


def stored(folder):
    return ("--selections", folder / "of-train", "--validation-selections", folder / "of-val",
            "--keep-ratio", 0.5)  # fmt: skip


def curve(folder):
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def test_what_it_reaches_in_training_evaluate_images_finds_again(folder, small_mae):
    out, err = run(*arguments(folder, small_mae, "c", "--epochs", 4, *stored(folder)))
    table = [line.split() for line in out.splitlines()]
    assert table[0] == [
        "epoch", "loss", "lr", "accuracy_top1", "accuracy_top5", "validation_loss",
    ]  # fmt: skip
    assert [row[0] for row in table[1:]] == ["1", "2", "3", "4"]
    assert "of 5 images), top-5 100.0%" in err
    assert "next:   ltrp-pipeline evaluate images --selections" in err
    best = max(row["accuracy_top1"] for row in curve(folder / "c"))
    _, err = run("evaluate", "images", "--selections", folder / "of-val", "--shards",
                 folder / "val", "--frozen", folder / "c", "--device", "cpu",
                 "--out", folder / "e")  # fmt: skip
    rows = list(csv.DictReader((folder / "e" / "classification.csv").open()))
    row = next(row for row in rows if row["source"] == "patch variance (selected)")
    assert row["filling"] == "none"
    assert float(row["top1"]) == pytest.approx(best)
    assert (row["keep_ratio"], row["num_images"]) == ("0.5", "5")


def test_the_folder_holds_curve_log_and_no_path_of_this_machine(folder, small_mae):
    run(*arguments(folder, small_mae, "c", "--epochs", 2, *stored(folder)))
    made = folder / "c"
    assert pq.read_table(made / "metrics.parquet").to_pylist() == curve(made)
    log = EventAccumulator(str(made / "tensorboard"))
    log.Reload()
    logged = [event.value for event in log.Scalars("train-classifier/accuracy_top1")]
    assert logged == pytest.approx([row["accuracy_top1"] for row in curve(made)])
    config = (made / "config.json").read_text()
    assert str(folder) not in config
    assert str(small_mae.parent) not in config
    assert json.loads(config)["extra"]["selected_by"]["selector"] == "patch-variance"
    assert json.loads(config)["extra"]["kept"] == 18
    assert {path.name for path in folder.iterdir() if path.name.startswith(".c")} == set()
    first = (made / "classifier.safetensors").read_bytes()
    run(*arguments(folder, small_mae, "c", "--epochs", 2, *stored(folder)))
    assert (made / "classifier.safetensors").read_bytes() == first


def test_a_selector_without_selections(folder, small_mae):
    more = ("--epochs", 2, "--selector", "random", "--keep-ratio", 0.25)
    _, err = run(*arguments(folder, small_mae, "c", *more))
    assert "weights of epoch" in err
    assert "next:" not in err


def test_wrong_input_is_one_line(folder, small_mae, shards):
    assert "no image has a label" in one_line_error(
        "train-classifier", "--shards", shards, "--init", small_mae, "--out", folder / "c"
    )
    train = arguments(folder, small_mae, "c", "--keep-ratio", 0.5)
    assert "is the output of `select`" not in one_line_error(*train, "--selections", folder / "val")
    assert "holds nothing of 5 of the 5 labeled images" in one_line_error(
        *train, "--selections", folder / "of-train"
    )
    assert "unknown model of timm" in one_line_error(
        *arguments(folder, "random", "c", "--model", "timm:vit_smal_patch16_224")
    )
    assert not (folder / "c").exists()


def program(folder, mae, out, *more):
    parts = arguments(folder, mae, out, "--epochs", 25, *stored(folder), *more)
    return [*PROGRAM, *map(str, parts)]


@pytest.mark.slow
def test_a_run_that_is_killed_writes_the_same_bytes(folder, small_mae):
    subprocess.run(program(folder, small_mae, "whole"), check=True, capture_output=True)
    command = program(folder, small_mae, "killed", "--checkpoint-every", 0)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while len(list((folder / "killed").glob("checkpoints/*.json"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    subprocess.run(command, check=True, capture_output=True)
    for name in ("classifier.safetensors", "curve.jsonl", "config.json", "metrics.parquet"):
        sides = [(folder / side / name).read_bytes() for side in ("whole", "killed")]
        assert sides[0] == sides[1], name


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_train_as_one(folder, small_mae):
    """To rounding: gradients are added in another order. Without drop path, drawn by each."""
    for out, workers in (("one", 0), ("two", 2)):
        more = ("--workers", workers, "--drop-path", 0)
        subprocess.run(program(folder, small_mae, out, *more), check=True, capture_output=True)
    one, two = (curve(folder / side) for side in ("one", "two"))
    for name in ("loss", "validation_loss"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-2)
    assert [row["validated"] for row in two] == [5.0] * 25
