"""Both training stages: resumed runs equal whole ones, and something is learned."""

import dataclasses
from contextlib import contextmanager

import pytest
import torch
from conftest import SMALL_MAE

from ltrp_core import mae as mae_module
from ltrp_core.errors import CheckpointError
from pipeline import training_folder
from pipeline.image_stream import ShardImages
from pipeline.inputs import find_shards
from pipeline.progress import JsonLineProgress
from pipeline.record_stream import CachedRecords
from pipeline.run_stage import run_score
from pipeline.store import open_cache
from pipeline.store.errors import RunMismatchError
from pipeline.training_folder import DiskTrainingFolder
from pipeline.workers import InProcessPool
from stages import pretrain_mae, train_ranker
from stages.score import ScoreConfig
from stages.train_ranker import split_keys

QUIET = JsonLineProgress(every_s=1e9)


class Killed(Exception):
    pass


class KilledAfter:
    """Progress that ends the run after so many epochs."""

    def __init__(self, epochs):
        self.epochs = epochs

    @contextmanager
    def task(self, name, total, unit):
        yield self

    def advance(self, amount=1, **facts):
        if "loss" in facts:
            self.epochs -= 1
            if self.epochs < 0:
                raise Killed


@pytest.fixture(autouse=True)
def checkpoint_every_epoch(monkeypatch):
    monkeypatch.setattr(training_folder, "_EVERY_S", 0.0)


@pytest.fixture
def pretrain(shards, monkeypatch):
    monkeypatch.setitem(mae_module.MAE_CONFIGS, "mae_tiny", SMALL_MAE)
    config = pretrain_mae.PretrainConfig(epochs=4, views=3, batch_size=5, base_lr=0.05)
    images = ShardImages(find_shards([str(shards)]), QUIET)

    def start(out, progress=QUIET, **changes):
        folder = DiskTrainingFolder(out, "pretrain-mae")
        changed = dataclasses.replace(config, **changes)
        return pretrain_mae.run(changed, images=images, folder=folder, progress=progress)[0]

    return start


@pytest.fixture
def train(shards, small_mae, tmp_path):
    found = find_shards([str(shards)])
    config = ScoreConfig(mae=str(small_mae), views=2, partitions=2)
    run_score(config, found, tmp_path / "cache", InProcessPool(), QUIET)
    records = CachedRecords(open_cache(tmp_path / "cache"), found)

    def start(out, progress=QUIET, **changes):
        options = {"ranker": "vit_tiny", "epochs": 4, "batch_size": 7, "base_lr": 0.02} | changes
        return train_ranker.run(
            train_ranker.TrainRankerConfig(**options),
            records=records,
            folder=DiskTrainingFolder(out, "train-ranker"),
            progress=progress,
        )

    return start


def states(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_bit_equal(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_a_killed_pretraining_goes_on_bit_for_bit(pretrain, tmp_path, epochs):
    whole = pretrain(tmp_path / "whole")
    with pytest.raises(Killed):
        pretrain(tmp_path / "killed", KilledAfter(epochs))
    assert_bit_equal(states(pretrain(tmp_path / "killed")), states(whole))
    curve = (tmp_path / "whole" / "curve.jsonl").read_text()
    assert (tmp_path / "killed" / "curve.jsonl").read_text() == curve


def test_a_killed_ranker_training_goes_on_bit_for_bit(train, tmp_path):
    whole, curve, _ = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", KilledAfter(2))
    resumed, same_curve, _ = train(tmp_path / "killed")
    assert_bit_equal(states(resumed), states(whole))
    assert same_curve == curve


def test_pretraining_lowers_the_loss(pretrain, tmp_path):
    pretrain(tmp_path / "mae", epochs=12)
    curve = training_folder.read_curve(tmp_path / "mae")
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]


def test_a_ranker_learns_the_cached_order(train, tmp_path):
    """Without hold-out: the same partitions are trained on and ranked."""
    _, curve, _ = train(tmp_path / "ranker", epochs=12, holdout=0.0)
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]


def test_changed_options_in_the_same_folder_are_refused(pretrain, tmp_path):
    pretrain(tmp_path / "mae", epochs=1)
    with pytest.raises(RunMismatchError, match="seed: 0 there, 1 asked"):
        pretrain(tmp_path / "mae", epochs=1, seed=1)


def test_a_cut_checkpoint_is_named(pretrain, tmp_path):
    pretrain(tmp_path / "mae", epochs=1)
    path = tmp_path / "mae" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is unreadable .* delete it"):
        pretrain(tmp_path / "mae", epochs=1)


def test_the_hold_out_is_the_same_whatever_the_order():
    keys = [f"k{i}" for i in range(100)]
    train_keys, held_out = split_keys(keys, 0.1, 0)
    assert (len(train_keys), len(held_out)) == (90, 10)
    assert split_keys(keys[::-1], 0.1, 0) == (train_keys, held_out)
    assert split_keys(keys, 0.1, 1)[1] != held_out
