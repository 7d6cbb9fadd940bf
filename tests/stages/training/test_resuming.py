"""Pretraining, and training of rankers: resumed runs equal whole ones, and something is learned."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import SMALL_MAE
from killed_trainings import Killed, KilledAfter, assert_bit_equal, resumed_and_whole, states
from safetensors.torch import load_file

from ltrp_core.errors import CheckpointError, RequestError
from ltrp_core.mae import load_mae
from ltrp_core.mae import model as mae_module
from ltrp_core.rankers import load_ranker
from ltrp_core.rankers import models as ranker_models
from pipeline.console.progress import JsonLineProgress
from pipeline.inputs import find_shards
from pipeline.store.errors import RunMismatchError
from pipeline.training import folder as training_folder
from pipeline.training.folder import DiskTrainingFolder
from pipeline.training.options import RunOptions
from pipeline.training.ranker import TrainingInputs, run_train_ranker
from pipeline.training_data import StagedImages, stage_images
from pipeline.units.run import run_score
from pipeline.workers import InProcessPool
from stages import pretrain_mae
from stages.options import identity
from stages.score import ScoreConfig
from stages.train_ranker import TrainRankerConfig
from stages.training.ddp import Processes

QUIET = JsonLineProgress(every_s=1e9)
SMALL_RANKER = ranker_models.TRANSFORMERS["vit_tiny"]._replace(width=48, depth=2, heads=2)


@pytest.fixture
def pretrain(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(mae_module.MAE_CONFIGS, "mae_tiny", SMALL_MAE)
    config = pretrain_mae.PretrainConfig(epochs=4, views=3, batch_size=5, base_lr=0.05)
    images = StagedImages(stage_images(find_shards([str(shards)]), tmp_path / "images", QUIET))

    def start(out, progress=QUIET, processes=0, **changes):
        folder = DiskTrainingFolder(out, "pretrain-mae", every_s=0)
        changed = dataclasses.replace(config, **changes)
        folder.open({**identity(changed), **images.identity})
        return pretrain_mae.run(
            changed, images=images, folder=folder, progress=progress, loader_processes=processes
        )[0]

    return start


@pytest.fixture
def caches(shards, small_mae, tmp_path):
    """A cache of three units, the same with pixels, and one of maps that cover every patch."""
    found = find_shards([str(shards)])
    made = {
        "plain": ScoreConfig(mae=str(small_mae), views=2, partitions=2),
        "pixels": ScoreConfig(mae=str(small_mae), views=2, partitions=2, pixels=True),
        "maps": ScoreConfig(mae=str(small_mae), crop="eval", sampler="cover", partitions=24),
    }
    for name, config in made.items():
        run_score(config, found, tmp_path / f"cache-{name}", InProcessPool(), QUIET)
    return {name: str(tmp_path / f"cache-{name}") for name in made}


@pytest.fixture
def train(caches, shards, monkeypatch):
    """Trains a `vit_tiny` that is as small as the autoencoder's encoder."""
    monkeypatch.setitem(ranker_models.TRANSFORMERS, "vit_tiny", SMALL_RANKER)

    def start(out, progress=QUIET, cache="plain", maps=None, images=True, run=None, **changes):
        options = {"ranker": "vit_tiny", "epochs": 4, "batch_size": 5, "base_lr": 0.02} | changes
        found = tuple(find_shards([str(shards)])) if images else ()
        curve, summary = run_train_ranker(
            TrainRankerConfig(**options),
            TrainingInputs(caches[cache], found, maps and caches[maps]),
            out,
            progress,
            run or RunOptions(checkpoint_every=0 if progress is not QUIET else 60),
        )
        return load_file(out / "ranker.safetensors"), curve, summary

    return start


def curve_text(folder: Path) -> str:
    return (folder / "curve.jsonl").read_text()


@pytest.mark.parametrize("steps", [0, 1, 11, 27])
def test_a_killed_pretraining_goes_on_bit_for_bit(pretrain, tmp_path, steps):
    whole = pretrain(tmp_path / "whole")
    with pytest.raises(Killed):
        pretrain(tmp_path / "killed", KilledAfter(steps))
    assert_bit_equal(states(pretrain(tmp_path / "killed", processes=1)), states(whole))
    assert curve_text(tmp_path / "killed") == curve_text(tmp_path / "whole")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema": 0.9, "accumulate": 2, "loss": "plateau_listmle", "records_per_image": 3},
        {"precision": "bf16", "opt": "lamb", "layer_decay": 0.75, "sched": "poly"},
    ],
)
def test_a_killed_ranker_training_goes_on_bit_for_bit(train, tmp_path, options):
    killed, whole = resumed_and_whole(train, tmp_path, options)
    last = "last/ranker.safetensors"
    assert (killed / last).read_bytes() == (whole / last).read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_of_two_checkpoints_the_whole_one_is_used(train, tmp_path, damage, capsys):
    whole, _, _ = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", KilledAfter(5))
    newest = max((tmp_path / "killed" / "checkpoints").glob("*.pt"))
    data = bytearray(newest.read_bytes())
    if damage == "cut":
        newest.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 4
        newest.write_bytes(data)
    else:
        newest.unlink()
    notes = []
    folder = DiskTrainingFolder(tmp_path / "killed", "train-ranker", on_note=notes.append)
    assert folder.resume() is not None
    assert newest.name in notes[0]
    assert "the one before is used" in notes[0]
    assert_bit_equal(train(tmp_path / "killed")[0], whole)


def test_without_a_whole_checkpoint_nothing_is_overwritten(pretrain, tmp_path):
    pretrain(tmp_path / "mae", epochs=1)
    for path in (tmp_path / "mae" / "checkpoints").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole: .*1000 bytes.* delete"):
        pretrain(tmp_path / "mae", epochs=1)


def test_a_checkpoint_that_was_being_written_counts_for_nothing(train, tmp_path):
    whole, _, _ = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", KilledAfter(4))
    (tmp_path / "killed" / "checkpoints" / "000099.pt").write_bytes(b"half of it")
    assert_bit_equal(train(tmp_path / "killed")[0], whole)


def test_pixels_need_no_images_and_train_the_same(train, tmp_path):
    from_images, curve, _ = train(tmp_path / "images")
    from_pixels, same, _ = train(tmp_path / "pixels", cache="pixels", images=False)
    assert_bit_equal(from_images, from_pixels)
    assert curve == same


@pytest.mark.parametrize(
    "run",
    [
        RunOptions(render_once=0.0, loader_processes=0),
        RunOptions(render_once=0.0, loader_processes=2),
    ],
)
def test_how_records_are_read_changes_no_byte(train, tmp_path, run):
    plain, _, _ = train(tmp_path / "plain")
    assert_bit_equal(train(tmp_path / "other", run=run)[0], plain)


def test_parts_of_a_step_are_the_step(train, tmp_path):
    """To rounding: the gradients of two parts are added."""
    one, _, _ = train(tmp_path / "one", epochs=1, batch_size=9)
    two, _, _ = train(tmp_path / "two", epochs=1, batch_size=9, accumulate=2)
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-4


def test_pretraining_lowers_the_loss(pretrain, tmp_path):
    pretrain(tmp_path / "mae", epochs=12)
    curve = training_folder.read_curve(tmp_path / "mae")
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]


@pytest.mark.parametrize(
    "loss", ["listmle", "listnet", "ranknet", "regression", "lambda_loss", "plateau_listmle"]
)
def test_a_ranker_learns_the_cached_order(train, tmp_path, loss):
    """Without hold-out: the same partitions are trained on and ranked."""
    options = {"epochs": 12, "holdout": 0.0, "records_per_image": 0, "loss": loss}
    _, curve, _ = train(tmp_path / "ranker", **options)
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]


def test_a_dense_ranker_is_trained_on_whole_views(train, tmp_path):
    _, curve, _ = train(tmp_path / "dense", input="dense", epochs=12, holdout=0.0)
    assert curve[-1]["loss"] < curve[0]["loss"]
    with pytest.raises(RequestError, match="dense input sees whole images"):
        train(tmp_path / "blind", input="dense", cache="pixels", images=False)


def test_whole_maps_are_validated_on_and_choose_the_best_epoch(train, tmp_path):
    _, curve, summary = train(tmp_path / "ranker", maps="maps", epochs=6, holdout=0.4)
    best = max(curve, key=lambda row: row["cover_tau"])
    notes = "\n".join(summary.notes)
    assert f"weights of epoch {best['epoch']:.0f} of 6 are kept" in notes
    assert f"held-out whole score maps: tau {best['cover_tau']:.3f}" in notes
    assert "two draws of the teacher agree on whole score maps" in notes


def test_both_sets_of_weights_load(train, tmp_path):
    kept, curve, _ = train(tmp_path / "ranker", epochs=6)
    assert_bit_equal(states(load_ranker(tmp_path / "ranker")), kept)
    assert len(curve) == 6
    assert load_ranker(tmp_path / "ranker" / "last").grid == 6


def test_patience_ends_a_run_that_gets_no_better(train, tmp_path):
    _, curve, summary = train(tmp_path / "ranker", epochs=40, patience=2, base_lr=0.0)
    assert len(curve) == 3
    assert any("stopped early" in note for note in summary.notes)


def test_changed_options_in_the_same_folder_are_refused(train, pretrain, tmp_path):
    pretrain(tmp_path / "mae", epochs=1)
    with pytest.raises(RunMismatchError, match="seed: 0 there, 1 asked"):
        pretrain(tmp_path / "mae", epochs=1, seed=1)
    train(tmp_path / "ranker", epochs=1)
    with pytest.raises(RunMismatchError, match="loss: 'listmle' there, 'ranknet' asked"):
        train(tmp_path / "ranker", epochs=1, loss="ranknet")


def test_a_ranker_starts_from_another_one(train, tmp_path):
    first, _, _ = train(tmp_path / "first", epochs=2)
    second, _, _ = train(
        tmp_path / "second", epochs=1, base_lr=0.0, init_from=str(tmp_path / "first")
    )
    assert_bit_equal(first, second)


def test_a_ranker_starts_from_the_encoder(train, tmp_path, small_mae):
    state, _, summary = train(tmp_path / "ranker", epochs=1, base_lr=0.0, init=str(small_mae))
    encoder = load_mae(small_mae).state_dict()
    assert torch.equal(state["blocks.0.attn.qkv.weight"], encoder["blocks.0.attn.qkv.weight"])
    assert any("fresh: head" in note for note in summary.notes)
    # config.json goes to others: no path of this machine.
    assert str(small_mae.parent) not in (tmp_path / "ranker" / "config.json").read_text()


def test_a_worker_that_starts_from_other_weights_than_the_first_is_refused(
    train, tmp_path, small_mae, monkeypatch
):
    def of_first(self, value):
        return "0" * 64 if isinstance(value, str) else value

    monkeypatch.setattr(Processes, "broadcast_object", of_first)
    own = load_mae(small_mae).source.sha256[:12]
    with pytest.raises(
        CheckpointError, match=f"--init .* {own} on .*, and 000000000000 on the fir"
    ):
        train(tmp_path / "ranker", init=str(small_mae))


def test_an_encoder_of_another_size_is_refused(train, tmp_path, small_mae, monkeypatch):
    wide = SMALL_RANKER._replace(width=96)
    monkeypatch.setitem(ranker_models.TRANSFORMERS, "vit_tiny", wide)
    with pytest.raises(RequestError, match=r"96.*48|48.*96"):
        train(tmp_path / "ranker", init=str(small_mae))


def test_a_loss_that_is_not_finite_is_an_error(train, tmp_path):
    with pytest.raises((RequestError, RuntimeError), match="finite"):
        train(tmp_path / "ranker", base_lr=1e20, clip_grad=0.0, opt="sgd")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"opt": "adamv"}, "unknown --opt 'adamv'; did you mean"),
        ({"loss": "ranknet", "loss_top": 3}, "--loss-top says nothing to --loss ranknet"),
        ({"epochs": 0}, "--epochs is 0, out of range"),
        ({"init": "a", "init_from": "b"}, "exclude each other"),
    ],
)
def test_wrong_options_say_what_to_do(train, tmp_path, options, words):
    with pytest.raises(RequestError, match=words):
        train(tmp_path / "ranker", **options)
