"""Ranking losses beside the paper's four: smooth and weighted NDCG, and a ListMLE that knows noise.

The rules of `paper` hold: lists (B, n), higher = matters more, values >= 0, float32 or better,
finite up to scores of 1e4, no list influences another. A list whose targets are all equal costs 0
and has no gradient. Listing the patches of a list in another order changes nothing, also where
scores or targets are equal.

*Gain* of a patch, in the NDCG of this file: the share of the list's other patches with a smaller
target, so 0 to 1 in equal steps. Pseudo-scores of a list lie close together but for a few far above
the rest; gains taken from their values (2^y - 1, or y scaled to [0, 1]) hardly teach the order of
any but these few. Such gains rank the first places a little better and the list as a whole worse;
where the first places are what counts, `top` says so openly.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ltrp_core.losses.lists import (
    Reduction,
    check_not_negative,
    check_positive,
    checked_top,
    deviation_of,
    prepared,
    reduced,
    shifted,
)


def approx_ndcg(
    scores: Tensor,
    targets: Tensor,
    *,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
) -> Tensor:
    """Returns the mean over lists of 1 - NDCG with smooth ranks, from 0 to 1: ours for patches.

    Method (Qin et al. 2010, Bruch et al. 2019): the rank of a patch is
    `1 + sum_{j != i} sigmoid((s_j - s_i) / t)`, its discount `1 / log2(1 + rank)`. Never below 0:
    the discount is convex and smooth ranks are mixtures of permutations, so none beats the best
    permutation. Memory: a few (B, n, n) tensors.

    Args:
        scores: (B, n), not checked for nan or inf.
        targets: (B, n), finite, on the device of `scores`.
        temperature: t > 0, in units of the scores; as it goes to 0, ranks become those of sorting
            and gradients vanish.
        reduction: "mean" for a scalar, "none" for one value per list (B,).

    Raises:
        RequestError: wrong or empty shapes, targets that are not finite, or t not above 0.

    >>> round(approx_ndcg(torch.tensor([[9.0, 5.0, 1.0]]), torch.tensor([[3.0, 2.0, 1.0]])).item())
    0
    """
    check_positive("temperature", temperature)
    scores, targets = prepared(scores, targets)
    gains = _gains(targets, scores.dtype)
    differences = (scores.unsqueeze(1) - scores.unsqueeze(2)) / temperature
    # A patch's comparison with itself is in the sum: sigmoid(0) = 1/2.
    ranks = 0.5 + differences.sigmoid().sum(dim=2)
    gained = (gains / torch.log2(1 + ranks)).sum(dim=1)
    best = _best_gain(gains, gains.shape[1])
    return reduced(((best - gained) / _or_one(best)).clamp_min(0.0), reduction)


def lambda_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    sigma: float = 1.0,
    top: int | None = None,
    mu: float = 10.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Returns the mean over lists of logistic pair losses weighted by what they do to NDCG.

    Method (Wang et al. 2018, NDCG-Loss2++): `sum w_ij log2(1 + exp(-sigma (s_i - s_j)))` over the
    pairs with y_i > y_j, `w_ij = (rho_ij + mu delta_ij) (gain_i - gain_j) / best DCG`. With a and b
    the places, from 1, that the scores now give i and j, and `D_k = log2(1 + k)`:
    `rho_ij = |1/D_a - 1/D_b|`, `delta_ij = 1/D_|a-b| - 1/D_(|a-b|+1)`. rho alone weighs a pair by
    what swapping it does to NDCG (LambdaRank); delta alone bounds 1 - NDCG (NDCG-Loss2). The
    weights have no gradient, so the value jumps where two scores change places. Memory: some ten
    (B, n, n) tensors.

    Args:
        scores: (B, n), not checked for nan or inf. Equal ones take the worst places: smaller
            target first.
        targets: (B, n), finite, on the device of `scores`.
        sigma: steepness, > 0.
        top: the NDCG of how many first places, from 1 to n; pairs behind them say nothing. None
            for all.
        mu: weight of delta, >= 0; 0 gives LambdaRank.
        reduction: "mean" for a scalar, "none" for one value per list (B,).

    Raises:
        RequestError: wrong or empty shapes, targets that are not finite, sigma, top or mu out of
            range.

    >>> lambda_loss(torch.tensor([[0.0, 9.0]]), torch.tensor([[1.0, 1.0]]))
    tensor(0.)
    """
    check_positive("sigma", sigma)
    check_not_negative("mu", mu, "a weight")
    scores, targets = prepared(scores, targets)
    weights = _swap_weights(scores.detach(), targets, checked_top(top, scores.shape[1]), mu)
    # -logsigmoid rather than softplus, which torch cuts off to a straight line above 20.
    pair_loss = -F.logsigmoid(sigma * (scores.unsqueeze(2) - scores.unsqueeze(1)))
    return reduced((weights * pair_loss).sum(dim=(1, 2)) / math.log(2), reduction)


def plateau_listmle(
    scores: Tensor,
    targets: Tensor,
    *,
    noise: float = 0.1,
    reduction: Reduction = "mean",
) -> Tensor:
    """Returns the mean over lists of ListMLE (Eq. 3) without the pairs within the teacher's noise.

    Method (ours, not in the paper): a patch costs `logsumexp(s_i, s_k, ...) - s_i` over the k with
    `y_k < y_i - noise * std`, std of the list's targets; a list costs the sum. Patches whose
    targets lie within the noise do not push each other, in either direction. noise = 0 is
    `listmle` where no targets are equal; equal ones say nothing here.

    Args:
        scores: (B, n), not checked for nan or inf.
        targets: (B, n), finite, on the device of `scores`.
        noise: difference of targets that says nothing, in standard deviations of the list, >= 0.
            Above 3.5 hardly a pair is left; the loss is then near 0.
        reduction: "mean" for a scalar, "none" for one value per list (B,).

    Raises:
        RequestError: wrong or empty shapes, targets that are not finite, or noise out of range.

    >>> plateau_listmle(torch.tensor([[0.0, 9.0]]), torch.tensor([[0.3, 0.3]]))
    tensor(0.)
    """
    check_not_negative("noise", noise, "a number of standard deviations")
    scores, targets = prepared(scores, targets)
    ascending, order = targets.contiguous().sort(dim=1, stable=True)
    num_below = torch.searchsorted(ascending, ascending - noise * deviation_of(targets))
    # What lies below a threshold is the start of the ascending list, whatever equal targets do.
    ordered = shifted(scores).gather(1, order)
    nothing = ordered.new_full((len(ordered), 1), -torch.inf)
    below = torch.cat([nothing, ordered.logcumsumexp(dim=1)], dim=1).gather(1, num_below)
    return reduced(-F.logsigmoid(ordered - below).sum(dim=1), reduction)


def _gains(targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the share of the list's other patches with a smaller target (B, n), from 0 to 1."""
    num_below = (targets.unsqueeze(1) < targets.unsqueeze(2)).sum(dim=2)
    return num_below.to(dtype) / max(1, targets.shape[1] - 1)


def _best_gain(gains: Tensor, top: int) -> Tensor:
    """Returns the discounted gain (B,) of the best order, over its first `top` places."""
    places = torch.arange(1, top + 1, device=gains.device, dtype=gains.dtype)
    descending = gains.sort(dim=1, descending=True).values
    return (descending[:, :top] / torch.log2(1 + places)).sum(dim=1)


def _swap_weights(scores: Tensor, targets: Tensor, top: int, mu: float) -> Tensor:
    """Returns w_ij (B, n, n) of `lambda_loss`, 0 unless y_i > y_j."""
    places = _places(scores, targets)
    discounts = torch.where(places <= top, 1 / torch.log2(1 + places), 0.0)
    rho = (discounts.unsqueeze(2) - discounts.unsqueeze(1)).abs()
    # The clamp is for pairs of equal targets, which weigh nothing.
    distances = (places.unsqueeze(2) - places.unsqueeze(1)).abs().clamp_min(1.0)
    delta = 1 / torch.log2(1 + distances) - 1 / torch.log2(2 + distances)
    counts = (discounts.unsqueeze(2) + discounts.unsqueeze(1)) > 0
    gains = _gains(targets, scores.dtype)
    better_by = (gains.unsqueeze(2) - gains.unsqueeze(1)).clamp_min(0.0)
    best = _or_one(_best_gain(gains, top))
    return (rho + mu * delta * counts) * better_by / best[:, None, None]


def _places(scores: Tensor, targets: Tensor) -> Tensor:
    """Returns the place (B, n) of each patch by score, from 1; of equal ones the worst is first.

    Patches equal in score and target share the mean of their places, so that no index counts.
    """
    above = scores.unsqueeze(1) > scores.unsqueeze(2)
    level = scores.unsqueeze(1) == scores.unsqueeze(2)
    before = above | (level & (targets.unsqueeze(1) < targets.unsqueeze(2)))
    twins = level & (targets.unsqueeze(1) == targets.unsqueeze(2))
    return before.sum(dim=2).to(scores.dtype) + (1 + twins.sum(dim=2)) / 2


def _or_one(x: Tensor) -> Tensor:
    """Returns x, with 1 where it is 0: what divides a numerator that is 0 there as well."""
    return torch.where(x > 0, x, 1.0)
