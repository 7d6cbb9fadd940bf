"""Smooth NDCG, LambdaLoss and ListMLE with plateaus: their options and what each is for."""

from __future__ import annotations

import math
from decimal import Decimal
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltrp_core.errors import RequestError
from ltrp_core.losses import LOSSES, approx_ndcg, lambda_loss, listmle, plateau_listmle
from ltrp_core.ranking_metrics import ndcg
from oracles import losses as oracle

NEWER = ["approx_ndcg", "lambda_loss", "plateau_listmle"]


def _lists(count: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, length, generator=generator, dtype=torch.float64)


def _expected(loss: oracle.Loss, scores: Tensor, targets: Tensor) -> list[float]:
    rows = zip(scores.tolist(), targets.tolist(), strict=True)
    return [oracle.value(loss, s, y) for s, y in rows]


def _slope(name: str, scores: Tensor, targets: Tensor) -> Tensor:
    scores = scores.clone().requires_grad_()
    (slope,) = torch.autograd.grad(LOSSES[name](scores, targets), scores)
    return slope


@pytest.mark.parametrize("name", NEWER)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    patches=st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_equal_scores_and_targets_may_be_listed_in_any_order(
    name: str, patches: list[tuple[int, int]], seed: int
) -> None:
    scores, targets = (torch.tensor([column], dtype=torch.float64) for column in zip(*patches))
    order = _lists(1, len(patches), seed).argsort(dim=1)
    shuffled = scores.gather(1, order), targets.gather(1, order)
    found, expected = LOSSES[name](*shuffled), LOSSES[name](scores, targets)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    slope = _slope(name, scores, targets).gather(1, order)
    torch.testing.assert_close(_slope(name, *shuffled), slope, rtol=1e-12, atol=1e-12)
    assert oracle.value(
        getattr(oracle, name), scores[0].tolist(), targets[0].tolist()
    ) == pytest.approx(float(expected), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.02, 0.5, 3.0])
def test_approx_ndcg_softens_ranks_by_its_temperature(temperature: float) -> None:
    scores, targets = _lists(3, 6), _lists(3, 6, seed=1)
    exact = partial(oracle.approx_ndcg, temperature=Decimal(temperature))
    found = approx_ndcg(scores, targets, temperature=temperature, reduction="none")
    assert found.tolist() == pytest.approx(_expected(exact, scores, targets), rel=1e-11)


def test_cold_approx_ndcg_is_one_less_the_ndcg_of_the_order() -> None:
    scores, targets = _lists(8, 19), _lists(8, 19, seed=1).argsort(dim=1).double()
    found = approx_ndcg(scores, targets, temperature=1e-6, reduction="none")
    torch.testing.assert_close(found, 1 - ndcg(scores, targets, top=19))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(length=st.integers(2, 40), seed=st.integers(0, 999), scale=st.sampled_from([0.01, 1.0, 50]))
def test_no_smooth_ranks_beat_the_best_order_and_none_cost_more_than_1(
    length: int, seed: int, scale: float
) -> None:
    targets = _lists(4, length, seed)
    for scores in (targets * scale, -targets * scale, _lists(4, length, seed + 1) * scale):
        cost = approx_ndcg(scores, targets, reduction="none")
        assert bool(((cost >= 0) & (cost < 1)).all())
    apart = 10 * targets.argsort(dim=1).argsort(dim=1).double()
    assert float(approx_ndcg(apart, targets)) < 1e-12 < float(approx_ndcg(-apart, targets))


@pytest.mark.parametrize(
    ("sigma", "top", "mu"), [(0.5, None, 10.0), (2.0, 3, 0.0), (1.0, 1, 2.5), (1.0, None, 0.0)]
)
def test_lambda_loss_takes_its_steepness_its_places_and_its_weight(
    sigma: float, top: int | None, mu: float
) -> None:
    scores, targets = _lists(3, 6), _lists(3, 6, seed=1)
    exact = partial(oracle.lambda_loss, sigma=Decimal(sigma), top=top, mu=Decimal(mu))
    found = lambda_loss(scores, targets, sigma=sigma, top=top, mu=mu, reduction="none")
    assert found.tolist() == pytest.approx(_expected(exact, scores, targets), rel=1e-11)


def test_ndcg_loss_2_bounds_what_is_lost_of_ndcg() -> None:
    # rho = 0 cannot be asked for; the difference of two mu is delta's part alone.
    scores, targets = _lists(50, 19), _lists(50, 19, seed=1).argsort(dim=1).double()
    with_delta = lambda_loss(scores, targets, mu=1.0, reduction="none")
    bound = with_delta - lambda_loss(scores, targets, mu=0.0, reduction="none")
    assert bool((bound >= 1 - ndcg(scores, targets, top=19)).all())


@pytest.mark.parametrize(("top", "pushes"), [(2, False), (4, False), (5, True), (None, True)])
def test_pairs_behind_the_first_places_do_not_push_each_other(
    top: int | None, pushes: bool
) -> None:
    targets = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]], dtype=torch.float64)
    scores = torch.tensor([[9.0, 8.0, 7.0, 6.0, 0.5, 0.4]], dtype=torch.float64)
    moved = scores.clone()
    moved[0, 5] = 0.3  # it passes no one: only the pairs it is in can tell

    def slope_of_the_last_but_one(at: Tensor) -> float:
        at = at.clone().requires_grad_()
        (slope,) = torch.autograd.grad(lambda_loss(at, targets, top=top), at)
        return float(slope[0, 4])

    assert (slope_of_the_last_but_one(scores) != slope_of_the_last_but_one(moved)) is pushes


def test_lambda_loss_learns_from_scores_that_are_all_equal() -> None:
    targets = _lists(3, 9)
    slope = _slope("lambda_loss", torch.zeros_like(targets), targets)
    best, worst = targets.argmax(dim=1, keepdim=True), targets.argmin(dim=1, keepdim=True)
    assert bool((slope.gather(1, best) < 0).all())
    assert bool((slope.gather(1, worst) > 0).all())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    targets=st.lists(st.integers(-50, 50), min_size=1, max_size=19, unique=True),
    seed=st.integers(0, 999),
)
def test_without_noise_or_ties_plateau_listmle_is_listmle(targets: list[int], seed: int) -> None:
    wanted = torch.tensor([targets], dtype=torch.float64)
    scores = 3 * _lists(1, len(targets), seed)
    found = plateau_listmle(scores, wanted, noise=0.0)
    torch.testing.assert_close(found, listmle(scores, wanted), rtol=1e-12, atol=1e-12)


def test_targets_apart_by_less_than_rounding_of_their_range_are_not_taken_for_equal() -> None:
    targets = torch.tensor([[-1.0, 1e-12, 2e-12, 3e-12]])  # float32: 1 + 1e-12 would be 1
    scores = _lists(1, 4).float()
    found = plateau_listmle(scores, targets, noise=0.0)
    torch.testing.assert_close(found, listmle(scores, targets))


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.7, 2.0])
def test_noise_is_in_standard_deviations_of_the_list(noise: float) -> None:
    scores, targets = _lists(4, 7), 1e-6 * _lists(4, 7, seed=1)
    exact = partial(oracle.plateau_listmle, noise=Decimal(noise))
    found = plateau_listmle(scores, targets, noise=noise, reduction="none")
    assert found.tolist() == pytest.approx(_expected(exact, scores, targets), rel=1e-11)


def test_patches_of_one_plateau_do_not_push_each_other() -> None:
    scores = _lists(1, 5)
    plateau = torch.tensor([[1.0, 0.99, 0.0, 0.98, -3.0]], dtype=torch.float64)
    reversed_plateau = torch.tensor([[0.98, 0.99, 0.0, 1.0, -3.0]], dtype=torch.float64)
    found, expected = plateau_listmle(scores, plateau), plateau_listmle(scores, reversed_plateau)
    torch.testing.assert_close(found, expected)
    assert float(listmle(scores, plateau)) != pytest.approx(
        float(listmle(scores, reversed_plateau)), rel=1e-3
    )


def test_the_more_noise_the_less_is_asked_for_down_to_nothing() -> None:
    scores, targets = _lists(4, 19), _lists(4, 19, seed=1)
    noises = (0.0, 0.1, 0.5, 1.0, 2.0, 20.0)
    costs = [float(plateau_listmle(scores, targets, noise=noise)) for noise in noises]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == 0.0 < costs[-2]


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_options_out_of_range_are_refused_by_name(bad: float) -> None:
    lists = torch.zeros(1, 3), torch.zeros(1, 3)
    with pytest.raises(RequestError, match="temperature must be"):
        approx_ndcg(*lists, temperature=bad)
    with pytest.raises(RequestError, match="sigma must be"):
        lambda_loss(*lists, sigma=bad)
    with pytest.raises(RequestError, match="mu must be a weight >= 0"):
        lambda_loss(*lists, mu=bad)
    with pytest.raises(RequestError, match="noise must be a number of standard deviations >= 0"):
        plateau_listmle(*lists, noise=bad)
