"""Ranking metrics: SciPy's and scikit-learn's values, ties included, list by list."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltrp_core import ranking_metrics
from ltrp_core.errors import RequestError
from ltrp_core.ranking_metrics import (
    kendall_tau_b,
    ndcg,
    spearman_rho,
    top1_agreement,
    top_k_overlap,
)

METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kendall_tau_b": kendall_tau_b,
    "spearman_rho": spearman_rho,
    "ndcg": ndcg,
    "top1_agreement": top1_agreement,
    "top_k_overlap": lambda scores, targets: top_k_overlap(scores, targets, 2),
}
NAMES = sorted(METRICS)

# Few values: every kind of tie, constant lists among them.
lists_with_ties = st.integers(1, 12).flatmap(
    lambda n: st.lists(
        st.tuples(
            st.lists(st.integers(-2, 2), min_size=n, max_size=n),
            st.lists(st.integers(-2, 2), min_size=n, max_size=n),
        ),
        min_size=1,
        max_size=4,
    )
)


def _tensors(lists: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    scores, targets = zip(*lists, strict=True)
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32)


def _random(count: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, length, generator=generator),
        torch.randn(count, length, generator=generator),
    )


def _assert_equal(found: Tensor, expected: list[float]) -> None:
    assert found.dtype == torch.float64
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12, equal_nan=True)


def _scipy(name: str, scores: Tensor, targets: Tensor) -> list[float]:
    from scipy import stats

    function = {"kendall_tau_b": stats.kendalltau, "spearman_rho": stats.spearmanr}[name]
    values = []
    for s, y in zip(scores.tolist(), targets.tolist(), strict=True):
        is_defined = len(set(s)) > 1 and len(set(y)) > 1
        values.append(float(function(s, y).statistic) if is_defined else math.nan)
    return values


def _sklearn(scores: Tensor, targets: Tensor, top: int) -> list[float]:
    from sklearn.metrics import ndcg_score

    values = []
    for s, y in zip(scores.double().numpy(), targets.double().numpy(), strict=True):
        if y.min() == y.max():
            values.append(math.nan)
        else:
            gains = (y - y.min()) / (y.max() - y.min())
            values.append(float(ndcg_score(gains[None], s[None], k=top)))
    return values


@pytest.mark.parametrize("name", ["kendall_tau_b", "spearman_rho"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(lists=lists_with_ties)
def test_rank_correlations_are_those_of_scipy_with_any_ties(
    name: str, lists: list[tuple[list[int], list[int]]]
) -> None:
    scores, targets = _tensors(lists)
    _assert_equal(METRICS[name](scores, targets), _scipy(name, scores, targets))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(lists=lists_with_ties, top=st.integers(1, 14))
def test_ndcg_is_that_of_scikit_learn_on_scaled_gains_with_any_ties(
    lists: list[tuple[list[int], list[int]]], top: int
) -> None:
    scores, targets = _tensors(lists)
    _assert_equal(ndcg(scores, targets, top), _sklearn(scores, targets, top))


def test_a_whole_image_of_196_patches_gives_the_values_of_the_references() -> None:
    scores, targets = _random(3, 196)
    scores = scores.mul(20).round()
    for name in ("kendall_tau_b", "spearman_rho"):
        _assert_equal(METRICS[name](scores, targets), _scipy(name, scores, targets))
    _assert_equal(ndcg(scores, targets), _sklearn(scores, targets, 5))


def test_negative_targets_such_as_minus_psnr_have_an_ndcg() -> None:
    scores, targets = _random(4, 19)
    torch.testing.assert_close(
        ndcg(scores, 3 * targets - 60), ndcg(scores, targets), rtol=1e-4, atol=0
    )
    _assert_equal(ndcg(targets, 3 * targets - 60), [1.0] * 4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(lists=lists_with_ties)
def test_top1_agreement_asks_whether_the_first_patch_is_one_of_the_best(
    lists: list[tuple[list[int], list[int]]],
) -> None:
    expected = [
        float(y[s.index(max(s))] == max(y)) if len(set(y)) > 1 else math.nan for s, y in lists
    ]
    _assert_equal(top1_agreement(*_tensors(lists)), expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(lists=lists_with_ties, data=st.data())
def test_top_k_overlap_is_that_of_two_stable_sorts(
    lists: list[tuple[list[int], list[int]]], data: st.DataObject
) -> None:
    length = len(lists[0][0])
    k = data.draw(st.integers(1, length))

    def best(x: list[int]) -> set[int]:
        return set(sorted(range(length), key=lambda i: (-x[i], i))[:k])

    expected = [len(best(s) & best(y)) / k if len(set(y)) > 1 else math.nan for s, y in lists]
    _assert_equal(top_k_overlap(*_tensors(lists), k), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_targets_themselves_are_a_perfect_ranking(name: str) -> None:
    _, targets = _random(8, 19)
    _assert_equal(METRICS[name](targets.exp(), targets), [1.0] * 8)


@pytest.mark.parametrize("name", ["kendall_tau_b", "spearman_rho"])
def test_the_reversed_order_has_the_correlation_of_minus_1(name: str) -> None:
    _, targets = _random(8, 19)
    assert METRICS[name](-targets, targets).tolist() == [-1.0] * 8


@pytest.mark.parametrize("name", NAMES)
def test_a_list_gives_the_same_value_in_any_batch(name: str) -> None:
    scores, targets = _random(6, 19)
    batch = METRICS[name](scores, targets)
    singles = [METRICS[name](s[None], y[None]) for s, y in zip(scores, targets, strict=True)]
    assert torch.equal(batch, torch.cat(singles))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_cut_into_pieces_gives_the_same_values(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, targets = _random(7, 19)
    whole = METRICS[name](scores, targets)
    for pairs in (1, 3 * 19 * 19):
        monkeypatch.setattr(ranking_metrics, "_PAIRS_AT_ONCE", pairs)
        assert torch.equal(METRICS[name](scores, targets), whole)


@pytest.mark.parametrize("name", NAMES)
def test_patches_may_be_listed_in_any_order(name: str) -> None:
    scores, targets = _random(5, 19)
    order = _random(5, 19, seed=1)[0].argsort(dim=1)
    shuffled = METRICS[name](scores.gather(1, order), targets.gather(1, order))
    torch.testing.assert_close(shuffled, METRICS[name](scores, targets), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_constant_targets_give_nan_and_leave_the_other_lists_alone(name: str) -> None:
    scores, targets = _random(3, 19)
    expected = METRICS[name](scores, targets)
    targets[1] = 0.1
    found = METRICS[name](scores, targets)
    assert found.isnan().tolist() == [False, True, False]
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_constant_scores_have_no_correlation_and_the_ndcg_of_a_random_order() -> None:
    _, targets = _random(1, 6)
    constant = torch.zeros(1, 6)
    assert bool(kendall_tau_b(constant, targets).isnan())
    assert bool(spearman_rho(constant, targets).isnan())
    many = torch.rand(20_000, 6, generator=torch.Generator().manual_seed(0))
    expected = ndcg(many, targets.expand(20_000, 6)).mean()
    torch.testing.assert_close(ndcg(constant, targets)[0], expected, rtol=0.01, atol=0)


def test_half_precision_and_double_precision_lists_are_ordered_as_they_are() -> None:
    scores, targets = _random(3, 19)
    half = scores.bfloat16()
    assert torch.equal(kendall_tau_b(half, targets), kendall_tau_b(half.float(), targets))
    close = 1 + targets.double() * 1e-12
    torch.testing.assert_close(spearman_rho(scores, close), spearman_rho(scores, targets))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("scores", "targets"), [((5,), (5,)), ((2, 5), (2, 4)), ((2, 5), (1, 5)), ((2, 0), (2, 0))]
)
def test_wrong_shapes_are_refused(
    name: str, scores: tuple[int, ...], targets: tuple[int, ...]
) -> None:
    with pytest.raises(RequestError, match=r"\(B, n\)"):
        METRICS[name](torch.zeros(scores), torch.zeros(targets))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_by_name(name: str, bad: float) -> None:
    damaged = torch.zeros(2, 5)
    damaged[0, 1] = bad
    with pytest.raises(RequestError, match="scores must be finite"):
        METRICS[name](damaged, torch.zeros(2, 5))
    with pytest.raises(RequestError, match="targets must be finite"):
        METRICS[name](torch.zeros(2, 5), damaged)


def test_places_out_of_range_are_refused() -> None:
    scores, targets = _random(2, 5)
    with pytest.raises(RequestError, match="top must be at least 1"):
        ndcg(scores, targets, 0)
    for k in (0, 6):
        with pytest.raises(RequestError, match=f"k must be from 1 to n = 5; got {k}"):
            top_k_overlap(scores, targets, k)
