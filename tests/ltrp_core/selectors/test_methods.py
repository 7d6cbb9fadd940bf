"""Every method against its oracle, and what all of them owe: k patches, each image by itself."""

import numpy as np
import pytest
import torch
from small_networks import LENGTH, SELECTORS, images_for, small, vit
from torch import nn

from ltrp_core.classifiers.normalization import NORMALIZATIONS
from ltrp_core.clustering import dpc_knn
from ltrp_core.errors import RequestError
from ltrp_core.patches import patchify
from ltrp_core.selectors import ScoreSelector, SelectorOptions, create_selector
from ltrp_core.selectors.class_attention import ChannelSumSelector, votes
from ltrp_core.selectors.gfnet import seen_shares
from ltrp_core.selectors.grad_cam import GradCamSelector
from ltrp_core.selectors.network import Opened
from oracles import selectors as oracles

KEYS = ["a", "b", "c"]
IMAGENET = NORMALIZATIONS["imagenet"]
SCORES = {
    "dino": lambda net, image: oracles.class_attention(net, image).mean(axis=0),
    "attention-rollout": oracles.rollout,
    "grad-cam": oracles.grad_cam,
    "ia-red2": oracles.ia_red2,
    "adavit": oracles.adavit,
    "dge": oracles.dge,
}
CHOICES = {"evit": oracles.evit, "dynamicvit": oracles.dynamicvit, "tome": oracles.tome}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", SCORES)
def test_scores_are_those_of_the_papers_formula(name, seed) -> None:
    selector = small(name, seed)
    images = images_for(selector)
    found = selector.scores(images, KEYS).double().numpy()
    for row, image in zip(found, images, strict=True):
        expected = np.array(SCORES[name](selector.network.module, image))
        assert np.abs(row - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())
        assert len(np.unique(np.round(expected, 6))) > 3, "a flat map would show nothing"


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_those_of_the_papers_rule_at_every_k(name, seed) -> None:
    selector = small(name, seed)
    images = images_for(selector, count=1)
    keeps = list(range(1, LENGTH + 1))
    for keep, kept in zip(keeps, selector.select(images, ["a"], keeps), strict=True):
        assert kept[0].tolist() == CHOICES[name](selector.network.module, images[0], keep), keep


@pytest.mark.parametrize("name", SELECTORS)
def test_every_k_gives_k_distinct_patches_and_an_image_is_judged_by_itself(name) -> None:
    selector = small(name)
    images = images_for(selector)
    length = selector.grid**2
    keeps = list(range(1, length + 1))
    together = selector.select(images, KEYS, keeps)
    again = selector.select(images, KEYS, keeps)
    alone = [selector.select(images[i : i + 1], KEYS[i : i + 1], keeps) for i in range(3)]
    for place, (keep, kept) in enumerate(zip(keeps, together, strict=True)):
        assert (kept.shape, kept.dtype) == ((3, keep), torch.int64)
        assert all(len(set(row)) == keep for row in kept.tolist())
        assert 0 <= int(kept.min()) <= int(kept.max()) < length
        assert torch.equal(kept, again[place])
        assert torch.equal(kept, torch.cat([one[place] for one in alone]))
    assert [kept.shape for kept in selector.select(images[:0], [], [2])] == [(0, 2)]
    with pytest.raises(RequestError, match="k must be from 1 to"):
        selector.select(images, KEYS, [length + 1])


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_does_not_train_and_keeps_no_gradients(name) -> None:
    selector = small(name)
    images = images_for(selector).requires_grad_()
    network = selector.network.module
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.enable_grad():
        selector.select(images, KEYS, [2])
    assert not network.training
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert images.grad is None
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", [n for n in SELECTORS if issubclass(SELECTORS[n], ScoreSelector)])
def test_the_best_scores_are_what_is_kept(name) -> None:
    selector = small(name)
    images = images_for(selector)
    scores = selector.scores(images, KEYS)
    order = scores.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(selector.select(images, KEYS, [3])[0], order[:, :3])


def test_what_the_class_token_looks_at_by_hand_is_what_dino_keeps() -> None:
    """One head whose keys are the first channel of a patch's own embedding."""
    network = vit()
    for value in network.parameters():
        value.data.zero_()
    for block in network.blocks:
        block.norm1.weight.data.fill_(1.0)
    last = network.blocks[-1].attn
    network.cls_token.data[0, 0, 1] = 5.0
    last.qkv.weight.data[0, 1] = 3.0  # the query of the first head is channel 1, the class token's
    last.qkv.weight.data[24, 0] = 3.0  # its key is channel 0
    network.pos_embed.data[0, 1 + 6, 0] = 4.0
    network.pos_embed.data[0, 1 + 11, 0] = 2.0
    network.pos_embed.data[0, 1 : 1 + 16, 2] = 1.0
    selector = SELECTORS["dino"](Opened(network, IMAGENET, 16, 4), SelectorOptions(homogeneous=0.0))
    kept = selector.select(images_for(selector, count=1), ["a"], [2])[0]
    assert kept.tolist() == [[6, 11]]


def test_votes_are_counted_as_the_released_rule_says() -> None:
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(6, 20, generator=generator).double() ** 4
    for keep in (1, 5, 10, 19):
        assert votes(attention, keep).tolist() == oracles.votes(attention.numpy(), keep)
    selector = small("dino votes")
    image = images_for(selector, count=1)
    seen = oracles.class_attention(selector.network.module, image[0])
    found = oracles.votes(seen, 5)
    order = sorted(range(LENGTH), key=lambda p: (-found[p], -seen.mean(axis=0)[p], p))
    assert selector.select(image, ["a"], [5])[0][0].tolist() == order[:5]


class TinyCnn(nn.Module):
    """A convolution, the mean of its map, and a linear head."""

    num_classes, num_features = 3, 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.head = nn.Conv2d(3, 4, 8, 8), nn.Linear(4, 3)

    def forward_features(self, images):
        return self.convolution(images)

    def forward_head(self, features):
        return self.head(features.mean(dim=(2, 3)))


def test_grad_cam_of_a_convolutional_network_is_its_head_times_its_map() -> None:
    network = TinyCnn()
    options = SelectorOptions(homogeneous=0.0)
    selector = GradCamSelector(Opened(network, IMAGENET, 32, 8), options)
    images = images_for(selector)
    features = network.forward_features(images)
    best = network.forward_head(features).argmax(dim=1)
    expected = (network.head.weight[best][:, :, None, None] * features).sum(dim=1) / 16
    assert torch.allclose(selector.scores(images, KEYS), expected.flatten(1), atol=1e-6)


def test_faithful_grad_cam_has_no_negative_values_and_the_same_best_patch() -> None:
    plain, faithful = small("grad-cam"), small("grad-cam", faithful=True)
    images = images_for(plain)
    values, smooth = plain.scores(images, KEYS), faithful.scores(images, KEYS)
    assert bool((values < 0).any())
    assert float(smooth.min()) >= 0.0
    assert torch.equal(values.argmax(dim=1), smooth.argmax(dim=1))


def test_a_network_gets_the_pixels_as_its_weights_want_them() -> None:
    seen = []

    class Watching(TinyCnn):
        def forward_features(self, images):
            seen.append(images)
            return super().forward_features(images)

    lite = NORMALIZATIONS["tf-lite"]
    selector = GradCamSelector(Opened(Watching(), lite, 32, 8), SelectorOptions())
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    selector.scores(IMAGENET(pixels), ["a", "b"])
    assert torch.allclose(torch.cat(seen), (pixels - 127.0) / 128.0, atol=1e-5)


def test_moco_of_a_convolutional_network_finds_the_strongest_place() -> None:
    class Bright(nn.Module):
        def forward_features(self, images):
            return nn.functional.avg_pool2d(images, 32)

    selector = ChannelSumSelector(
        Opened(Bright(), IMAGENET, 128, 16), SelectorOptions(homogeneous=0.0)
    )
    image = torch.zeros(1, 3, 128, 128)
    image[..., 32:64, 96:128] = 1.0  # cell (1, 3) of 4 x 4: patches (2..3, 6..7) of 8 x 8
    kept = selector.select(image, ["a"], [4])[0][0].tolist()
    assert sorted(kept) == [8 * 2 + 6, 8 * 2 + 7, 8 * 3 + 6, 8 * 3 + 7]


def test_ia_red2_and_adavit_and_dge_have_the_released_rule_as_an_option() -> None:
    for name in ("ia-red2", "adavit", "dge"):
        plain, faithful = small(name), small(name, faithful=True)
        images = images_for(plain)
        first, second = (s.scores(images, KEYS) for s in (plain, faithful))
        assert not torch.allclose(first, second)
        if name == "adavit":
            assert torch.equal(second, second.round()), "whole numbers of gates"
            assert torch.equal(first.floor(), second)
        if name == "ia-red2":
            assert float(second.min()) > 0.0
            assert float(second.max()) < 1.0, "one answer"
    assert len({round(v) for v in small("ia-red2").scores(images_for(small("ia-red2")), KEYS)
                .flatten().tolist()}) > 1, "agents that let some pass"  # fmt: skip


def test_drawn_members_are_of_the_same_groups_and_depend_on_seed_and_key() -> None:
    images = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assignment, centers = dpc_knn(patchify(images, 8), 9)
    assert create_selector("dpc-knn", grid=6, patch_size=8).select(images, ["a"], [9])[
        0
    ].tolist() == (centers.tolist())
    drawn = {}
    for seed, key in ((0, "a"), (1, "a"), (0, "b")):
        selector = create_selector("dpc-knn", grid=6, patch_size=8, faithful=True, seed=seed)
        kept = selector.select(images, [key], [9])[0][0]
        assert assignment[0, kept].tolist() == list(range(9)), "one of each cluster"
        assert torch.equal(kept, selector.select(images, [key], [9])[0][0])
        drawn[seed, key] = tuple(kept.tolist())
    assert len(set(drawn.values())) == 3
    merged = {
        tuple(small("tome", faithful=True, seed=seed).select(
            images_for(small("tome"), 1), ["a"], [8])[0][0].tolist())
        for seed in (0, 1, 2)
    }  # fmt: skip
    assert len(merged) > 1


def test_gfnet_counts_the_pixels_that_its_windows_hold() -> None:
    corners = torch.tensor([[0, 5], [13, 32], [13, 32]])
    shares = seen_shares(corners, 16, 4, 12).sum(dim=0)
    assert np.allclose(shares.numpy(), oracles.seen_pixels(corners.tolist(), 16, 4, 12), atol=1e-6)


def test_gfnet_keeps_what_its_windows_saw_most() -> None:
    selector = small("gfnet")
    images = images_for(selector)
    for image, key in zip(images, KEYS, strict=True):
        corners = selector.network.module(image[None])
        seen = oracles.seen_pixels(corners.tolist(), 32, 4, 16)
        kept = selector.select(image[None], [key], [4])[0][0].tolist()
        assert sorted(seen[p] for p in kept) == sorted(seen)[-4:]
