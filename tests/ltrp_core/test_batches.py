"""What the Python API does with batches of nothing, and with images of another type."""

import pytest
import timm
import torch
from conftest import SMALL_MAE

from ltrp_core.clustering import dpc_knn
from ltrp_core.errors import RequestError
from ltrp_core.mae import MaskedAutoencoder
from ltrp_core.patches import patchify
from ltrp_core.rankers import create_ranker
from ltrp_core.scoring import leave_one_out_scores
from ltrp_core.selection import select_patches, top_patches
from ltrp_core.selector import LTRPSelector, SelectedPatches, rank_images


@pytest.fixture(scope="module")
def mae():
    torch.manual_seed(0)
    return MaskedAutoencoder(SMALL_MAE).eval()


@pytest.fixture(scope="module")
def ranker():
    torch.manual_seed(0)
    return create_ranker("vit_tiny", grid=4, patch_size=8).eval()


def pictures(count: int, side: int, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, side, side, generator=generator).to(dtype)


def vit():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=5
    ).eval()


def test_no_images_give_no_results(mae, ranker):
    none = pictures(0, 32)
    selector = LTRPSelector(ranker)
    assert rank_images(ranker, none).shape == (0, 16)
    assert ranker(none).shape == (0, 16)
    assert selector(none, 0.5).shape == (0, 8)
    assert selector(none, 0.5).dtype == torch.int64
    assert SelectedPatches(vit(), selector, 0.5)(none).shape == (0, 5)
    assert select_patches(torch.empty(0, 16), 8, patches=torch.empty(0, 16, 3)).shape == (0, 8)
    assert top_patches(torch.empty(0, 16), 8).shape == (0, 8)
    assignment, centers = dpc_knn(torch.empty(0, 16, 3), 4)
    assert (assignment.shape, centers.shape) == ((0, 16), (0, 4))
    for shape in ((0, 3), (0, 2, 3)):
        visible = torch.empty(shape, dtype=torch.int64)
        for metric in ("l1", "psnr", "ssim"):
            scores = leave_one_out_scores(mae, pictures(0, 48), visible, metric=metric)
            assert (scores.shape, scores.dtype) == (shape, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_images_of_another_floating_type_are_computed_as_the_model_is(mae, ranker, dtype):
    for_ranker, for_mae = pictures(2, 32, dtype), pictures(2, 48, dtype)
    visible = torch.tensor([[0, 7, 20], [3, 8, 35]])
    torch.testing.assert_close(ranker(for_ranker), ranker(for_ranker.float()), rtol=0, atol=0)
    patches, some = patchify(for_ranker, 8), torch.arange(16).expand(2, -1)
    assert torch.equal(
        ranker.score_patches(patches, some), ranker.score_patches(patches.float(), some)
    )
    selector = LTRPSelector(ranker)
    assert torch.equal(selector(for_ranker, 0.5), selector(for_ranker.float(), 0.5))
    model = SelectedPatches(vit(), selector, 0.5)
    assert torch.equal(model(for_ranker), model(for_ranker.float()))
    assert torch.equal(
        leave_one_out_scores(mae, for_mae, visible, metric="ssim"),
        leave_one_out_scores(mae, for_mae.float(), visible, metric="ssim"),
    )


def test_pixels_from_0_to_255_are_refused_with_what_is_wanted(mae, ranker):
    visible = torch.tensor([[0, 7, 20]])
    selector = LTRPSelector(ranker)
    for call in (
        lambda: ranker(pictures(1, 32).to(torch.uint8)),
        lambda: rank_images(ranker, pictures(1, 32).to(torch.uint8)),
        lambda: selector(pictures(1, 32).to(torch.uint8), 0.5),
        lambda: SelectedPatches(vit(), selector, 0.5)(pictures(1, 32).to(torch.uint8)),
        lambda: leave_one_out_scores(mae, pictures(1, 48).to(torch.uint8), visible),
        lambda: ranker.score_patches(torch.zeros(1, 3, 192, dtype=torch.uint8), visible % 16),
        lambda: mae(pictures(1, 48).to(torch.uint8), visible),
    ):
        with pytest.raises(
            RequestError, match=r"normalized, such as torch.float32; got torch.uint8"
        ):
            call()
