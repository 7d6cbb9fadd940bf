"""status, inspect, verify --rescore and plan, on caches of real photographs."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from command_line import one_line_error, run
from conftest import SMALL_MAE
from PIL import Image
from scored_caches import forge

from ltrp_core.mae import MaskedAutoencoder, save_mae
from pipeline.inspection.rescore import choose
from pipeline.inspection.status import read_status
from pipeline.store import open_cache
from pipeline.store.storage.lock import folder_lock


@pytest.fixture
def scored(shards, small_mae, tmp_path):
    """A cache of two shards out of three: one is damaged."""
    (shards / "part-2.tar").write_bytes(b"damaged")
    out = tmp_path / "cache"
    run("score", "--shards", shards, "--mae", small_mae, "--out", out, "--views", 2,
        "--partitions", 3, "--pixels", expect=1)  # fmt: skip
    return out


def test_status_says_what_is_done_what_failed_and_where_the_time_went(scored):
    out, _ = run("status", scored, expect=1)
    assert "3 = 2 done + 1 failed + 0 pending" in out
    assert "8 ok, 0 bad" in out
    assert "driver   none" in out
    assert re.search(r"failed +part-2\.tar +1 attempt\(s\) +\S*part-2\.tar cut at byte 7", out)
    assert re.search(r"time +wait [\d.]+ %, model [\d.]+ %, write [\d.]+ %", out)
    each, _ = run("status", scored, "--shards", expect=1)
    assert re.search(r"done +part-0\.tar +4 images +[\d.]+ images/s \(read", each)
    facts = json.loads(run("status", scored, "--json", expect=1)[0])
    assert {s["shard"]: s["state"] for s in facts["shards"]} == {
        "part-0.tar": "done", "part-1.tar": "done", "part-2.tar": "failed"}  # fmt: skip
    with folder_lock(scored):
        assert '"pid"' in read_status(open_cache(scored)).writing


def test_status_of_a_run_that_died_counts_what_is_pending(scored):
    unit = next((scored / "units").iterdir())
    shutil.rmtree(unit)
    status = read_status(open_cache(scored))
    states = sorted(shard.state for shard in status.shards)
    assert states == ["done", "failed", "pending"]
    assert status.n_ok == 4
    # A unit that the manifest does not know yet is found by its receipt.
    (scored / "manifest.parquet").unlink()
    assert read_status(open_cache(scored)).n_ok == 4


def test_status_counts_appended_views(scored, shards, small_mae):
    (shards / "part-2.tar").unlink()
    run("score", "--shards", shards, "--mae", small_mae, "--out", scored, "--append-views", 1)
    assert "views-00002: 1 view(s), 2 of 2 units" in run("status", scored, expect=1)[0]


def test_rescoring_finds_nothing_in_a_sound_cache(scored, shards, small_mae):
    run("score", "--shards", shards / "part-0.tar", "--shards", shards / "part-1.tar", "--mae",
        small_mae, "--out", scored, "--append-views", 1)  # fmt: skip
    out, _ = run("verify", scored, "--rescore", "60%", "--shards", shards / "part-0.tar",
                 "--shards", shards / "part-1.tar", "--mae", small_mae)  # fmt: skip
    # 5 of 8 samples, 2 + 1 views of 3 partitions
    assert "scored 5 samples (45 records) again" in out
    assert float(re.search(r"largest difference (\S+)", out)[1]) < 2**-10


def test_rescoring_finds_a_score_that_checksums_cannot(scored, shards, small_mae, tmp_path):
    cache = open_cache(scored)
    unit = cache.units[1]
    arrays = forge(cache, unit, lambda arrays: arrays["score"][2, 1, 0, :1].__imul__(1.05))
    options = ("--shards", shards / "part-0.tar", "--shards", shards / "part-1.tar",
               "--mae", small_mae)  # fmt: skip
    assert "2 complete units" in run("verify", scored, "--deep", expect=None)[0]
    out, _ = run("verify", scored, "--rescore", "100%", *options, expect=1)
    assert re.search(rf"{unit}: '{arrays['key'][2]}': a score of view 1, partition 0 differs", out)
    torch.manual_seed(1)
    save_mae(MaskedAutoencoder(SMALL_MAE), tmp_path / "other.safetensors")
    wrong = (*options[:5], tmp_path / "other.safetensors")
    message = one_line_error("verify", scored, "--rescore", "10%", *wrong)
    assert "pass the same weights" in message
    assert "--rescore needs --shards and --mae" in one_line_error("verify", scored, "--rescore", 1)


def test_the_share_that_is_scored_again_is_a_function_of_the_seed(scored):
    cache = open_cache(scored)
    assert choose(cache, 0.5, 0) == choose(open_cache(scored), 0.5, 0)
    assert any(choose(cache, 0.5, 0) != choose(cache, 0.5, seed) for seed in (1, 2, 3))
    assert sum(map(len, choose(cache, 0.01, 0).values())) == 1


def test_inspect_tells_and_draws(scored, shards, tmp_path):
    listing, _ = run("inspect", scored)
    assert listing.count("4 ok, 0 bad") == 2
    out, _ = run("inspect", scored, "part-1.tar")
    assert "samples  4 = 4 ok + 0 bad" in out
    assert re.search(r"score +min \S+, quartiles", out)
    assert "astronaut_0" in run("inspect", scored, "part-0")[0]
    sample, _ = run("inspect", scored, "part-0.tar", "--key", "astronaut_2")
    assert "180 x 150 px" in sample
    assert sample.count("partition") == 6
    for number, source in enumerate(([], ["--shards", shards / "part-0.tar"])):
        png = tmp_path / f"{number}.png"
        run("inspect", scored, "part-0.tar", "--key", "astronaut_2", "--png", png, *source)
        picture = np.asarray(Image.open(png).convert("RGB"))
        assert picture.shape[1] > 900
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500


def test_inspect_names_what_is_near(scored):
    assert "part-0" in one_line_error("inspect", scored, "prt-0.tar")
    assert "2 units begin with" in one_line_error("inspect", scored, "part")
    message = one_line_error("inspect", scored, "part-0.tar", "--key", "astronut_1")
    assert "near: astronaut_1" in message
    draw = ("inspect", scored, "part-0.tar", "--key", "astronaut_1", "--png", "x.png")
    assert "there is no view 7" in one_line_error(*draw, "--view", 7)


def test_a_plan_counts_what_can_be_counted(photo_folder, small_mae, tmp_path):
    arguments = ("plan", "--shards", photo_folder, "--unit-size", 5, "--mae", small_mae,
                 "--views", 2, "--partitions", 3, "--seconds", 0.2, "--max-workers", 4,
                 "--out", tmp_path / "cache")  # fmt: skip
    out, _ = run(*arguments)
    assert "3 shards" in out
    assert " 12 images" in out
    # 12 images x 2 views x 3 partitions of n = 3 patches, each left out once
    assert "72 records, 288 decoder passes" in out
    assert re.search(r"[\d.]+ images/s on this device \(CPU", out)
    assert [int(n) for n in re.findall(r"(\d+) worker\(s\)", out)] == [1, 2, 4]
    assert "free: fits" in out
    assert not (tmp_path / "cache").exists()
    run("score", *arguments[1:-8], "--out", tmp_path / "cache", "--workers", 0)
    planned = float(re.search(r"output +([\d.]+) kB", out)[1]) * 1000
    rows = open_cache(tmp_path / "cache").rows.values()
    assert sum(row.bytes for row in rows) == pytest.approx(planned, rel=0.3)


def test_a_plan_from_tars_estimates_the_images(shards, small_mae):
    out, _ = run("plan", "--shards", shards, "--mae", small_mae, "--seconds", 0.2)
    images = int(re.search(r"about (\d+) images", out)[1])
    assert images == pytest.approx(12, rel=0.3)
