"""What commit 59c70f0 wrote, the last one with schema 2, is read, gone on with and evaluated.

`schema_2.tar.gz` holds what its stages made of five drawn images in two shards: a cache, a teacher,
selections of the first shard by a ranker, a baseline and the teacher, a training that was killed in
its second epoch, the curve that it had in the end, and the identities of default options.
"""

import dataclasses
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ltrp_core.errors import RequestError
from ltrp_core.rankers import models
from pipeline.commands.whole_runs import run
from pipeline.console.progress import JsonLineProgress
from pipeline.inputs import find_shards
from pipeline.store import open_cache
from pipeline.store.errors import RunMismatchError
from pipeline.store.verify import problems
from pipeline.training.options import RunOptions
from pipeline.training.ranker import TrainingInputs, run_train_ranker
from pipeline.units.run import run_score, run_select
from pipeline.units.runner import UnitOptions
from pipeline.workers import InProcessPool
from stages.options import identity
from stages.pretrain_mae import PretrainConfig
from stages.score import ScoreConfig
from stages.select_patches import SelectConfig
from stages.train_ranker import TrainRankerConfig
from stages.types import SelectRun

ARCHIVE = Path(__file__).with_name("schema_2.tar.gz")
QUIET = JsonLineProgress(every_s=1e9)
SELECTIONS = {
    "by_ranker": ({"ranker": "ranker_tiny_l1"}, {}),
    "by_baseline": ({"baseline": "patch-variance"}, {"store": "webdataset"}),
    "by_teacher": ({"teacher": "teacher"}, {}),
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)  # the run's paths are relative, as `--teacher teacher` is
    return tmp_path


def both():
    return find_shards(["one.tar", "two.tar"])


def arrays_of(cache):
    return {unit: cache.read(unit) for unit in cache.units}


def test_the_options_of_old_runs_have_the_identity_they_had(made):
    """An option that came later is absent at its default: no cache of before is orphaned."""
    expected = json.loads((made / "identities.json").read_text())
    found = {
        "score": identity(ScoreConfig(mae="m")),
        "train-ranker": identity(TrainRankerConfig()),
        "pretrain-mae": identity(PretrainConfig()),
    }
    assert json.loads(json.dumps(found)) == expected


def test_a_cache_is_read_and_takes_the_second_shard_in(made):
    before = arrays_of(open_cache("cache"))
    config = ScoreConfig(mae="mae_tiny", views=1, partitions=2)
    summary = run_score(config, both(), "cache", InProcessPool(), QUIET)
    assert (summary.skipped, summary.done) == (1, 1)
    cache = open_cache("cache")
    assert cache.run["schema"] == 2
    assert list(problems(cache, deep=True)) == []
    for name, values in before["one-4588bc96"].items():
        np.testing.assert_array_equal(cache.read("one-4588bc96")[name], values)


def test_scores_of_today_are_those_of_then(made):
    """To the bit on such a CPU as made them, an AVX-512 one; else to rounding."""
    config = ScoreConfig(mae="mae_tiny", views=1, partitions=2)
    run_score(config, both(), "again", InProcessPool(), QUIET)
    old, new = open_cache("cache").read("one-4588bc96"), open_cache("again").read("one-4588bc96")
    np.testing.assert_array_equal(old["visible"], new["visible"])
    np.testing.assert_allclose(old["score"].astype(float), new["score"].astype(float), rtol=2e-3)


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections_are_gone_on_with_in_their_own_schema(made, name):
    options, settings = SELECTIONS[name]
    before = arrays_of(open_cache(name))
    config, units = SelectConfig(**options), UnitOptions(**settings)
    summary = run_select(config, both(), name, InProcessPool(), QUIET, units)
    assert (summary.skipped, summary.done) == (1, 1)
    cache = open_cache(name)
    run = SelectRun.of(cache.run)
    assert (cache.run["schema"], "selector" in cache.run) == (2, False)
    assert all(run.score_name in arrays for arrays in arrays_of(cache).values())
    assert list(problems(cache, deep=True)) == []

    run_select(config, both(), "new", InProcessPool(), QUIET, units)
    new = open_cache("new")
    assert (new.run["schema"], new.run["selector"]) == (4, config.method)
    for unit, old in before.items():
        arrays = new.read(unit)
        for kept in ("kept_0.25", "kept_0.5", "kept_0.75"):
            np.testing.assert_array_equal(arrays[kept], old[kept])
        np.testing.assert_allclose(arrays["score"], old[run.score_name], rtol=2e-3, atol=1e-3)


def test_another_selector_is_refused_by_an_old_folder(made):
    with pytest.raises(RunMismatchError, match="baseline: 'patch-variance' there, 'center' asked"):
        run_select(
            SelectConfig(baseline="center"), both(), "by_baseline", InProcessPool(), QUIET,
            UnitOptions(store="webdataset"),
        )  # fmt: skip


def test_a_killed_training_goes_on_to_the_end_it_had(made, monkeypatch):
    small = models.TRANSFORMERS["vit_tiny"]._replace(width=8, depth=1, heads=2)
    monkeypatch.setitem(models.TRANSFORMERS, "vit_tiny", small)
    config = TrainRankerConfig(
        ranker="vit_tiny", epochs=4, batch_size=2, warmup_epochs=1, holdout=0.0
    )
    inputs = TrainingInputs("cache", tuple(both()), None)
    (begun,) = (made / "training" / "curve.jsonl").read_text().splitlines()
    curve, _ = run_train_ranker(config, inputs, made / "training", QUIET, RunOptions())
    assert curve[0] == json.loads(begun), "the first epoch is not trained again"
    expected = [
        json.loads(line) for line in (made / "expected_curve.jsonl").read_text().splitlines()
    ]
    for row, wanted in zip(curve, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)
    changed = dataclasses.replace(config, epochs=5)
    with pytest.raises(RequestError, match="holds the output of another run"):
        run_train_ranker(changed, inputs, made / "training", QUIET, RunOptions())


def test_whole_runs_find_the_folders_they_made(made):
    """Options that came later are not in the fingerprint of a run that does not give them."""
    changes = ("--set", "shards=one.tar", "--set", "score.mae=mae_tiny")
    result = CliRunner().invoke(run, ["laptop", "--dry-run", *changes])
    assert re.findall(r": to do: run/([a-z-]+-[0-9a-f]{8})$", result.output, re.M) == [
        "pretrain-mae-46a2fd55",
        "score-bfb9e6c4",
        "teacher-b28482fe",
        "train-ranker-bd2e23f7",
        "select-04286d2c",
        "report-5e4fb76d",
    ]
