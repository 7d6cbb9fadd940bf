"""A frozen classifier sees what is kept, at its true place, and nothing of what is hidden."""

import numpy as np
import pytest
import timm
import torch

from ltrp_core.classifiers import FILLINGS, NORMALIZATIONS, NOT_FILLED, FrozenClassifier
from ltrp_core.errors import RequestError
from oracles import fillings as slow_fillings
from oracles.kept_tokens import masked_logits

SIZE, PATCH, GRID, CLASSES = 32, 8, 4, 7
KEPT = torch.tensor([[5, 0, 14, 9], [15, 3, 2, 6], [1, 4, 8, 10]])
VITS = [
    {},
    {"reg_tokens": 2},
    {"reg_tokens": 2, "no_embed_class": True},
    {"global_pool": "avg"},
    {"class_token": False, "global_pool": "avg"},
    {"class_token": False, "global_pool": "map"},
    {"pre_norm": True, "init_values": 0.1},
]


def vit(**options):
    torch.manual_seed(2)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=PATCH, num_classes=CLASSES, depth=3,
        **options,
    )  # fmt: skip
    for parameter in model.parameters():  # tokens and biases start at zero, and would hide mistakes
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def classifier(model, normalization="half", classes=CLASSES):
    return FrozenClassifier("m", model, NORMALIZATIONS[normalization], num_classes=classes)


def convolutions():
    torch.manual_seed(3)
    return timm.create_model("test_resnet", num_classes=CLASSES).eval()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("options", VITS, ids=str)
@torch.no_grad()
def test_with_all_patches_kept_a_transformer_says_what_it_says_of_the_image(images, options):
    model = vit(**options)
    frozen = classifier(model)
    everything = torch.stack([torch.randperm(GRID**2) for _ in images])
    found = frozen.seeing(images, NOT_FILLED, PATCH)(everything)
    torch.testing.assert_close(found, frozen.logits(images), atol=1e-5, rtol=1e-5)
    plain = model(images.float() / 127.5 - 1)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", VITS, ids=str)
@torch.no_grad()
def test_a_transformer_with_hidden_patches_is_one_whose_attention_to_them_is_masked(
    images, options
):
    model = vit(**options)
    expected = [
        masked_logits(model, image.float() / 127.5 - 1, kept.tolist())
        for image, kept in zip(images, KEPT, strict=True)
    ]
    found = classifier(model).seeing(images, NOT_FILLED, PATCH)(KEPT)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, classifier(model).logits(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("filling", FILLINGS)
@torch.no_grad()
def test_a_filled_view_is_the_one_that_is_painted_pixel_by_pixel(images, filling):
    model, expected = convolutions(), []
    for image, kept in zip(images.numpy(), KEPT.tolist(), strict=True):
        behind = np.broadcast_to(np.array([[[123.675]], [[116.28]], [[103.53]]]), image.shape)
        behind = slow_fillings.blurred(image) if filling == "blur" else behind
        view = slow_fillings.hidden_behind(image, kept, PATCH, behind) / 255
        mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406),
                                                            (0.229, 0.224, 0.225)))  # fmt: skip
        expected.append(model(torch.from_numpy((view - mean) / std).float()[None])[0])
    found = classifier(convolutions(), "imagenet").seeing(images, filling, PATCH)(KEPT)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("filling", [NOT_FILLED, "mean", "blur"])
def test_only_a_blur_tells_anything_of_the_hidden_patches(images, filling):
    frozen = classifier(vit())
    others = images.clone()
    others[:, :, 2 * PATCH : 3 * PATCH, 3 * PATCH :] //= 3  # patch 11, which nobody keeps
    found, changed = (frozen.seeing(x, filling, PATCH)(KEPT) for x in (images, others))
    assert torch.equal(found, changed) == (filling != "blur")


@pytest.mark.parametrize("filling", [NOT_FILLED, "mean", "blur"])
def test_the_logits_of_an_image_do_not_depend_on_the_images_beside_it(images, filling):
    frozen = classifier(vit() if filling == NOT_FILLED else convolutions())
    together = frozen.seeing(images, filling, PATCH)(KEPT)
    for place in range(3):
        some = slice(place, place + 1)
        assert torch.equal(frozen.seeing(images[some], filling, PATCH)(KEPT[some])[0],
                           together[place])  # fmt: skip
        assert torch.equal(frozen.logits(images[some])[0], frozen.logits(images)[place])


def test_groups_that_are_filled_up_give_the_logits_of_each_image(images, monkeypatch):
    frozen = classifier(convolutions())
    alone = frozen.seeing(images, "mean", PATCH)(KEPT)
    monkeypatch.setattr("ltrp_core.classifiers.model._AT_ONCE", {"cpu": 2})
    torch.testing.assert_close(frozen.seeing(images, "mean", PATCH)(KEPT), alone)


def test_without_any_patch_a_filled_view_is_the_filling(images):
    frozen = classifier(convolutions(), "tf-lite")
    nothing = torch.empty(3, 0, dtype=torch.int64)
    found = frozen.seeing(images, "mean", PATCH)(nothing)
    gray = frozen.logits(torch.full_like(images, 127))
    assert torch.equal(found, gray)


def swin():
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=CLASSES, depths=(1, 1))


def hybrid():
    return timm.create_model("vit_tiny_r_s16_p8_224", num_classes=CLASSES)


@pytest.mark.parametrize("make", [swin, hybrid, convolutions], ids=lambda f: f.__name__)
def test_a_model_that_needs_all_patches_is_told_apart_and_advised(make):
    frozen = classifier(make())
    assert not frozen.drops_tokens
    with pytest.raises(RequestError, match=r"cannot be given some patches only.*--filling mean or"):
        frozen.check(NOT_FILLED, 14, 16)


def test_what_does_not_fit_the_views_is_named_before_anything_is_computed():
    frozen = classifier(vit())
    assert frozen.drops_tokens
    frozen.check(NOT_FILLED, GRID, PATCH)
    with pytest.raises(RequestError, match="m has 4 x 4 patches of 8 x 8 px, the selections 14 x"):
        frozen.check(NOT_FILLED, 14, 16)
    with pytest.raises(RequestError, match="--image-size 32 --patch-size 8"):
        frozen.check(NOT_FILLED, 2, 16)
    with pytest.raises(RequestError, match="m takes no views of 48 x 48 px"):
        frozen.check("mean", 6, 8)
    with pytest.raises(RequestError, match="did you mean mean"):
        frozen.check("meen", GRID, PATCH)
    headless = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(RequestError, match="not the logits of 0 classes"):
        classifier(headless, classes=0).check("mean", GRID, PATCH)


def test_a_normalization_is_what_its_weights_were_trained_with():
    levels = torch.tensor([0.0, 127.0, 255.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    lite = NORMALIZATIONS["tf-lite"](levels)[0, 0, 0]
    assert lite.tolist() == [-127 / 128, 0.0, 1.0]
    torch.testing.assert_close(NORMALIZATIONS["half"](levels)[0, 0, 0], levels[0, 0, 0] / 127.5 - 1)
    of_imagenet = NORMALIZATIONS["imagenet"](levels)[0, :, 0, 2]
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    torch.testing.assert_close(of_imagenet, torch.tensor(expected))
    assert str(NORMALIZATIONS["tf-lite"]) == "(x - 127) / 128"
    assert str(NORMALIZATIONS["imagenet"]).startswith("(x - [123.675 116.28 103.53]) / [58.395")
