"""Attention distances equal slow loops over pairs of patches, and mean what they say."""

import numpy as np
import pytest
import torch
from conftest import SMALL_MAE
from timm.models.vision_transformer import VisionTransformer

from ltrp_core.attention_distance import attention_distances
from ltrp_core.errors import RequestError
from ltrp_core.mae import MaskedAutoencoder
from ltrp_core.rankers import create_ranker
from oracles import attention_distance as oracle


@pytest.fixture(scope="module")
def mae():
    torch.manual_seed(1)
    return MaskedAutoencoder(SMALL_MAE).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_the_autoencoders_distances_equal_the_loops(mae, images) -> None:
    every = torch.arange(36)[None]
    tokens = [mae.embed(image[None], every) for image in images]
    expected = oracle.attention_distances(tokens, mae.blocks, 6, 8)
    found = attention_distances(mae, images)
    assert found.shape == (SMALL_MAE.depth, SMALL_MAE.heads)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny", "vit_tiny_patch16_224"])
def test_a_ranker_has_a_row_a_layer_and_a_column_a_head(name) -> None:
    torch.manual_seed(3)
    ranker = create_ranker(name, grid=3, patch_size=16).eval()
    found = attention_distances(ranker, torch.randn(1, 3, 48, 48))
    assert found.shape == (12, 3)
    assert bool((found > 0).all())
    assert bool((found < 32 * 2**0.5).all())


def test_attention_that_is_spread_evenly_reaches_half_the_side(images) -> None:
    even = MaskedAutoencoder(SMALL_MAE).eval()
    for block in even.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)
    found = attention_distances(even, images)
    assert torch.allclose(found / 48, torch.full_like(found, 0.52), atol=0.02)


def test_fused_kernels_batches_and_hooks_change_nothing(mae, images) -> None:
    whole = attention_distances(mae, images)
    one_by_one = torch.stack([attention_distances(mae, image[None]) for image in images]).mean(0)
    assert torch.allclose(whole, one_by_one, rtol=1e-5)
    for block in mae.blocks:
        block.attn.fused_attn = not block.attn.fused_attn
    assert torch.allclose(whole, attention_distances(mae, images), rtol=1e-5)
    assert all(not block.attn._forward_pre_hooks for block in mae.blocks)


@pytest.mark.parametrize("name", ["resnet18", "mobile_former_26m"])
def test_a_ranker_without_plain_attention_is_refused(name) -> None:
    ranker = create_ranker(name, grid=14).eval()
    with pytest.raises(RequestError, match="plain"):
        attention_distances(ranker, torch.zeros(1, 3, 224, 224))


@torch.no_grad()
def test_a_transformer_of_timms_is_watched_as_a_ranker_is(images) -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=48, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=0
    ).eval()
    tokens = [vit._pos_embed(vit.patch_embed(image[None])) for image in images]
    expected = oracle.attention_distances(tokens, vit.blocks, 6, 8)
    assert np.allclose(attention_distances(vit, images).numpy(), expected, rtol=1e-5)


def test_no_image_is_refused(mae) -> None:
    with pytest.raises(RequestError, match="at least one image"):
        attention_distances(mae, torch.zeros(0, 3, 48, 48))
