"""The whole pipeline through the command line, on real photographs of 150 x 180 px."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from command_line import PROGRAM, one_line_error, run

from ltrp_core.rankers import load_ranker
from pipeline.cli import COMMANDS, cli
from pipeline.store import open_cache


def annotations(path, keys):
    """A COCO file: a box in the middle of every photograph."""
    images = [
        {"id": i, "file_name": f"{key}.jpg", "height": 150, "width": 180}
        for i, key in enumerate(keys)
    ]
    boxes = [
        {
            "id": i,
            "image_id": i,
            "category_id": 1,
            "bbox": [40, 30, 90, 80],
            "segmentation": [[40, 30, 130, 30, 130, 110, 40, 110]],
            "area": 7200,
            "iscrowd": 0,
        }
        for i, _ in enumerate(keys)
    ]
    categories = [{"id": 1, "name": "thing"}]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return path


def test_every_stage_in_turn(photo_folder, small_mae, tmp_path):
    shards, cache = tmp_path / "shards", tmp_path / "cache"
    run("pack", photo_folder, "--out", shards, "--shard-size", 5)
    run("score", "--shards", shards, "--mae", small_mae, "--out", cache, "--views", 2,
        "--partitions", 3)  # fmt: skip
    run("score", "--shards", shards, "--mae", small_mae, "--out", tmp_path / "teacher",
        "--crop", "eval", "--sampler", "cover")  # fmt: skip
    out, _ = run("train-ranker", "--cache", cache, "--shards", shards, "--out",
        tmp_path / "ranker", "--ranker", "vit_tiny", "--epochs", 2, "--holdout", 0.2)  # fmt: skip
    assert out.split()[:4] == ["epoch", "loss", "lr", "tau"]
    run("select", "--shards", shards, "--ranker", tmp_path / "ranker", "--out",
        tmp_path / "selections", "--keep-ratio", 0.25, "--keep-ratio", 0.5)  # fmt: skip
    keys = [f"{kind}/{kind}_{i}" for kind in ("astronaut", "cat", "coffee") for i in range(4)]
    table, _ = run("evaluate", "patches", "--selections", tmp_path / "selections",
        "--annotations", annotations(tmp_path / "instances.json", keys),
        "--teacher", tmp_path / "teacher", "--out", tmp_path / "evaluation")  # fmt: skip
    for source in (
        "ranker", "teacher", "border contrast", "patch variance", "center", "random", "oracle",
    ):  # fmt: skip
        assert source in table
    run("report", "--selections", tmp_path / "selections", "--shards", shards, "--mae",
        small_mae, "--teacher", tmp_path / "teacher", "--evaluation", tmp_path / "evaluation",
        "--training", tmp_path / "ranker", "--out", tmp_path / "report")  # fmt: skip

    scores = open_cache(cache)
    assert sum(row.n_ok for row in scores.rows.values()) == 12
    arrays = scores.read(scores.units[0])
    assert arrays["score"].shape == (5, 2, 3, 3)
    assert np.isfinite(arrays["score"]).all()
    assert load_ranker(tmp_path / "ranker").grid == 6
    selected = open_cache(tmp_path / "selections")
    kept = selected.read(selected.units[0])["kept_0.5"]
    assert all(len(set(row)) == 18 for row in kept.tolist())
    rows = pq.read_table(tmp_path / "evaluation" / "evaluation.parquet").to_pylist()
    precision = {(r["source"], r["keep_ratio"]): r["precision"] for r in rows}
    for (source, ratio), value in precision.items():
        assert value <= precision["oracle", ratio] + 1e-9, source
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
    assert run("verify", cache, "--deep")[0].endswith("12 samples = 12 ok + 0 bad, 0 faults\n")


def unit_bytes(cache):
    """Every file of every unit, and the manifest: all that a finished cache is read by."""
    files = sorted(p for p in (cache / "units").rglob("*") if p.is_file())
    return {str(p.relative_to(cache)): p.read_bytes() for p in [*files, cache / "manifest.parquet"]}


def score(shards, mae, out, *options, expect=0):
    return run("score", "--shards", shards, "--mae", mae, "--out", out, "--views", 2,
               *options, expect=expect)  # fmt: skip


@pytest.mark.ray
def test_workers_batches_and_restarts_change_no_byte(shards, small_mae, tmp_path):
    score(shards, small_mae, tmp_path / "a")
    score(shards, small_mae, tmp_path / "b", "--batch-size", 1, "--workers", 2)
    score(f"{shards}/part-2.tar", small_mae, tmp_path / "c")
    score(f"{shards}/part-{{1,0}}.tar", small_mae, tmp_path / "c", "--batch-size", 3)
    assert unit_bytes(tmp_path / "a") == unit_bytes(tmp_path / "b") == unit_bytes(tmp_path / "c")


def test_a_second_run_scores_nothing(shards, small_mae, tmp_path):
    score(shards, small_mae, tmp_path / "cache")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "units").rglob("*")}
    _, err = score(shards, small_mae, tmp_path / "cache")
    assert "0 done, 3 already there, 0 failed" in err
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "units").rglob("*")}


def test_a_damaged_shard_fails_alone_and_is_retried(shards, small_mae, tmp_path):
    whole = (shards / "part-1.tar").read_bytes()
    (shards / "part-1.tar").write_bytes(whole[: len(whole) // 2])
    _, err = score(shards, small_mae, tmp_path / "cache", expect=1)
    assert "2 done, 0 already there, 1 failed" in err
    assert re.search(r"failed part-1\.tar: .*part-1\.tar cut at byte", err)
    (shards / "part-1.tar").write_bytes(whole)
    _, err = score(shards, small_mae, tmp_path / "cache")
    assert "1 done, 2 already there, 0 failed" in err
    score(shards, small_mae, tmp_path / "whole")
    assert unit_bytes(tmp_path / "cache") == unit_bytes(tmp_path / "whole")


def test_bad_images_are_counted_by_reason_and_leave_their_neighbors_alone(
    photographs, small_mae, make_tar, tmp_path
):
    good = [(f"{name}.jpg", content) for name, content in list(photographs.items())[:4]]
    bad = [("empty.jpg", b""), ("cut.jpg", good[0][1][:900]), ("page.png", b"<html>")]
    make_tar(tmp_path / "good.tar", good)
    make_tar(tmp_path / "mixed.tar", [good[0], bad[0], good[1], bad[1], bad[2], *good[2:]])
    score(tmp_path / "good.tar", small_mae, tmp_path / "a")
    _, err = score(tmp_path / "mixed.tar", small_mae, tmp_path / "b")
    assert "4 images ok, 3 bad" in err
    clean, mixed = open_cache(tmp_path / "a"), open_cache(tmp_path / "b")
    receipt = mixed.receipt(mixed.units[0])
    assert receipt.reasons == {"empty": 1, "truncated": 1, "unidentified": 1}
    ours, theirs = clean.read(clean.units[0]), mixed.read(mixed.units[0])
    for name in ours:
        assert np.array_equal(ours[name], theirs[name])
    errors = pq.read_table(tmp_path / "b" / "units" / mixed.units[0] / "errors.parquet")
    assert errors["key"].to_pylist() == ["empty", "cut", "page"]


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGINT, 0),
        (signal.SIGTERM, 0),
        pytest.param(signal.SIGINT, 2, marks=pytest.mark.ray),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.ray),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_cache(
    number, workers, photographs, small_mae, make_tar, tmp_path
):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(40):
        members = [(f"{i}_{k}.jpg", content) for k, content in photographs.items()]
        make_tar(folder / f"{i:02d}.tar", members)
    arguments = [*PROGRAM, "score", "--shards", folder, "--mae", small_mae, "--out",
                 tmp_path / "cache", "--workers", workers]  # fmt: skip
    process = subprocess.Popen(list(map(str, arguments)), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cache" / "units").glob("*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert "interrupted; run the same command again" in err
    before = len(open_cache(tmp_path / "cache").units)
    assert 0 < before < 40
    _, err = run("score", "--shards", folder, "--mae", small_mae, "--out", tmp_path / "cache")
    assert f"{40 - before} done, {before} already there, 0 failed" in err
    assert run("verify", tmp_path / "cache", "--deep")[0].endswith(
        "480 samples = 480 ok + 0 bad, 0 faults\n"
    )


def test_wrong_input_gets_one_line_that_names_the_thing_and_the_remedy(
    shards, small_mae, photo_folder, tmp_path
):
    (tmp_path / "no-images").mkdir()
    (tmp_path / "fake.tar").write_bytes(b"not a tar")
    out = tmp_path / "out"

    def scored(*options, mae=small_mae, source=shards):
        return one_line_error("score", "--shards", source, "--mae", mae, "--out", out, *options)

    assert "no-images holds no image" in one_line_error(
        "pack", tmp_path / "no-images", "--out", out
    )
    assert "is no folder" in one_line_error("pack", tmp_path / "missing", "--out", out)
    assert "missing.tar" in scored(source="missing.tar")
    assert "mask ratio 0.999 leaves no visible patch of 36" in scored("--mask-ratio", 0.999)
    assert "mae_visualize_vit_base.pth" in scored(mae="mae_base")
    assert "missing.safetensors" in scored(mae=tmp_path / "missing.safetensors")
    assert "--views is 0, out of range 1 .. inf" in scored("--views", 0)
    assert "--device 'cuda:99'" in scored("--device", "cuda:99")
    assert "pass a number or auto" in scored("--workers", "x")
    assert "unknown masked autoencoder 'mae_tny'; did you mean mae_tiny" in one_line_error(
        "pretrain-mae", "--shards", shards, "--model", "mae_tny", "--out", out)  # fmt: skip
    assert "it takes the --out folder of `ltrp-pipeline score`" in one_line_error(
        "train-ranker", "--cache", tmp_path, "--shards", shards, "--out", out)  # fmt: skip
    assert "train-ranker" in one_line_error(
        "select", "--shards", shards, "--ranker", tmp_path, "--out", out)  # fmt: skip
    assert "fake.tar is not a tar; pass WebDataset tars" in scored(source=tmp_path / "fake.tar")
    assert not out.exists()


def test_a_missing_package_is_named_with_how_to_get_it(shards, small_mae, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    assert "pip install 'ltrp-pipeline[demo]'" in one_line_error("demo", "--out", out)
    monkeypatch.setitem(sys.modules, "ray", None)
    message = one_line_error(
        "score", "--shards", shards, "--mae", small_mae, "--out", out, "--workers", 2)  # fmt: skip
    assert "pip install ray, or pass --workers 0" in message
    assert not out.exists()


def test_what_does_not_fit_together_is_refused(shards, small_mae, photo_folder, tmp_path):
    cache, ranker = tmp_path / "cache", tmp_path / "ranker"
    score(shards, small_mae, cache)
    again = ("score", "--shards", shards, "--mae", small_mae, "--out", cache)
    assert "views: 2 there, 1 asked" in one_line_error(*again)
    train = ("train-ranker", "--cache", cache, "--ranker", "vit_tiny", "--epochs", 1)
    assert "vit_tiny" in one_line_error(
        *train, "--shards", shards, "--ranker", "vit_tinny", "--out", ranker)  # fmt: skip
    run("pack", photo_folder, "--out", tmp_path / "other")
    message = one_line_error(*train, "--shards", tmp_path / "other", "--out", ranker)
    assert "no shard given is the one unit part-0" in message
    run(*train, "--shards", shards, "--out", ranker)
    assert "epochs: 1 there, 2 asked" in one_line_error(
        *train, "--epochs", 2, "--shards", shards, "--out", ranker)  # fmt: skip
    select = ("select", "--shards", shards, "--ranker", ranker, "--out", tmp_path / "sel")
    assert "k must be from 1 to 36" in one_line_error(*select, "--keep-ratio", 0.001)
    assert "out of range 0.0 .. 1.0" in one_line_error(*select, "--keep-ratio", 1.5)
    assert not (tmp_path / "sel").exists()


def test_training_twice_gives_the_same_weights(shards, small_mae, tmp_path):
    score(shards, small_mae, tmp_path / "cache", "--score-dtype", "float16")
    options = ("train-ranker", "--cache", tmp_path / "cache", "--shards", shards,
               "--ranker", "vit_tiny", "--epochs", 2)  # fmt: skip
    for name in ("one", "two"):
        run(*options, "--out", tmp_path / name)
    one, two = (tmp_path / name / "ranker.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_the_table_of_commands_is_whole_and_every_help_has_an_example():
    assert CliRunner().invoke(cli, ["--help"]).exit_code == 0
    for name, (_, line) in COMMANDS.items():
        result = CliRunner().invoke(cli, [name, "--help"], terminal_width=80)
        assert result.exit_code == 0, name
        assert line.rstrip(".") in result.output
        if name != "evaluate":
            assert "Example: ltrp-pipeline" in " ".join(result.output.split())


def test_an_unknown_command_or_option_is_wrong_use():
    assert "No such command 'scor'; did you mean score" in run("scor", expect=2)[1]
    assert "No such command 'xyzzy'" in run("xyzzy", expect=2)[1]
    assert "No such option" in run("score", "--shrds", "x", expect=2)[1]


@pytest.mark.parametrize(
    "words", [["pack"], ["demo"], ["status"], ["verify"], ["inspect"], ["run"]]
)
def test_help_of_what_needs_no_model_does_not_wait_for_torch(words):
    code = (
        "import sys\nfrom pipeline.cli import cli\n"
        f"cli.main({words!r} + ['--help'], standalone_mode=False)\n"
        "slow = {'torch', 'timm', 'ray'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "Usage:" in ended.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(shell):
    assert "_LTRP_PIPELINE_COMPLETE" in run("completion", shell)[0]


def test_commands_options_and_choices_are_completed():
    def completed(line):
        words = line.split(" ")
        asked = {
            "_LTRP_PIPELINE_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        }
        ended = subprocess.run(
            PROGRAM, env={**os.environ, **asked}, capture_output=True, text=True, check=True
        )
        return [found.partition(",")[2] for found in ended.stdout.splitlines()]

    assert completed("ltrp-pipeline sc") == ["score"]
    assert "--shard-size" in completed("ltrp-pipeline pack --sha")
    assert completed("ltrp-pipeline completion f") == ["fish"]
    assert "grad-cam" in completed("ltrp-pipeline select --selector g")


def test_help_does_not_wait_for_torch():
    code = "import sys; import pipeline.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
