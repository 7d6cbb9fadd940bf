"""The demo as a user runs it: with the package's own weights, and training its own."""

import re

import pytest
from command_line import one_line_error, run

from pipeline.store.cache import open_cache


def test_the_demo_scores_selects_and_draws_with_the_weights_of_the_package(tmp_path):
    out, err = run("demo", "--out", tmp_path / "demo")
    assert "12 images ok, 0 bad" in err
    assert re.search(r"0\.25 +ranker +0\.\d{3} \[", out)
    selections = open_cache(tmp_path / "demo" / "selections")
    teacher = open_cache(tmp_path / "demo" / "teacher")
    for cache in (selections, teacher):
        assert sum(row.n_ok for row in cache.rows.values()) == 12
    page = (tmp_path / "demo" / "report" / "index.html").read_text()
    assert page.count('class="card"') == 12
    _, again = run("demo", "--out", tmp_path / "demo")
    assert "score: 0 done, 3 already there" in again


@pytest.mark.slow
def test_the_demo_trains_both_models_on_request(tmp_path):
    out, _ = run("demo", "--train", "--quick", "--out", tmp_path / "demo")
    assert "pretrain-mae: a masked autoencoder from scratch" in out
    assert (tmp_path / "demo" / "ranker" / "ranker.safetensors").is_file()
    assert (tmp_path / "demo" / "report" / "index.html").is_file()
    assert "holds the output of another run" in one_line_error("demo", "--out", tmp_path / "demo")


def test_quick_without_training_is_refused(tmp_path):
    _, err = run("demo", "--quick", "--out", tmp_path, expect=2)
    assert "--train" in err
