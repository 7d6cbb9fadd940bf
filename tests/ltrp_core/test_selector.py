"""Selection in memory, and a vision transformer that sees only what it keeps."""

import subprocess
import sys

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2

from ltrp_core import LTRPSelector, SelectedPatches
from ltrp_core.distances import IMAGENET_MEAN
from ltrp_core.errors import RequestError
from ltrp_core.kept_tokens import kept_output
from ltrp_core.patches import patchify
from ltrp_core.rankers import create_ranker
from ltrp_core.rankers.ranking import rank_images
from ltrp_core.selection import select_patches, select_patches_at
from ltrp_core.selectors import create_selector
from oracles.layer_decay import recipe

SIZE, PATCH, GRID = 64, 16, 4


@pytest.fixture(scope="module")
def ranker():
    torch.manual_seed(0)
    return create_ranker("vit_tiny", grid=GRID, patch_size=PATCH)


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def make_vit(**options):
    torch.manual_seed(2)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=7, **options)
    for parameter in vit.parameters():  # Tokens and biases start at zero, and would hide mistakes.
        torch.nn.init.normal_(parameter, std=0.05)
    return vit.eval()


def test_selector_keeps_what_scores_and_select_patches_say(ranker, images):
    kept = LTRPSelector(ranker, homogeneous=0.25)(images, 0.5)
    with torch.no_grad():
        scores = torch.cat([ranker.eval()(image[None]) for image in images])
    patches = patchify(images, PATCH)
    assert kept.dtype == torch.int64
    assert torch.equal(kept, select_patches(scores, 8, patches=patches, homogeneous=0.25))


def test_an_integer_is_a_number_of_patches_and_a_float_a_share(ranker, images):
    selector = LTRPSelector(ranker)
    assert selector(images, 1).shape == (3, 1)
    assert selector(images, 1.0).sort().values.tolist() == [list(range(16))] * 3
    for keep in (0, 17, 0.0, 1.5):
        with pytest.raises(RequestError, match=r"k must be|within \(0, 1\]"):
            selector(images, keep)


def test_a_selection_does_not_depend_on_the_images_beside_it(ranker, images):
    selector = LTRPSelector(ranker)
    alone = torch.cat([selector(image[None], 5) for image in images])
    assert torch.equal(selector(images, 5), alone)
    assert torch.equal(selector(images.flip(0), 5).flip(0), alone)


def test_ranking_in_filled_groups_gives_the_scores_of_each_image(ranker, images, monkeypatch):
    alone = rank_images(ranker, images)
    monkeypatch.setattr("ltrp_core.rankers.ranking._AT_ONCE", {"cpu": 2})
    torch.testing.assert_close(rank_images(ranker, images), alone)


def test_selector_stays_frozen_inside_a_model_that_trains(images):
    selector = LTRPSelector(create_ranker("vit_tiny", grid=GRID, patch_size=PATCH))
    model = SelectedPatches(make_vit(), selector, keep=4).train()
    assert model.vit.training
    assert not any(module.training for module in selector.modules())
    model(images).sum().backward()
    assert all(parameter.grad is None for parameter in selector.parameters())
    assert model.vit.patch_embed.proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "options",
    [{}, {"reg_tokens": 3}, {"reg_tokens": 2, "no_embed_class": True}, {"global_pool": "avg"},
     {"class_token": False, "global_pool": "avg"}, {"pre_norm": True}, {"dynamic_img_size": True}],
    ids=str,
)  # fmt: skip
@torch.no_grad()
def test_a_transformer_with_all_patches_kept_is_the_transformer(ranker, images, options):
    vit = make_vit(**options)
    torch.testing.assert_close(
        SelectedPatches(vit, LTRPSelector(ranker), keep=1.0)(images),
        vit(images), atol=1e-5, rtol=1e-5,
    )  # fmt: skip


@torch.no_grad()
def test_kept_patches_have_their_true_positions(ranker, images):
    vit, selector = make_vit(), LTRPSelector(ranker)
    kept = selector(images, 5).sort().values
    # The slow way: all tokens with their positions, then those of the kept patches are taken.
    tokens = vit._pos_embed(vit.patch_embed(images))
    rows = torch.cat([torch.zeros(3, 1, dtype=torch.int64), kept + 1], dim=1)
    gathered = torch.stack([tokens[i, rows[i]] for i in range(3)])
    expected = vit.forward_head(vit.norm(vit.blocks(gathered)))
    found = SelectedPatches(vit, selector, 5)(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["center", "random", "dpc-knn"])
def test_any_selector_can_choose_what_a_transformer_sees(name, images):
    vit = make_vit()
    selector = create_selector(name, grid=GRID, patch_size=PATCH)
    model = SelectedPatches(vit, selector, 0.5)
    found = model(images)
    for image, one in zip(images, found, strict=True):
        torch.testing.assert_close(model(image[None])[0], one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(SelectedPatches(vit, selector, 1.0)(images), vit(images),
                               atol=1e-5, rtol=1e-5)  # fmt: skip
    if name == "center":
        kept = selector.select(images, ["", "", ""], [GRID**2 // 2])[0]
        torch.testing.assert_close(found, kept_output(vit, images, kept), atol=1e-6, rtol=1e-6)


def test_timm_takes_it_for_one_of_its_models(images):
    vit = make_vit()
    model = SelectedPatches(vit, create_selector("center", grid=GRID, patch_size=PATCH), 0.5)
    data = resolve_data_config(model=model)
    assert data["input_size"] == (3, SIZE, SIZE)
    assert data["mean"] == IMAGENET_MEAN, "not the 0.5 of timm's entry: the selector's images"
    features = model.forward_features(images)
    assert features.shape == (3, 1 + GRID**2 // 2, model.num_features)
    assert torch.equal(model.forward_head(features), model(images))
    assert model.forward_head(features, pre_logits=True).shape == (3, 192)
    model.set_grad_checkpointing()
    assert torch.equal(model.train()(images), model.eval()(images))
    assert (model.num_classes, model.get_classifier()) == (7, vit.head)
    model.reset_classifier(3, "avg")
    assert (model.num_classes, model.head, model(images).shape) == (3, vit.head, (3, 3))


@pytest.mark.parametrize("layer_decay", [0.75, None])
def test_timm_s_optimizer_has_the_groups_of_mae_s_fine_tuning(ranker, layer_decay):
    vit = make_vit()
    model = SelectedPatches(vit, LTRPSelector(ranker), 0.5)
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=layer_decay
    )
    names = {id(parameter): name for name, parameter in vit.named_parameters()}
    found = {
        names[id(parameter)]: (group.get("lr_scale", 1.0), group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    shapes = {name: value.shape for name, value in vit.named_parameters()}
    expected = recipe(shapes, depth=12, layer_decay=layer_decay or 1.0, weight_decay=0.05)
    assert {name: pytest.approx(pair) for name, pair in expected.items()} == found


def test_what_does_not_fit_is_refused(ranker):
    other = timm.create_model("vit_tiny_patch16_224", img_size=96)
    with pytest.raises(RequestError, match="take both of one grid: load_ranker"):
        SelectedPatches(other, LTRPSelector(ranker), 0.5)
    with pytest.raises(RequestError, match="ResNet cannot be given some patches"):
        SelectedPatches(timm.create_model("resnet10t"), LTRPSelector(ranker), 0.5)
    with pytest.raises(RequestError, match="homogeneous must be a share"):
        LTRPSelector(ranker, homogeneous=1.1)


def test_several_keeps_at_once_are_each_alone(images):
    patches = patchify(images, 8)
    scores = torch.rand(3, 64, generator=torch.Generator().manual_seed(3))
    keeps = [1, 2, 20, 64]
    for homogeneous in (0.0, 0.2, 1.0):
        together = select_patches_at(scores, keeps, patches=patches, homogeneous=homogeneous)
        for keep, found in zip(keeps, together, strict=True):
            alone = select_patches(scores, keep, patches=patches, homogeneous=homogeneous)
            assert torch.equal(found, alone)


def test_the_package_is_imported_without_torch():
    code = "import ltrp_core, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
