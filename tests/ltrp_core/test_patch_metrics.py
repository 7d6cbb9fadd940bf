"""Patch-level evaluation: the pixel counts of masks painted at full resolution, and intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltrp_core import patch_metrics
from ltrp_core.bootstrap import bootstrap_interval, bootstrap_ratios, paired_bootstrap
from ltrp_core.errors import RequestError
from ltrp_core.patch_metrics import (
    PatchAgreement,
    agreement,
    concatenate,
    coverage,
    nested_agreement,
    pooled,
)
from oracles import patch_metrics as oracle

MEASURES = ("precision", "recall", "f1", "iou")


def _masks(count: int, height: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns foreground (empty in image 0) and ignored masks of random rectangles."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((2, count, height, width), dtype=bool)
    for mask in masks.reshape(-1, height, width):
        for _ in range(2):
            top, left = rng.integers(height), rng.integers(width)
            mask[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width)] = (
                True
            )
    masks[0, 0] = False
    return torch.from_numpy(masks[0]), torch.from_numpy(masks[1])


def _kept(count: int, length: int, keep: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, length, generator=generator).argsort(dim=1)[:, :keep]


def _agreement(images: list[tuple[int, int, int]]) -> PatchAgreement:
    columns = [torch.tensor(column) for column in zip(*images, strict=True)]
    return PatchAgreement(intersection=columns[0], kept_pixels=columns[1], foreground=columns[2])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch_size=st.integers(1, 5),
    share=st.floats(0, 1),
    seed=st.integers(0, 999),
    has_ignored=st.booleans(),
)
def test_counts_and_measures_are_those_of_masks_painted_at_full_resolution(
    rows: int, columns: int, patch_size: int, share: float, seed: int, has_ignored: bool
) -> None:
    height, width = rows * patch_size, columns * patch_size + patch_size
    foreground, ignored = _masks(3, height, width, seed)
    length = rows * (columns + 1)
    kept = _kept(3, length, round(share * length), seed)
    found = agreement(kept, coverage(foreground, ignored if has_ignored else None, patch_size))
    for image in range(3):
        without = ignored[image] if has_ignored else torch.zeros_like(ignored[image])
        pixels = oracle.counts(
            kept[image].tolist(), foreground[image].numpy(), without.numpy(), patch_size
        )
        for name in ("intersection", "kept_pixels", "foreground"):
            counted = getattr(found, name)
            assert counted.dtype == torch.int64
            assert int(counted[image]) == pixels[name]
        for name, expected in oracle.measures(pixels).items():
            value = float(getattr(found, name)[image])
            assert value == expected or (math.isnan(value) and math.isnan(expected))


def test_coverage_counts_the_pixels_of_each_patch_row_by_row() -> None:
    foreground = torch.zeros(1, 4, 6, dtype=torch.bool)
    foreground[0, 0, 2:5] = True
    ignored = torch.zeros_like(foreground)
    ignored[0, 0, 2] = ignored[0, 3, 5] = True
    found = coverage(foreground, ignored, 2)
    assert found.foreground_pixels.tolist() == [[0, 1, 1, 0, 0, 0]]
    assert found.valid_pixels.tolist() == [[4, 3, 4, 4, 4, 3]]
    assert found.foreground_pixels.dtype == found.valid_pixels.dtype == torch.int64


def test_keeping_all_patches_recalls_everything_at_the_precision_of_the_foreground() -> None:
    foreground, ignored = _masks(4, 32, 32, seed=1)
    ignored &= ~foreground
    kept = torch.arange(16).expand(4, 16)
    found = agreement(kept, coverage(foreground, ignored, 8))
    assert found.recall[1:].tolist() == [1.0] * 3
    share = foreground.sum(dim=(1, 2)).double() / (~ignored).sum(dim=(1, 2)).double()
    assert torch.equal(found.precision[1:], share[1:])
    assert torch.equal(found.iou[1:], share[1:])


def test_keeping_exactly_the_foreground_is_perfect_in_every_measure() -> None:
    foreground = torch.zeros(1, 8, 8, dtype=torch.bool)
    foreground[0, :4, 4:] = True
    found = agreement(torch.tensor([[1]]), coverage(foreground, None, 4))
    assert [float(getattr(found, name)) for name in MEASURES] == [1.0] * 4


def test_an_image_without_foreground_has_no_measure_and_does_not_enter_a_mean() -> None:
    images = [(0, 100, 0), (50, 100, 200)]
    found = _agreement(images)
    for name in MEASURES:
        assert getattr(found, name).isnan().tolist() == [True, False]
    for summary in (patch_metrics.mean(found), pooled(found)):
        assert summary.num_images == 1
        assert (summary.precision, summary.recall) == (0.5, 0.25)
        assert (summary.f1, summary.iou) == (100 / 300, 50 / 250)


def test_kept_patches_that_are_wholly_ignored_have_no_precision_and_no_recall_of_anything() -> None:
    found = _agreement([(0, 0, 100), (50, 100, 100)])
    assert found.precision.isnan().tolist() == [True, False]
    assert found.recall.tolist() == [0.0, 0.5]
    assert found.f1.tolist() == [0.0, 0.5]
    summary = patch_metrics.mean(found)
    assert (summary.precision, summary.recall) == (0.5, 0.25)
    assert (summary.num_images, summary.num_with_precision) == (2, 1)


def test_the_mean_weighs_images_and_the_pool_weighs_pixels() -> None:
    found = _agreement([(10, 100, 10), (0, 100, 90), (7, 100, 0)])
    mean, pool = patch_metrics.mean(found), pooled(found)
    assert (mean.precision, mean.recall) == (0.05, 0.5)
    assert (pool.precision, pool.recall) == (0.05, 0.1)
    assert pool.f1 == 20 / 300
    assert pool.iou == 10 / 290
    assert mean.num_images == pool.num_images == 2


def test_without_any_foreground_every_figure_is_nan_and_n_is_0() -> None:
    for summary in (patch_metrics.mean(_agreement([(0, 9, 0)])), pooled(_agreement([(0, 9, 0)]))):
        assert all(math.isnan(getattr(summary, name)) for name in MEASURES)
        assert summary.num_images == summary.num_with_precision == 0


def test_batches_joined_give_the_agreement_of_all_images_at_once() -> None:
    foreground, ignored = _masks(6, 16, 16, seed=2)
    kept = _kept(6, 16, 5, seed=3)
    whole = agreement(kept, coverage(foreground, ignored, 4))
    parts = [
        agreement(kept[i : i + 4], coverage(foreground[i : i + 4], ignored[i : i + 4], 4))
        for i in (0, 4)
    ]
    assert patch_metrics.mean(concatenate(parts)) == patch_metrics.mean(whole)
    assert pooled(concatenate(parts)) == pooled(whole)
    with pytest.raises(RequestError, match="at least one"):
        concatenate([])


def test_wrong_masks_are_refused() -> None:
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    for wrong in (mask.float(), mask[0]):
        with pytest.raises(RequestError, match=r"foreground must be bool \(B, H, W\)"):
            coverage(wrong, None, 4)
    with pytest.raises(RequestError, match=r"ignored must be bool \(B, H, W\)"):
        coverage(mask, mask[:1], 4)
    for patch_size in (0, 3):
        with pytest.raises(RequestError, match="8 x 8 px do not divide"):
            coverage(mask, None, patch_size)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([[0, 1]], r"int64 \(B, k\) with B = 2"),
        ([0, 1], r"int64 \(B, k\)"),
        ([[0.0], [1.0]], "torch.float32"),
        ([[0, 1], [3, 4]], "outside 0 to 3"),
        ([[0, -1], [3, 2]], "outside 0 to 3"),
        ([[0, 1, 0], [3, 1, 2]], "the same index twice"),
    ],
)
def test_wrong_kept_indices_are_refused(kept: list[object], message: str) -> None:
    found = coverage(torch.zeros(2, 8, 8, dtype=torch.bool), None, 4)
    with pytest.raises(RequestError, match=message):
        agreement(torch.tensor(kept), found)


def test_a_bootstrap_interval_is_that_of_the_normal_law_for_many_images() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=2000)
    low, high = bootstrap_interval(values, seed=0)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_about_95_in_100_intervals_hold_the_true_mean() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.exponential(1.0, size=100), seed=seed, draws=200)
        hits += low <= 1.0 <= high
    assert 174 <= hits <= 198  # skewed values and few draws leave 93 of 100, +- 1.8


def test_a_bootstrap_interval_is_a_function_of_its_seed_and_widens_with_its_level() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    narrow, wide = (bootstrap_interval(values, seed=3, level=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < float(values.mean()) < narrow[1] < wide[1]
    assert bootstrap_interval(values.numpy(), seed=3, level=0.5) == narrow
    assert bootstrap_interval(values, seed=4, level=0.5) != narrow


def test_images_without_the_measure_are_left_out_of_an_interval() -> None:
    values = np.array([0.1, 0.4, 0.8, 0.3])
    with_nan = np.insert(values, [0, 2], math.nan)
    assert bootstrap_interval(with_nan, seed=0) == bootstrap_interval(values, seed=0)
    assert all(math.isnan(x) for x in bootstrap_interval(np.array([math.nan]), seed=0))
    assert bootstrap_interval(np.array([0.25]), seed=0) == (0.25, 0.25)


def test_a_paired_interval_sees_a_small_difference_between_very_different_images() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(300)
    b = a - 0.01 + rng.normal(0, 0.01, size=300)
    low, high = paired_bootstrap(a, b, seed=0)
    assert 0 < low < 0.01 < high < 0.02
    assert bootstrap_interval(a, seed=0)[0] < bootstrap_interval(b, seed=0)[1]
    assert paired_bootstrap(b, a, seed=0) == pytest.approx((-high, -low), abs=2e-4)
    b[0] = math.nan
    assert paired_bootstrap(a, b, seed=0) == paired_bootstrap(a[1:], b[1:], seed=0)


def test_wrong_values_for_an_interval_are_refused() -> None:
    values = np.zeros(4)
    for wrong in (np.zeros((2, 2)), np.array([0.0, math.inf])):
        with pytest.raises(RequestError, match=r"values must be \(N,\)"):
            bootstrap_interval(wrong, seed=0)
    for draws, level in ((0, 0.95), (10, 0.0), (10, 1.0), (10, math.nan)):
        with pytest.raises(RequestError, match="draws must be >= 1"):
            bootstrap_interval(values, seed=0, draws=draws, level=level)
    with pytest.raises(RequestError, match="same images; got 4 and 3"):
        paired_bootstrap(values, values[1:], seed=0)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), length=st.sampled_from([1, 4, 9]))
def test_nested_agreements_are_those_of_each_k(seed: int, length: int) -> None:
    side = 3 * math.isqrt(length)
    foreground, ignored = _masks(4, side, side, seed)
    seen = coverage(foreground, ignored, 3)
    order = _kept(4, length, length, seed)
    keeps = [length, 1, (length + 1) // 2]
    for keep, found in zip(keeps, nested_agreement(order, seen, keeps), strict=True):
        expected = agreement(order[:, :keep], seen)
        for name in ("intersection", "kept_pixels", "foreground"):
            assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize(
    ("order", "keeps", "says"),
    [
        ([[0, 1, 2, 2]], [1], "once an image"),
        ([[0, 1, 2, 4]], [1], "once an image"),
        ([[0, 1, 2]], [1], "order must be int64"),
        ([[0, 1, 2, 3]], [0], "from 1 to L = 4"),
        ([[0, 1, 2, 3]], [5], "from 1 to L = 4"),
    ],
)
def test_an_order_that_is_none_is_refused(order: list[list[int]], keeps: list[int], says: str):
    seen = coverage(torch.ones(1, 4, 4, dtype=torch.bool), None, 2)
    with pytest.raises(RequestError, match=says):
        nested_agreement(torch.tensor(order), seen, keeps)


def test_intervals_of_ratios_are_those_of_means_and_of_pooled_sums() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((50, 3))
    low, high = bootstrap_ratios(values, seed=3, draws=200)
    for column in range(3):
        expected = bootstrap_interval(values[:, column], seed=3, draws=200)
        np.testing.assert_allclose((low[column], high[column]), expected, rtol=1e-12)
    below = rng.integers(1, 9, (50, 3)).astype(float)
    low, high = bootstrap_ratios(values, below, seed=3, draws=200)
    assert (low < values.sum(axis=0) / below.sum(axis=0)).all()
    assert (high > values.sum(axis=0) / below.sum(axis=0)).all()
    again = bootstrap_ratios(values[:, 1:2] * 2, below[:, 1:2] * 2, seed=3, draws=200)
    np.testing.assert_allclose((low[1], high[1]), np.concatenate(again), rtol=1e-12)


def test_intervals_do_not_depend_on_how_many_resamples_fit_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(0).random((20, 2))
    expected = bootstrap_ratios(values, seed=0, draws=50)
    monkeypatch.setattr(patch_metrics, "_WEIGHTS_AT_ONCE", 140)
    np.testing.assert_allclose(bootstrap_ratios(values, seed=0, draws=50), expected, rtol=1e-12)


def test_ratios_of_nothing_are_undefined_and_infinite_values_are_refused() -> None:
    nothing = np.zeros((5, 1))
    assert np.isnan(bootstrap_ratios(nothing, nothing, seed=0, draws=9)).all()
    assert np.isnan(bootstrap_ratios(np.zeros((0, 2)), seed=0, draws=9)).all()
    with pytest.raises(RequestError, match="Put 0 in both"):
        bootstrap_ratios(np.full((5, 1), np.nan), seed=0)
    with pytest.raises(RequestError, match="one row per image"):
        bootstrap_ratios(np.zeros((5, 1)), np.zeros((5, 2)), seed=0)
    with pytest.raises(RequestError, match="draws must be"):
        bootstrap_ratios(np.zeros((5, 1)), seed=0, draws=0)
