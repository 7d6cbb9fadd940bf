"""Repeatability: mean maps and the agreement of halves, as loops over views and patches do it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from ltrp_core.partitions import cover_count, sample_visible
from ltrp_core.repeatability import label_repeatability, mean_map
from oracles import repeatability as oracle

LENGTH = 49
MASK_RATIO = 0.8  # 9 of 49 visible, 6 partitions per round, the last topped up


def _draw(
    shape: tuple[int, int, int], *, noise: float, sampler: Any = "iid", seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns partitions (N, V, P, n) and scores: a truth for each patch of a view, plus noise."""
    samples, views, count = shape
    visible = np.stack(
        [
            [
                sample_visible(f"{i}", v, count, LENGTH, MASK_RATIO, seed, sampler)
                for v in range(views)
            ]
            for i in range(samples)
        ]
    )
    generator = np.random.default_rng(seed)
    truth = generator.standard_normal((samples, views, 1, LENGTH))
    truth = np.broadcast_to(truth, (samples, views, count, LENGTH))
    score = np.take_along_axis(truth, visible, axis=-1)
    return visible, score + noise * generator.standard_normal(visible.shape)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    views=st.integers(1, 3),
    partitions=st.integers(1, 4),
    n=st.integers(1, 5),
    length=st.integers(5, 9),
    seed=st.integers(0, 99),
)
def test_a_mean_map_holds_the_mean_and_number_of_each_patchs_scores(
    views: int, partitions: int, n: int, length: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    visible = generator.integers(0, length, (views, partitions, n)).astype(np.uint8)
    score = generator.standard_normal(visible.shape).astype(np.float16)
    found, count = mean_map(visible, score, length)
    for view in range(views):
        means, numbers = oracle.mean_map(visible[view].tolist(), score[view].tolist(), length)
        np.testing.assert_allclose(found[view], means, rtol=1e-14, atol=1e-15)
        assert count[view].tolist() == numbers
    assert found.dtype == np.float64
    assert np.issubdtype(count.dtype, np.integer)


def test_leading_axes_stay_and_no_view_depends_on_another() -> None:
    visible, score = _draw((3, 2, 4), noise=1.0)
    found, count = mean_map(visible, score, LENGTH)
    assert found.shape == count.shape == (3, 2, LENGTH)
    alone, alone_count = mean_map(visible[1, 1], score[1, 1], LENGTH)
    np.testing.assert_array_equal(alone, found[1, 1])
    np.testing.assert_array_equal(alone_count, count[1, 1])


def test_half_precision_scores_are_summed_in_double() -> None:
    visible = np.zeros((4096, 1), dtype=np.uint8)
    score = np.full((4096, 1), 30.0, dtype=np.float16)  # their sum is above what float16 can hold
    assert mean_map(visible, score, 1)[0].tolist() == [30.0]


@pytest.mark.parametrize(
    ("partitions", "sampler", "groups", "min_patches"),
    [(8, "iid", None, 8), (5, "iid", None, 7), (12, "cover", 6, 8), (23, "cover", 6, 8)],
)
def test_the_figures_are_those_of_scipy_view_by_view(
    partitions: int, sampler: str, groups: int | None, min_patches: int
) -> None:
    visible, score = _draw((6, 2, partitions), noise=1.0, sampler=sampler)
    found = label_repeatability(visible, score, LENGTH, groups=groups, min_patches=min_patches)
    flat = visible.reshape(12, partitions, -1).tolist(), score.reshape(12, partitions, -1).tolist()
    views = [
        oracle.view_agreement(v, s, LENGTH, per_round=groups or 1, min_patches=min_patches)
        for v, s in zip(*flat)
    ]
    compared = [view for view in views if view is not None]
    assert found.num_views == len(compared) > 0
    assert found.num_left_out == len(views) - len(compared)
    for name in ("tau", "rho", "top1", "ndcg5", "num_patches"):
        expected = math.fsum(getattr(view, name) for view in compared) / len(compared)
        assert getattr(found, name) == pytest.approx(expected, rel=1e-12)


def test_some_views_have_too_few_patches_in_both_halves_and_are_counted() -> None:
    visible, score = _draw((40, 1, 4), noise=0.1)
    found = label_repeatability(visible, score, LENGTH, min_patches=6)
    assert found.num_left_out > 0
    assert found.num_views > 0
    assert found.num_views + found.num_left_out == 40
    assert found.num_patches >= 6


def test_halves_of_cover_partitions_are_whole_rounds_that_hold_every_patch() -> None:
    groups = cover_count(LENGTH, MASK_RATIO)
    visible, score = _draw((3, 2, 3 * groups + 2), noise=0.5, sampler="cover")
    found = label_repeatability(visible, score, LENGTH, groups=groups)
    assert found.num_patches == LENGTH
    whole = slice(0, 3 * groups)
    of_whole = label_repeatability(visible[:, :, whole], score[:, :, whole], LENGTH, groups=groups)
    assert of_whole == found


def test_a_teacher_without_noise_is_repeatable_and_one_of_noise_alone_is_not() -> None:
    certain = label_repeatability(*_draw((30, 2, 8), noise=0.0), LENGTH)
    assert (certain.tau, certain.rho, certain.top1, certain.ndcg5) == pytest.approx((1, 1, 1, 1))
    visible, _ = _draw((30, 2, 8), noise=0.0)
    random = np.random.default_rng(1).standard_normal(visible.shape)
    assert abs(label_repeatability(visible, random, LENGTH).tau) < 0.1


def test_more_partitions_make_labels_more_repeatable() -> None:
    taus = [
        label_repeatability(*_draw((30, 1, count), noise=2.0), LENGTH).tau for count in (6, 24, 96)
    ]
    assert taus == sorted(taus)
    assert taus[0] < taus[-1] - 0.2


def test_one_who_knows_the_expected_score_agrees_more_than_two_draws_do() -> None:
    # Why the figure is a yardstick and not a bound.
    visible, score = _draw((40, 1, 12), noise=1.0, sampler="cover")
    _, truth = _draw((40, 1, 12), noise=0.0, sampler="cover")
    known = np.concatenate([truth[:, :, :6], score[:, :, 6:]], axis=2)
    between_draws = label_repeatability(visible, score, LENGTH, groups=6)
    with_the_truth = label_repeatability(visible, known, LENGTH, groups=6)
    assert with_the_truth.tau > between_draws.tau + 0.05
    assert with_the_truth.rho == pytest.approx(math.sqrt(between_draws.rho), abs=0.03)


def test_a_view_scored_all_the_same_is_left_out_and_counted() -> None:
    visible, score = _draw((5, 1, 12), noise=0.5, sampler="cover")
    others = label_repeatability(visible[1:], score[1:], LENGTH, groups=6)
    score[0, 0, :6] = 0.25
    found = label_repeatability(visible, score, LENGTH, groups=6)
    assert found == dataclasses.replace(others, num_left_out=1)


def test_where_no_view_can_be_compared_the_figures_are_nan() -> None:
    visible, score = _draw((3, 1, 2), noise=0.5)
    found = label_repeatability(visible, score, LENGTH, min_patches=9)
    assert (found.num_views, found.num_left_out) == (0, 3)
    figures = (found.tau, found.rho, found.top1, found.ndcg5, found.num_patches)
    assert all(math.isnan(figure) for figure in figures)


@pytest.mark.parametrize(
    ("partitions", "groups", "wanted"), [(1, None, "2 partitions"), (11, 6, "2 rounds of 6")]
)
def test_too_few_partitions_for_two_halves_are_refused(
    partitions: int, groups: int | None, wanted: str
) -> None:
    visible, score = _draw((2, 1, partitions), noise=0.5, sampler="cover" if groups else "iid")
    with pytest.raises(RequestError, match=f"at least {wanted}.*found {partitions} partition"):
        label_repeatability(visible, score, LENGTH, groups=groups)


def test_wrong_options_are_refused() -> None:
    visible, score = _draw((2, 1, 4), noise=0.5)
    with pytest.raises(RequestError, match="groups must be"):
        label_repeatability(visible, score, LENGTH, groups=0)
    with pytest.raises(RequestError, match="min_patches must be at least 2"):
        label_repeatability(visible, score, LENGTH, min_patches=1)


@pytest.mark.parametrize("function", [mean_map, label_repeatability])
def test_arrays_that_are_not_scores_of_the_grid_are_refused(function: Any) -> None:
    visible, score = _draw((2, 1, 4), noise=0.5)
    with pytest.raises(RequestError, match=r"\(\.\.\., P, n\).*\(2, 1, 4, 8\)"):
        function(visible, score[..., :8], LENGTH)
    with pytest.raises(RequestError, match=r"\(\.\.\., P, n\)"):
        function(visible[0, 0, 0], score[0, 0, 0], LENGTH)
    with pytest.raises(RequestError, match=r"\(\.\.\., P, n\), not empty"):
        function(visible[:0], score[:0], LENGTH)
    with pytest.raises(RequestError, match="swapped"):
        function(score, visible, LENGTH)
    with pytest.raises(RequestError, match="from 0 to L - 1 = 24"):
        function(visible, score, 25)
    with pytest.raises(RequestError, match="from 0 to L - 1"):
        function(visible - 1, score, LENGTH)
    score[1, 0, 2, 3] = np.nan
    with pytest.raises(RequestError, match="score must be finite"):
        function(visible, score, LENGTH)
