"""References: reproducible chance, the middle, pixel variance, and an upper bound that is one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltrp_core.errors import RequestError
from ltrp_core.patch_metrics import agreement, coverage
from ltrp_core.selection import top_patches
from ltrp_core.selectors.references import (
    center_scores,
    oracle_scores,
    patch_variance,
    random_scores,
)


def test_random_scores_are_a_function_of_key_draw_and_seed() -> None:
    scores = random_scores("n01440764_3", 196, draw=2, seed=7)
    assert scores.dtype == torch.float64
    assert scores.shape == (196,)
    assert torch.equal(scores, random_scores("n01440764_3", 196, draw=2, seed=7))
    others = [
        random_scores("n01440764_4", 196, draw=2, seed=7),
        random_scores("n01440764_3", 196, draw=3, seed=7),
        random_scores("n01440764_3", 196, draw=2, seed=8),
    ]
    for other in others:
        assert not bool((scores == other).any())


def test_random_scores_leave_the_global_generators_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    random_scores("a", 196, draw=0, seed=0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_random_scores_keep_every_patch_as_often_as_any_other() -> None:
    kept = torch.zeros(49)
    for draw in range(1000):
        kept[top_patches(random_scores("key", 49, draw=draw, seed=0)[None], 7)] += 1
    deviation = math.sqrt(1000 * (1 / 7) * (6 / 7))
    assert float((kept - 1000 / 7).abs().max()) < 5 * deviation


def test_random_scores_do_not_change_between_versions() -> None:
    found = random_scores("n01440764_3", 3, draw=0, seed=0) * 2**53
    # Philox keyed by blake2b of seed, purpose and key, joined by NUL: its first three words >> 11.
    assert found.tolist() == [3140035870600748, 6435248637551669, 8122825579912712]


@pytest.mark.parametrize("grid", [1, 2, 7, 14])
def test_center_scores_fall_with_the_distance_to_the_middle(grid: int) -> None:
    scores = center_scores(grid)
    middle = (grid - 1) / 2
    expected = [-math.hypot(i // grid - middle, i % grid - middle) for i in range(grid * grid)]
    torch.testing.assert_close(scores, torch.tensor(expected))
    square = scores.view(grid, grid)
    for same in (square.flip(0), square.flip(1), square.T):
        assert torch.equal(same, square)


def test_the_center_reference_keeps_the_middle_first_and_the_corners_last() -> None:
    order = top_patches(center_scores(14)[None], 196)[0].tolist()
    assert sorted(order[:4]) == [6 * 14 + 6, 6 * 14 + 7, 7 * 14 + 6, 7 * 14 + 7]
    assert sorted(order[-4:]) == [0, 13, 182, 195]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_patch_variance_is_that_of_numpy_patch_by_patch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    images = (255 * torch.rand(2, 3, 8, 12, generator=generator)).to(dtype)
    found = patch_variance(images, 4)
    assert found.shape == (2, 6)
    for image, row, column in itertools.product(range(2), range(2), range(3)):
        block = images[image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].double()
        expected = np.mean([np.var(channel) for channel in block.numpy()])
        assert float(found[image, 3 * row + column]) == pytest.approx(expected, rel=1e-5)


def test_flat_patches_have_no_variance_at_all_and_detail_has_some() -> None:
    colors = torch.randn(50, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    images = colors.repeat(1, 1, 28, 28)
    images[:, 1, 20, 5] += 0.01
    variance = patch_variance(images, 14)
    assert not bool(variance[:, [0, 1, 3]].any())
    assert bool((variance[:, 2] > 0).all())


def test_patch_variance_does_not_depend_on_the_batch() -> None:
    images = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    singles = [patch_variance(image[None], 16) for image in images]
    assert torch.equal(patch_variance(images, 16), torch.cat(singles))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), keep=st.integers(1, 9), has_ignored=st.booleans())
def test_no_other_k_patches_beat_the_oracle(seed: int, keep: int, has_ignored: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(1, 3, 1, 3, 1, generator=generator)
    pixels = torch.rand(1, 3, 4, 3, 4, generator=generator)
    foreground = (pixels < share).reshape(1, 12, 12)
    ignored = torch.rand(1, 12, 12, generator=generator) < 0.3 if has_ignored else None
    found = coverage(foreground, ignored, 4)
    best = agreement(top_patches(oracle_scores(found), keep), found)
    others = [
        agreement(torch.tensor([kept]), found) for kept in itertools.combinations(range(9), keep)
    ]
    measures = ["recall"] if has_ignored else ["precision", "recall", "f1", "iou"]
    for name in measures:
        assert float(getattr(best, name)) >= max(float(getattr(other, name)) for other in others)


def test_oracle_scores_are_the_share_of_a_patch_that_is_foreground() -> None:
    foreground = torch.zeros(1, 2, 6, dtype=torch.bool)
    foreground[0, :, 0] = foreground[0, 1, 2] = True
    ignored = torch.zeros_like(foreground)
    ignored[0, 0, 0] = True
    assert oracle_scores(coverage(foreground, None, 2)).tolist() == [[0.5, 0.25, 0.0]]
    assert oracle_scores(coverage(foreground, ignored, 2)).tolist() == [[0.25, 0.25, 0.0]]


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(RequestError, match="length must be at least 1"):
        random_scores("a", 0, draw=0, seed=0)
    with pytest.raises(RequestError, match="grid must be at least 1"):
        center_scores(0)
    with pytest.raises(RequestError, match="do not divide"):
        patch_variance(torch.zeros(1, 3, 8, 8), 3)
