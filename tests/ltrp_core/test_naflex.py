"""timm's NaFlexVit agrees with a ViT that is given the kept tokens."""

import pytest
import timm
import torch

from ltrp_core.errors import RequestError
from ltrp_core.kept_tokens import kept_output
from ltrp_core.naflex import as_naflex, naflex_input
from ltrp_core.patches import patchify

TOLERANCE = 4e-5
GRID, PATCH = 6, 8
MODELS = {
    "class token": {},
    "mean": {"global_pool": "avg"},
    "registers": {"reg_tokens": 3},
    "registers without positions": {"reg_tokens": 3, "no_embed_class": True},
    "normalized before": {"pre_norm": True},
    "layer scale": {"init_values": 0.1, "qk_norm": True},
}


def vit_of(**options):
    torch.manual_seed(0)
    options = {"img_size": GRID * PATCH, "patch_size": PATCH, "num_classes": 10} | options
    vit = timm.create_model("vit_tiny_patch16_224", depth=3, **options)
    with torch.no_grad():
        for parameter in vit.parameters():  # nothing at zero, where it could be left out
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return vit.eval()


def images_and_kept(k=9, last=GRID**2 // 2):
    torch.manual_seed(1)
    images = torch.randn(4, 3, GRID * PATCH, GRID * PATCH)
    kept = torch.stack([torch.randperm(last)[:k].sort().values for _ in images])
    return images, kept


def patches_of(images, kept):
    every = patchify(images, PATCH)
    return every.gather(1, kept.unsqueeze(-1).expand(-1, -1, every.shape[-1]))


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_it_answers_as_the_vit_that_is_given_the_kept_tokens(options) -> None:
    vit = vit_of(**options)
    naflex = as_naflex(vit)
    images, kept = images_and_kept()
    expected = kept_output(vit, images, kept)
    found = naflex(naflex_input(patches_of(images, kept), kept, GRID))
    assert (found - expected).abs().max() < TOLERANCE
    assert (naflex(images) - vit(images)).abs().max() < TOLERANCE


@torch.no_grad()
def test_without_the_anchor_positions_shift() -> None:
    """What the anchor is for: of the upper half alone the grid would be taken for half as high."""
    vit = vit_of()
    images, kept = images_and_kept()
    given = naflex_input(patches_of(images, kept), kept, GRID)
    bare = {name: values[:, :-1] for name, values in given.items()}
    off = (as_naflex(vit)(bare) - kept_output(vit, images, kept)).abs().max()
    assert off > 100 * TOLERANCE


@torch.no_grad()
def test_it_is_a_copy() -> None:
    vit = vit_of()
    images, _ = images_and_kept()
    before = vit(images)
    naflex = as_naflex(vit.train())
    assert naflex.training
    for parameter in naflex.parameters():
        parameter.zero_()
    assert torch.equal(vit.eval()(images), before)


def test_every_weight_of_it_learns() -> None:
    naflex = as_naflex(vit_of().train())
    images, kept = images_and_kept()
    naflex(naflex_input(patches_of(images, kept), kept, GRID)).square().sum().backward()
    assert [n for n, p in naflex.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet18", {}, "cannot be given some patches only"),
        ("vit_tiny_patch16_224", {"global_pool": "map"}, "pooled by 'map'"),
    ],
)
def test_another_kind_of_model_is_refused(name, options, words) -> None:
    with pytest.raises(RequestError, match=words):
        as_naflex(timm.create_model(name, **options))
