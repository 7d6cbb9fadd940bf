"""The loop itself, on two layers: learning rates, depths, stale weights, what diverges."""

import math

import pytest
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from ltrp_core.errors import CheckpointError, RequestError
from ltrp_core.mae import create_mae
from ltrp_core.rankers import create_ranker
from pipeline.console.progress import JsonLineProgress
from pipeline.training.folder import DiskTrainingFolder
from stages.train_ranker import RankerStep
from stages.training.config import CURVE, TrainingConfig, schedule
from stages.training.ddp import Processes
from stages.training.loop import StepBatch, Task, fit

QUIET = JsonLineProgress(every_s=1e9)
ROWS = 1100
"""From 1024 rows on a linear layer would take a copy of its weights."""


def loss(model, batch):
    return model(batch).square().mean() * len(batch)


def start(out, *, loss=loss, steps=2, **options):
    """Trains on one batch again and again; each epoch measures how wrong a product is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    batch, probe = torch.randn(4, 8), torch.randn(ROWS, 8)

    def batches(epoch, step):
        for _ in range(step, steps):
            yield StepBatch([batch], len(batch))

    def validate(kept):
        weights = [(one.weight.detach().clone(), one.bias.detach().clone()) for one in kept]
        with torch.no_grad():
            expected = probe
            for weight, bias in weights:
                expected = expected @ weight.T + bias
            return {"wrong": float((kept(probe) - expected).abs().max() / expected.abs().max())}

    folder = DiskTrainingFolder(out, "test", every_s=options.pop("every_s", 1e9))
    folder.open({"test": 1})
    config = TrainingConfig(**{"epochs": 3, "base_lr": 0.5, "warmup_epochs": 0.0} | options)
    task = Task("test", model, steps, batches, loss, validate)
    task.keys = lambda epoch, step: [f"image-{epoch}-{step}"]
    return fit(task, config, folder=folder, progress=QUIET, ranks=Processes()), folder


SECOND_ORDER = ("adahessian",)
"""They need gradients of gradients, which no training here computes."""


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_every_epoch_is_measured_with_its_own_weights_whatever_the_optimizer(tmp_path, ema):
    wrong = {}
    for name in list_optimizers():
        if name in SECOND_ORDER:
            continue
        try:
            create_optimizer_v2(nn.Linear(2, 2), opt=name, lr=0.1)
        except (AssertionError, ImportError, RuntimeError):
            continue
        trained, _ = start(tmp_path / name, opt=name, ema=ema, steps=1, base_lr=0.01)
        wrong[name] = max(row["wrong"] for row in trained.history)
    assert {"adamw", "sgd", "lamb", "lion", "adafactor"} <= wrong.keys()
    assert {name: value for name, value in wrong.items() if value > 1e-4} == {}


@pytest.mark.parametrize(
    ("sched", "share"),
    [
        ("cosine", lambda x: 0.5 * (1 + math.cos(math.pi * x))),
        ("poly", lambda x: (1 - x) ** 0.1),
        ("tanh", lambda x: 0.5 * (1 - math.tanh(-7 * (1 - x) + 3 * x))),
    ],
)
@pytest.mark.parametrize(("epochs", "warmup", "steps"), [(12, 2.0, 5), (3, 40.0, 7), (4, 0.0, 3)])
def test_the_learning_rate_of_every_step_is_the_formulas(sched, share, epochs, warmup, steps):
    """MAE's: linear warm-up, then half a cosine from the peak over all that is left."""
    config = TrainingConfig(
        epochs=epochs, base_lr=2.0, batch_size=256, min_lr=0.1, warmup_epochs=warmup, sched=sched
    )
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=config.lr)
    rates = schedule(optimizer, config, steps, CURVE)
    first = min(warmup, epochs / 4)
    for step in range(epochs * steps):
        rates.step_update(step)
        at = step / steps
        if at < first:
            expected = 2.0 * at / first
        else:
            expected = 0.1 + 1.9 * share((at - first) / (epochs - first))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-9), step


def test_the_curve_of_a_training_is_that_one_and_never_drops_at_the_end_of_warm_up(tmp_path):
    trained, _ = start(tmp_path, epochs=30, warmup_epochs=5.0, steps=4, batch_size=256)
    rates = [row["lr"] for row in trained.history]
    # Of the last step of an epoch.
    expected = [
        0.5 * ((e - 0.25) / 5 if e <= 5 else 0.5 * (1 + math.cos(math.pi * (e - 5.25) / 25)))
        for e in range(1, 31)
    ]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_a_training_begun_with_the_old_curve_goes_on_with_it_and_says_so(tmp_path):
    options = {"epochs": 8, "warmup_epochs": 2.0, "batch_size": 256, "base_lr": 0.1}
    _, folder = start(tmp_path / "run", **options)
    state = dict(folder.resume())
    assert state.pop("curve") == 2
    state["history"], state["best"], state["best_epoch"] = state["history"][:3], {}, 0
    folder.checkpoint(state)
    trained, _ = start(tmp_path / "run", **options)
    old = [0.1 * 0.5 * (1 + math.cos(math.pi * (e - 0.5) / 8)) for e in range(4, 9)]
    assert [row["lr"] for row in trained.history[3:]] == pytest.approx(old, rel=1e-9)
    assert any("goes on with that curve" in note for note in trained.notes)
    folder.checkpoint(state)
    with pytest.raises(RequestError, match=r"--layer-decay changed nothing .*another --out"):
        start(tmp_path / "run", **options, layer_decay=0.5)


def scales(model, decay):
    """Parameter name -> its learning rate relative to the head's."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1.0, layer_decay=decay)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}


@pytest.mark.parametrize("input", ["sparse", "dense"])
def test_layer_decay_scales_every_block_by_its_depth(input):
    found = scales(RankerStep(create_ranker("vit_tiny", input=input, grid=2, patch_size=4)), 0.75)
    for block in range(12):
        assert found[f"ranker.blocks.{block}.mlp.fc1.weight"] == pytest.approx(0.75 ** (12 - block))
    assert found["ranker.patch_embed.proj.weight"] == pytest.approx(0.75**13)
    assert found["ranker.cls_token"] == pytest.approx(0.75**13)
    assert found["ranker.norm.weight"] == found["ranker.head.weight"] == 1.0


@pytest.mark.parametrize("name", ["mobile_former_26m", "resnet10t", "vit_tiny_patch16_224"])
def test_layer_decay_decays_in_every_kind_of_ranker(name):
    ranker = create_ranker(name, head="token", grid=4, patch_size=16)
    found = scales(RankerStep(ranker), 0.5)
    assert found["ranker.head.weight"] == 1.0
    depths = {math.log2(1 / scale) for scale in found.values()}
    assert len(depths) > 3, "several depths"
    # What a token head does not use is frozen, and has no learning rate.
    assert depths <= set(range(30))


def test_layer_decay_goes_through_encoder_and_decoder_of_an_autoencoder():
    mae = create_mae("mae_tiny")
    encoder, decoder = len(mae.blocks), len(mae.decoder_blocks)
    found = scales(mae, 0.5)
    last = encoder + decoder + 2
    for block in range(encoder):
        assert found[f"blocks.{block}.attn.qkv.weight"] == 0.5 ** (last - block - 1)
    for block in range(decoder):
        name = f"decoder_blocks.{block}.attn.qkv.weight"
        assert found[name] == 0.5 ** (last - encoder - 2 - block)
    assert found["decoder_pred.weight"] == 1.0
    assert found["patch_embed.proj.weight"] == 0.5**last


class Diverging:
    """A loss whose gradient is not finite from one step on, though the loss is."""

    def __init__(self, at):
        self.at, self.calls = at, 0

    def __call__(self, model, batch):
        self.calls += 1
        value = loss(model, batch)
        if self.calls <= self.at:
            return value
        return value + (model[0].weight.sum() * 0).sqrt() * 0


@pytest.mark.parametrize("clip_grad", [0.0, 1.0])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_gradient_that_is_not_finite_ends_training_before_anything_is_kept_of_it(
    tmp_path, clip_grad, precision, ema
):
    with pytest.raises(RequestError, match=r"not finite in step 2 of epoch 2 \(images image-1-1\)"):
        start(
            tmp_path / "run",
            loss=Diverging(3),
            every_s=0,
            clip_grad=clip_grad,
            precision=precision,
            ema=ema,
        )
    folder = DiskTrainingFolder(tmp_path / "run", "test")
    state = folder.resume()
    assert len(state["history"]) == 1
    assert state["step"] == 1
    assert all(value.isfinite().all() for value in state["model"].values())
    trained, _ = start(tmp_path / "run", clip_grad=clip_grad, precision=precision, ema=ema)
    assert len(trained.history) == 3


def test_weights_that_overflow_in_a_step_are_in_no_checkpoint(tmp_path):
    with pytest.raises(RequestError, match="not finite after step 1 of epoch 1"):
        start(
            tmp_path / "run",
            loss=lambda model, batch: 1e3 * loss(model, batch),
            opt="sgd",
            base_lr=3e38,
            clip_grad=0.0,
            every_s=0,
        )
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_checkpoint_that_is_not_finite_is_named_and_the_one_before_is_used(tmp_path):
    _, folder = start(tmp_path / "run", every_s=0)
    state = dict(folder.resume())
    broken = state["model"] | {"0.weight": torch.full((8, 8), float("nan"))}
    folder.checkpoint(state | {"model": broken})
    notes = []
    again = DiskTrainingFolder(tmp_path / "run", "test", on_note=notes.append)
    used = again.resume()
    assert torch.equal(used["model"]["0.weight"], state["model"]["0.weight"])
    assert "not finite: model.0.weight" in notes[0]
    for receipt in (tmp_path / "run" / "checkpoints").glob("*.json"):
        if receipt.stem != f"{again._number:06d}":
            receipt.unlink()
    with pytest.raises(CheckpointError, match=r"not finite: model\.0\.weight"):
        again.resume()
