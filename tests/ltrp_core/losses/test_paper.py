"""Ranking losses: the formulas' values and gradients, at any size of score, list by list.

What every loss of the table promises, and what is peculiar to the paper's four; the newer ones have
a file of their own for that.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltrp_core.errors import RequestError
from ltrp_core.losses import LOSSES, listmle, listnet, loss_by_name, ranknet, regression
from oracles import losses as oracle

ORACLES: dict[str, oracle.Loss] = {
    "listmle": oracle.listmle,
    "listnet": oracle.listnet,
    "ranknet": oracle.ranknet,
    "regression": oracle.regression,
    "approx_ndcg": oracle.approx_ndcg,
    "lambda_loss": oracle.lambda_loss,
    "plateau_listmle": oracle.plateau_listmle,
}
NAMES = sorted(LOSSES)
OF_DIFFERENCES = sorted(set(NAMES) - {"regression"})
WITHOUT_PLATEAUS: dict[str, dict[str, Any]] = {"plateau_listmle": {"noise": 0.0}}


def _lists(count: int, length: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, length, generator=generator, dtype=torch.float64).to(dtype)


def _expected(loss: oracle.Loss, scores: Tensor, targets: Tensor) -> float:
    rows = list(zip(scores.tolist(), targets.tolist(), strict=True))
    return math.fsum(oracle.value(loss, s, y) for s, y in rows) / len(rows)


def _gradient(loss: Callable[..., Tensor], scores: Tensor, targets: Tensor) -> Tensor:
    scores = scores.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(scores, targets), scores)
    return gradient


def _differentiable(name: str, scores: list[float], targets: list[float]) -> oracle.Loss:
    """Returns the formula as a function whose slope is the gradient: weights hold still."""
    if name != "lambda_loss":
        return ORACLES[name]
    exact = [Decimal(s) for s in scores], [Decimal(y) for y in targets]
    return partial(oracle.lambda_loss, places=oracle.places_of(*exact))


def test_every_loss_has_an_oracle() -> None:
    assert ORACLES.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(count=st.integers(1, 3), length=st.integers(1, 7), seed=st.integers(0, 999))
def test_a_loss_is_the_one_its_formula_gives(name: str, count: int, length: int, seed: int) -> None:
    scores, targets = 3 * _lists(count, length, seed), _lists(count, length, seed + 1000)
    targets = targets.round(decimals=seed % 3)  # ties in a third of the cases
    found = float(LOSSES[name](scores, targets))
    assert found == pytest.approx(_expected(ORACLES[name], scores, targets), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 4.0])
def test_listnet_takes_its_temperature_after_standardizing(temperature: float) -> None:
    scores, targets = _lists(3, 6), 1e-6 * _lists(3, 6, seed=1)

    def exact(s: oracle.Row, y: oracle.Row) -> Decimal:
        return oracle.listnet(s, y, Decimal(temperature))

    found = float(listnet(scores, targets, temperature=temperature))
    assert found == pytest.approx(_expected(exact, scores, targets), rel=1e-11)


@pytest.mark.parametrize(("sigma", "tie"), [(0.5, 0.0), (2.0, 0.5), (1.0, 1.0)])
def test_ranknet_leaves_out_pairs_that_differ_by_no_more_than_the_tie(
    sigma: float, tie: float
) -> None:
    scores, targets = _lists(3, 6), _lists(3, 6, seed=1).mul(2).round() / 2

    def exact(s: oracle.Row, y: oracle.Row) -> Decimal:
        return oracle.ranknet(s, y, Decimal(sigma), Decimal(tie))

    found = float(ranknet(scores, targets, sigma=sigma, tie=tie))
    assert found == pytest.approx(_expected(exact, scores, targets), rel=1e-12)


def test_listmle_is_the_probability_of_an_order_and_those_of_all_orders_sum_to_1() -> None:
    scores = 2 * _lists(1, 4)
    orders = torch.tensor(list(itertools.permutations(range(4))), dtype=torch.float64)
    total = sum(math.exp(-float(listmle(scores, order.unsqueeze(0)))) for order in orders)
    assert total == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("top", [1, 2, 5, 6])
def test_listmle_of_the_first_places_is_the_probability_that_these_come_first(top: int) -> None:
    scores, targets = 2 * _lists(3, 6), _lists(3, 6, seed=1)
    found = float(listmle(scores, targets, top=top))
    expected = _expected(partial(oracle.listmle, top=top), scores, targets)
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_probabilities_of_all_first_two_places_sum_to_1() -> None:
    scores = 2 * _lists(1, 5)
    total = 0.0
    for first, second in itertools.permutations(range(5), 2):
        targets = torch.zeros(1, 5)
        targets[0, first], targets[0, second] = 2.0, 1.0
        total += math.exp(-float(listmle(scores, targets, top=2)))
    assert total == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("name", ["listmle", "lambda_loss"])
def test_all_places_count_unless_said_and_more_than_there_are_is_refused(name: str) -> None:
    scores, targets = _lists(3, 7), _lists(3, 7, seed=1)
    assert torch.equal(LOSSES[name](scores, targets, top=7), LOSSES[name](scores, targets))
    assert float(LOSSES[name](scores, targets, top=3)) < float(LOSSES[name](scores, targets))
    for top in (0, -1, 8):
        with pytest.raises(RequestError, match=f"top must be from 1 to n = 7 places; got {top}"):
            LOSSES[name](scores, targets, top=top)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_pass_gradcheck_in_double_precision(name: str) -> None:
    scores = (2 * _lists(3, 7)).requires_grad_()
    targets = _lists(3, 7, seed=1)
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, targets), (scores,))


HUGE = {
    "spread": [1e4, -1e4, 3.0, 3.5, -9999.0, 9998.0],
    "drifted": [1e4, 9999.0, 9998.5, 9999.5, 9997.0, 9998.0],
    "drifted_down": [-1e4, -9999.0, -9998.5, -9999.5, -9997.0, -9998.0],
    "equal": [1e4] * 6,
    "one_far_off": [0.5, 1.0, -1e4, 0.0, 2.0, -0.5],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", sorted(HUGE))
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.float64, 1e-10)], ids=["32", "64"]
)
def test_scores_of_1e4_give_the_right_value_and_gradient(
    name: str, case: str, dtype: torch.dtype, tolerance: float
) -> None:
    scores = torch.tensor([HUGE[case]], dtype=dtype)
    for targets in (scores, -scores, torch.tensor([[0.0, 5, 2, 1, 4, 3]], dtype=dtype)):
        row, wanted = scores[0].tolist(), targets[0].tolist()
        expected = torch.tensor([oracle.gradient(_differentiable(name, row, wanted), row, wanted)])
        value = oracle.value(ORACLES[name], row, wanted)
        assert float(LOSSES[name](scores, targets)) == pytest.approx(value, rel=1e-6, abs=tolerance)
        found = _gradient(LOSSES[name], scores, targets).to(expected)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_long_lists_of_scores_up_to_1e4_stay_finite(name: str) -> None:
    scores = (_lists(4, 196, dtype=torch.float32) * 5000).clamp(-1e4, 1e4)
    targets = _lists(4, 196, seed=1, dtype=torch.float32)
    assert math.isfinite(LOSSES[name](scores, targets))
    assert bool(_gradient(LOSSES[name], scores, targets).isfinite().all())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(length=st.integers(1, 19), seed=st.integers(0, 999))
def test_patches_may_be_listed_in_any_order(name: str, length: int, seed: int) -> None:
    scores, targets = _lists(3, length, seed), _lists(3, length, seed + 1000)
    order = _lists(3, length, seed + 2000).argsort(dim=1)
    shuffled = LOSSES[name](scores.gather(1, order), targets.gather(1, order))
    torch.testing.assert_close(shuffled, LOSSES[name](scores, targets), rtol=1e-11, atol=1e-12)
    expected = _gradient(LOSSES[name], scores, targets).gather(1, order)
    found = _gradient(LOSSES[name], scores.gather(1, order), targets.gather(1, order))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_costs_the_mean_of_its_lists_and_moves_each_by_its_own_gradient(name: str) -> None:
    scores, targets = _lists(5, 19), _lists(5, 19, seed=1)
    singles = [LOSSES[name](s[None], y[None]) for s, y in zip(scores, targets, strict=True)]
    torch.testing.assert_close(LOSSES[name](scores, targets), torch.stack(singles).mean())
    slopes = [
        _gradient(LOSSES[name], s[None], y[None]) / 5 for s, y in zip(scores, targets, strict=True)
    ]
    torch.testing.assert_close(_gradient(LOSSES[name], scores, targets), torch.cat(slopes))


@pytest.mark.parametrize("name", NAMES)
def test_without_reduction_a_loss_gives_the_cost_of_each_list_whatever_the_batch(name: str) -> None:
    scores, targets = _lists(5, 19), _lists(5, 19, seed=1)
    costs = LOSSES[name](scores, targets, reduction="none")
    singles = [LOSSES[name](s[None], y[None]) for s, y in zip(scores, targets, strict=True)]
    torch.testing.assert_close(costs, torch.stack(singles))
    torch.testing.assert_close(costs.mean(), LOSSES[name](scores, targets))


@pytest.mark.parametrize("name", NAMES)
def test_unequal_micro_batches_can_be_weighted_to_the_gradient_of_the_whole(name: str) -> None:
    scores, targets = _lists(7, 19).requires_grad_(), _lists(7, 19, seed=1)
    for part in (slice(0, 4), slice(4, 6), slice(6, 7)):
        (LOSSES[name](scores[part], targets[part], reduction="none").sum() / 7).backward()
    torch.testing.assert_close(scores.grad, _gradient(LOSSES[name], scores.detach(), targets))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lists=st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=9),
    scale=st.sampled_from([1e-4, 1.0, 3000.0]),
)
def test_no_list_costs_less_than_nothing(
    name: str, lists: list[tuple[int, int]], scale: float
) -> None:
    scores, targets = (torch.tensor([column], dtype=torch.float32) for column in zip(*lists))
    cost = LOSSES[name](scores * scale, targets)
    assert 0.0 <= float(cost) < math.inf


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(targets=st.lists(st.integers(-50, 50), min_size=2, max_size=19, unique=True))
def test_the_right_order_costs_less_than_the_reversed_one(name: str, targets: list[int]) -> None:
    wanted = torch.tensor([targets], dtype=torch.float64)
    scores = (wanted - wanted.mean()) / 50
    assert LOSSES[name](scores, wanted) < LOSSES[name](-scores, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_descent_on_a_loss_finds_the_order_of_the_targets(name: str) -> None:
    targets = _lists(4, 9, seed=3)
    scores = torch.zeros(4, 9, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        LOSSES[name](scores, targets, **WITHOUT_PLATEAUS.get(name, {})).backward()
        optimizer.step()
    assert torch.equal(scores.argsort(dim=1), targets.argsort(dim=1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6])
def test_the_unit_of_the_targets_does_not_matter(name: str, scale: float) -> None:
    scores = _lists(3, 19, dtype=torch.float32)
    targets = _lists(3, 19, seed=1, dtype=torch.float32)
    scaled = LOSSES[name](scores, (targets.double() * scale).float())
    torch.testing.assert_close(scaled, LOSSES[name](scores, targets), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OF_DIFFERENCES)
def test_a_shift_of_all_scores_of_a_list_does_not_matter(name: str) -> None:
    scores, targets = _lists(3, 19), _lists(3, 19, seed=1)
    shifted = scores + torch.tensor([[100.0], [-7.0], [0.5]], dtype=torch.float64)
    torch.testing.assert_close(LOSSES[name](shifted, targets), LOSSES[name](scores, targets))


@pytest.mark.parametrize("name", OF_DIFFERENCES)
def test_scores_that_drifted_to_1e4_cost_no_digit_of_their_differences(name: str) -> None:
    # Multiples of 1/1024, the spacing of float32 at 1e4: the shift itself is exact.
    scores = (_lists(4, 196, dtype=torch.float32) * 1024).round() / 1024
    targets = _lists(4, 196, seed=1, dtype=torch.float32)
    for shift in (8500.0, -8500.0):
        drifted = LOSSES[name](scores + shift, targets)
        torch.testing.assert_close(drifted, LOSSES[name](scores, targets), rtol=1e-6, atol=1e-6)
        expected = _gradient(LOSSES[name], scores, targets)
        found = _gradient(LOSSES[name], scores + shift, targets)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1, 19, 196])
def test_a_constant_list_of_targets_asks_for_no_order(length: int) -> None:
    scores = _lists(50, length, dtype=torch.float32)
    targets = _lists(50, 1, seed=1, dtype=torch.float32).expand(50, length)
    assert float(ranknet(scores, targets)) == 0.0
    torch.testing.assert_close(regression(scores, targets), scores.square().mean())
    torch.testing.assert_close(listnet(scores, targets), -scores.log_softmax(1).mean())
    for name in ("approx_ndcg", "lambda_loss", "plateau_listmle"):
        assert float(LOSSES[name](scores, targets)) == 0.0
        assert not bool(_gradient(LOSSES[name], scores, targets).any())


def test_equal_targets_are_taken_by_index_without_a_generator() -> None:
    scores = _lists(1, 5)
    tied = torch.tensor([[1.0, 0.0, 1.0, -0.0, 0.0]], dtype=torch.float64)
    untied = torch.tensor([[9.0, 3.0, 8.0, 2.0, 1.0]], dtype=torch.float64)
    assert listmle(scores, tied) == listmle(scores, untied)


def test_a_generator_breaks_ties_into_every_order_alike_and_again_with_its_seed() -> None:
    scores = torch.tensor([[0.3, -1.0, 0.9, 2.0]], dtype=torch.float64)
    targets = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    orders = [(*first, 3) for first in itertools.permutations(range(3))]
    exact = [scores[0].tolist(), *orders]
    costs = [
        oracle.value(lambda s, _, o=order: oracle.listmle_of_order(s, o), exact[0], [0.0] * 4)
        for order in orders
    ]

    def draw(seed: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed)
        return [float(listmle(scores, targets, generator=generator)) for _ in range(1200)]

    drawn = draw(0)
    counts = Counter(min(range(6), key=lambda i: abs(costs[i] - found)) for found in drawn)
    assert all(min(abs(found - cost) for cost in costs) < 1e-9 for found in drawn)
    assert all(140 < counts[i] < 260 for i in range(6))  # 200 expected, 4.6 standard deviations
    assert draw(0) == drawn
    assert draw(1) != drawn


def test_a_generator_changes_nothing_where_no_targets_are_equal() -> None:
    scores, targets = _lists(4, 19), _lists(4, 19, seed=1)
    shuffled = listmle(scores, targets, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shuffled, listmle(scores, targets))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_computed_in_single_precision(
    name: str, dtype: torch.dtype
) -> None:
    scores, targets = _lists(3, 19, dtype=dtype), _lists(3, 19, seed=1, dtype=torch.float32)
    found = LOSSES[name](scores, targets)
    assert found.dtype == torch.float32
    assert found.shape == ()
    assert torch.equal(found, LOSSES[name](scores.float(), targets))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LOSSES[name](scores.float(), targets), found)


@pytest.mark.parametrize("name", NAMES)
def test_the_targets_precision_orders_them_and_the_scores_set_the_result(name: str) -> None:
    scores = _lists(1, 5, dtype=torch.float32)
    close = 1.0 + torch.tensor([[3.0, 1.0, 5.0, 2.0, 4.0]], dtype=torch.float64) * 1e-12
    apart = (close - 1.0) * 1e12
    found = LOSSES[name](scores, close)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, LOSSES[name](scores, apart), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_flows_into_the_targets(name: str) -> None:
    targets = _lists(2, 5).requires_grad_()
    scores = _lists(2, 5, seed=1).requires_grad_()
    LOSSES[name](scores, targets).backward()
    assert targets.grad is None
    assert scores.grad is not None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("scores", "targets"),
    [((5,), (5,)), ((2, 5), (2, 4)), ((2, 5), (1, 5)), ((2, 1, 5), (2, 1, 5)), ((0, 5), (0, 5))],
)
def test_wrong_shapes_are_refused_with_what_was_found(
    name: str, scores: tuple[int, ...], targets: tuple[int, ...]
) -> None:
    with pytest.raises(RequestError, match=r"\(B, n\)") as error:
        LOSSES[name](torch.zeros(scores), torch.zeros(targets))
    assert str(targets) in str(error.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_targets_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    targets = torch.zeros(2, 5)
    targets[1, 3] = bad
    with pytest.raises(RequestError, match="targets must be finite"):
        LOSSES[name](torch.zeros(2, 5), targets)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_temperature_sigma_and_tie_out_of_range_are_refused(bad: float) -> None:
    lists = torch.zeros(1, 3), torch.zeros(1, 3)
    with pytest.raises(RequestError, match="temperature"):
        listnet(*lists, temperature=bad)
    with pytest.raises(RequestError, match="sigma"):
        ranknet(*lists, sigma=bad)
    with pytest.raises(RequestError, match="tie"):
        ranknet(*lists, tie=bad if bad else -0.5)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_reduction_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="unknown reduction 'sum'; known: mean, none"):
        LOSSES[name](torch.zeros(1, 3), torch.zeros(1, 3), reduction="sum")


def test_losses_are_found_by_name_and_a_misspelling_is_answered_with_the_nearest() -> None:
    assert loss_by_name("listmle").function is listmle
    with pytest.raises(RequestError, match=r"unknown loss 'listMLE'; did you mean .*listmle"):
        loss_by_name("listMLE")
