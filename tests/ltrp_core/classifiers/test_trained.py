"""Classifiers of kept patches: what they begin as, and the folder that they are kept in."""

import json
import math

import pytest
import timm
import torch
from conftest import SMALL_MAE
from safetensors.torch import load_file, save_file

from ltrp_core.classifiers import (
    NORMALIZATIONS,
    load_classifier,
    open_classifier,
    save_classifier,
    start_classifier,
)
from ltrp_core.errors import CheckpointError, RequestError
from ltrp_core.kept_tokens import kept_output
from ltrp_core.mae import load_mae
from ltrp_core.positions import sincos_positions
from ltrp_core.views import normalize

SIDE, GRID = 48, 6
CLASSES = ("cat", "dog", "owl")


def start(model="", init="", **options):
    torch.manual_seed(0)
    return start_classifier(model, init, num_classes=len(CLASSES), **options)


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)


@pytest.fixture
def saved(small_mae, tmp_path):
    made = start(init=str(small_mae))
    torch.nn.init.normal_(made.vit.head.weight)
    save_classifier(made.vit, made.architecture, CLASSES, tmp_path / "c", {"epoch": 3})
    return tmp_path / "c", made.vit.eval()


def test_an_encoder_becomes_a_transformer_that_computes_what_it_does(small_mae, pixels):
    mae = load_mae(small_mae)
    vit = start(init=str(small_mae)).vit.eval()
    images = normalize(pixels)
    kept = torch.stack([torch.randperm(GRID**2)[:9] for _ in images])
    with torch.no_grad():
        expected = vit.head(mae.encode(images, kept)[:, 0])
        torch.testing.assert_close(kept_output(vit, images, kept), expected, atol=1e-6, rtol=1e-5)
    assert vit.pos_embed.requires_grad


def test_another_grid_has_interpolated_positions(small_mae):
    made = start(init=str(small_mae), image_size=96)
    stretched = sincos_positions(SMALL_MAE.width, 12, learned_grid=6)
    torch.testing.assert_close(made.vit.pos_embed.detach(), stretched)
    assert made.notes == ["positions of 6 x 6 patches: sine-cosine, stretched"]
    with pytest.raises(RequestError, match="an image size of whole patches"):
        start(init=str(small_mae), image_size=50)


def test_the_head_starts_all_but_silent(small_mae):
    for made in (start(init=str(small_mae)), start("timm:test_vit", "random")):
        assert not made.vit.head.bias.any()
        assert 0 < made.vit.head.weight.std() < 3e-5


@torch.no_grad()
def test_a_model_of_other_pixels_is_made_to_take_imagenet_s(tmp_path):
    theirs = timm.create_model("test_vit", num_classes=4).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    made = start("timm:test_vit", str(tmp_path / "w.safetensors"))
    pixels = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    expected = theirs.forward_features(NORMALIZATIONS["half"](pixels))
    found = made.vit.eval().forward_features(normalize(pixels))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert made.notes[0].startswith("patch_embed rescaled")


def test_drop_path_rises_evenly_to_the_last_block():
    vit = start("timm:vit_tiny_patch16_224", "random", drop_path=0.1).vit
    found = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]
    assert found == pytest.approx([0.1 * block / 11 for block in range(12)])
    assert vit.blocks[3].drop_path2.drop_prob == found[3]


@torch.no_grad()
def test_average_pooling_is_the_mean_of_the_kept_patches(pixels, small_mae):
    vit = start(init=str(small_mae), global_pool="avg").vit.eval()
    images, kept = normalize(pixels), torch.tensor([[0, 4, 7], [9, 2, 35]])
    tokens = load_mae(small_mae).encode(images, kept)
    expected = vit.head(tokens[:, 1:].mean(dim=1))
    torch.testing.assert_close(kept_output(vit, images, kept), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", ""), "nothing to train: pass --model timm:NAME, or --init with"),
        (("", "random"), "nothing to train"),
        (("timm:resnet10t", "random"), "ResNet cannot be given some patches only"),
        (("vit_tiny_patch16_224", "random"), "pass timm:NAME"),
        (("timm:vit_medium_patch16_gap_240", "random"), "no class token; pass --global-pool avg"),
    ],
)
def test_what_cannot_be_trained_so_is_refused(arguments, message):
    with pytest.raises(RequestError, match=message):
        start(*arguments)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_saved_classifier_is_the_same_one(pool, tmp_path):
    made = start("timm:test_vit", "random", image_size=64, global_pool=pool)
    torch.nn.init.normal_(made.vit.head.weight)
    save_classifier(made.vit, made.architecture, CLASSES, tmp_path / "c", {"epoch": 3})
    before = torch.get_rng_state()
    found = load_classifier(tmp_path / "c")
    assert torch.equal(torch.get_rng_state(), before)
    assert (found.classes, found.config["extra"]) == (CLASSES, {"epoch": 3})
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(found.vit(images), made.vit.eval()(images))


@torch.no_grad()
def test_a_folder_is_opened_as_a_frozen_classifier(saved, pixels):
    folder, vit = saved
    found = open_classifier(str(folder))
    assert (found.num_classes, found.classes, found.drops_tokens) == (3, CLASSES, True)
    assert found.origin == "train-classifier"
    kept = torch.tensor([[0, 4, 7], [9, 2, 35]])
    expected = kept_output(vit, normalize(pixels), kept)
    seen = found.seeing(pixels, "none", SMALL_MAE.patch_size)(kept)
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(RequestError, match="leave --weights out"):
        open_classifier(str(folder), "weights.pth")


def test_classes_are_found_by_name(saved):
    found = open_classifier(str(saved[0]))
    assert found.numbers_of(["owl", "cat"]) == [2, 0]
    assert found.numbers_of(["0", "1"]) is None, "numbers are the classifier's own"
    with pytest.raises(RequestError, match=r"labeled 'cow', which is none of the 3 classes"):
        found.numbers_of(["cow", "cat"])


def test_a_folder_that_is_none_says_what_is_wrong(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(CheckpointError, match=r"config.json is missing; pass a folder that train"):
        open_classifier(str(tmp_path))
    state = load_file(folder / "classifier.safetensors")
    save_file({**state, "head.bias": torch.full((3,), math.nan)}, folder / "classifier.safetensors")
    with pytest.raises(CheckpointError, match=r"not finite.*head.bias"):
        load_classifier(folder)
    del state["head.bias"]
    save_file(state, folder / "classifier.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(head.bias\)"):
        load_classifier(folder)
    config = json.loads((folder / "config.json").read_text())
    for change in ({"format": "x"}, {"classes": ["a"]}, {"classifier": {"model": "vit"}}):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match="describes no classifier"):
            load_classifier(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="describes no classifier"):
        load_classifier(folder)
