"""`evaluate ranking` as a user runs it: a ranker and its teacher, two teachers, wrong input."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import one_line_error, run

from ltrp_core.ranking_metrics import kendall_tau_b
from ltrp_core.repeatability import mean_map
from pipeline.store import open_cache


def scored(shards, mae, out, **options):
    given = {"crop": "eval", "sampler": "cover", "mask-ratio": 0.75, "partitions": 8} | options
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    run("score", "--shards", shards, "--mae", mae, "--out", out, *words)
    return out


@pytest.fixture
def caches(shards, small_mae, tmp_path):
    """A teacher's cache, another draw of it, and a selection by a baseline."""
    teacher = scored(shards, small_mae, tmp_path / "teacher")
    again = scored(shards, small_mae, tmp_path / "again", seed=1)
    run("select", "--shards", shards, "--teacher", teacher, "--out", tmp_path / "selected")
    return teacher, again, tmp_path / "selected"


def maps(cache):
    found = {}
    for unit in cache.units:
        arrays = cache.read(unit)
        means, _ = mean_map(arrays["visible"][:, 0], arrays["score"][:, 0], 36)
        found |= dict(zip(arrays["key"].tolist(), means))
    return found


def test_two_draws_of_a_teacher(caches, tmp_path):
    teacher, again, _ = caches
    out, err = run("evaluate", "ranking", teacher, again, "--out", tmp_path / "r")
    assert (tmp_path / "r" / "ranking.txt").read_text() == out
    rows = {(r["measure"], r["keep_ratio"]): r for r in pq.read_table(
        tmp_path / "r" / "agreement.parquet").to_pylist()}  # fmt: skip
    ours, theirs = maps(open_cache(teacher)), maps(open_cache(again))
    import torch

    taus = [
        float(kendall_tau_b(torch.tensor(ours[key])[None], torch.tensor(theirs[key])[None]))
        for key in ours
    ]
    assert rows["tau", None]["mean"] == pytest.approx(np.mean(taus))
    assert rows["tau", None]["low"] <= np.mean(taus) <= rows["tau", None]["high"]
    assert rows["overlap", 0.25]["by_chance"] == 0.25
    assert {row["num_images"] for row in rows.values()} == {12}
    images = pq.read_table(tmp_path / "r" / "ranking_images.parquet").to_pylist()
    assert {row["key"]: row["tau"] for row in images} == pytest.approx(dict(zip(ours, taus)))
    plateau = pq.read_table(tmp_path / "r" / "plateau.parquet").to_pylist()
    assert [(r["source"], r["tenth"]) for r in plateau] == [
        (source, tenth) for source in ("first", "second") for tenth in range(1, 11)
    ]
    heights = [row["score"] for row in plateau[:10]]
    assert heights == sorted(heights, reverse=True)
    assert "two draws of the first cache's teacher agree with tau" in err
    assert (tmp_path / "r" / "plateau.png").stat().st_size > 1000


def test_a_selection_by_the_teacher_has_its_order(caches, tmp_path):
    teacher, _, selected = caches
    run("evaluate", "ranking", selected, teacher, "--out", tmp_path / "r", "--keep-ratio", 0.5)
    rows = pq.read_table(tmp_path / "r" / "agreement.parquet").to_pylist()
    assert [row["measure"] for row in rows] == ["tau", "rho", "ndcg10", "overlap"]
    assert all(row["mean"] > 0.97 for row in rows)  # maps of selections are float16


def test_the_report_shows_the_tables(caches, shards, small_mae, tmp_path):
    teacher, _, selected = caches
    run("evaluate", "ranking", selected, teacher, "--out", tmp_path / "r")
    run(
        "report", "--selections", selected, "--shards", shards, "--mae", small_mae, "--images", 1,
        "--ranking", tmp_path / "r", "--out", tmp_path / "page",
    )  # fmt: skip
    page = (tmp_path / "page" / "index.html").read_text()
    tau = pq.read_table(tmp_path / "r" / "agreement.parquet").to_pylist()[0]["mean"]
    assert f'<th scope="row">Kendall tau-b</th><td class="number">{tau:.3f}</td>' in page
    assert "patches within noise" in page
    message = last_line(
        "report", "--selections", selected, "--shards", shards, "--mae", small_mae,
        "--ranking", teacher, "--out", tmp_path / "none",
    )  # fmt: skip
    assert "--out folder of `ltrp-pipeline evaluate ranking`" in message


def test_wrong_input_is_one_line(caches, shards, small_mae, photo_folder, tmp_path):
    teacher, _, _ = caches
    compare = ("evaluate", "ranking", teacher)
    plain = scored(shards, small_mae, tmp_path / "plain", sampler="iid")
    said = last_line(*compare, plain)
    assert re.search(r"second cache leaves patches of '\w+' unscored; .* --sampler cover", said)
    few = scored(shards, small_mae, tmp_path / "few", partitions=1)
    assert "second cache has no whole score maps" in last_line(*compare, few)
    other = scored(shards, small_mae, tmp_path / "other", crop="resize")
    assert "has another crop in the second cache" in last_line(*compare, other)
    names = scored(photo_folder, small_mae, tmp_path / "names")
    assert "the two caches have no image in common" in last_line(*compare, names)
    assert "is no cache" in one_line_error(*compare, tmp_path / "nowhere")
    assert not (tmp_path / "ranking").exists()


def last_line(*arguments):
    _, err = run(*arguments, expect=2)
    return err.splitlines()[-1]


def test_patches_scored_once_have_no_known_noise(caches, shards, small_mae, tmp_path):
    once = scored(shards, small_mae, tmp_path / "once", partitions=4)
    _, err = run("evaluate", "ranking", caches[2], once, "--out", tmp_path / "r")
    assert "how flat the second cache's order is cannot be told" in err
    assert "--partitions 8 or more" in err
    assert not (tmp_path / "r" / "plateau.png").exists()
