"""Learning-to-rank losses between ranker scores and pseudo-scores (Sec. 3.3, Eq. 3, Tab. 1f).

Every loss takes lists `scores (B, n)` and `targets (B, n)`, higher = matters more, and returns the
mean over the B lists, a scalar >= 0; with `reduction="none"` one value per list, (B,), so that
lists can be weighted exactly over micro-batches and ranks. No list influences another's value.

All compute in float32 (float64 where the scores are float64; half precision is upcast), so they may
stand inside an autocast region. Values and gradients are finite for scores up to 1e4 in size and as
exact as the rounding of such scores allows: 1e-3 of a gradient. Only the order or the standardized
values of the targets count, so the unit of the pseudo-scores (l1, -PSNR, 1-SSIM) does not;
ranknet's `tie` alone is in that unit.

Here are the paper's four; `ltrp_core.losses.newer` holds those of later work and our own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ltrp_core.losses.lists import (
    Reduction,
    check_not_negative,
    check_positive,
    checked_top,
    prepared,
    reduced,
    shifted,
    standardized,
)


def listmle(
    scores: Tensor,
    targets: Tensor,
    *,
    generator: torch.Generator | None = None,
    top: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Returns the mean over lists of -log P(the order of `targets` | `scores`): Eq. (3).

    Method: with pi = order of the targets, descending, a list costs
    `sum_i [logsumexp_{k >= i} s_pi(k) - s_pi(i)]`, summed over the list, not averaged. With `top`
    only the first places i contribute their terms (Xia et al. 2009: the probability that these
    patches come first, in this order); the logsumexp still runs over all that are not yet placed.

    Args:
        scores: (B, n), not checked for nan or inf.
        targets: (B, n), finite, on the device of `scores`.
        generator: breaks ties of the targets at random; it may be on another device. None: the
            lower index comes first.
        top: places that count, from 1 to n; None for all.
        reduction: "mean" for a scalar, "none" for one value per list (B,).

    Raises:
        RequestError: wrong or empty shapes, targets that are not finite, or top out of range.

    >>> loss = listmle(torch.zeros(2, 3), torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]]))
    >>> round(loss.exp().item(), 4)  # each of the 3! orders is as likely
    6.0
    """
    scores, targets = prepared(scores, targets)
    length = scores.shape[1]
    not_counted = length - checked_top(top, length)
    # Last place first: the sums run from the end.
    reversed_scores = shifted(scores).gather(1, _descending(targets, generator).flip(1))
    terms = reversed_scores.logcumsumexp(dim=1) - reversed_scores
    return reduced(terms[:, not_counted:].sum(dim=1), reduction)


def listnet(
    scores: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Returns the mean over lists of the cross-entropy of top-one probabilities: Tab. 1f.

    Method: `-sum_i softmax(y / t)_i log_softmax(s)_i` with y standardized per list (mean 0,
    standard deviation 1; a constant list becomes zeros). Standardizing is ours: raw l1
    pseudo-scores are so close together that their softmax is nearly uniform.

    Args:
        scores: (B, n), not checked for nan or inf.
        targets: (B, n), finite, on the device of `scores`.
        temperature: t > 0; lower puts more weight on the best patches.
        reduction: "mean" for a scalar, "none" for one value per list (B,).

    Raises:
        RequestError: wrong or empty shapes, targets that are not finite, or t not above 0.

    >>> loss = listnet(torch.zeros(1, 4), torch.tensor([[4.0, 1.0, 2.0, 3.0]]))
    >>> round(loss.exp().item(), 4)
    4.0
    """
    check_positive("temperature", temperature)
    scores, targets = prepared(scores, targets)
    probabilities = (standardized(targets).to(scores.dtype) / temperature).softmax(dim=1)
    return reduced(-(probabilities * scores.log_softmax(dim=1)).sum(dim=1), reduction)


def ranknet(
    scores: Tensor,
    targets: Tensor,
    *,
    sigma: float = 1.0,
    tie: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Returns the mean over lists of the mean logistic loss of their ordered pairs: Tab. 1f.

    Method: the mean of `softplus(-sigma (s_i - s_j))` over the pairs with `y_i - y_j > tie`. A list
    without such a pair counts as 0. Memory: a few (B, n, n) tensors.

    Args:
        scores: (B, n), not checked for nan or inf.
        targets: (B, n), finite, on the device of `scores`.
        sigma: steepness, > 0.
        tie: pairs whose targets differ by at most this, in units of the targets, say nothing; >= 0.
        reduction: "mean" for a scalar, "none" for one value per list (B,).

    Raises:
        RequestError: wrong or empty shapes, targets that are not finite, sigma or tie out of range.

    >>> ranknet(torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[2.0, 1.0, 1.0]]), tie=1.0)
    tensor(0.)
    """
    check_positive("sigma", sigma)
    check_not_negative("tie", tie, "a difference of targets")
    scores, targets = prepared(scores, targets)
    is_ordered = targets.unsqueeze(2) - targets.unsqueeze(1) > tie
    # -logsigmoid rather than softplus, which torch cuts off to a straight line above 20.
    pair_loss = -F.logsigmoid(sigma * (scores.unsqueeze(2) - scores.unsqueeze(1)))
    total = torch.where(is_ordered, pair_loss, 0.0).sum(dim=(1, 2))
    return reduced(total / is_ordered.sum(dim=(1, 2)).clamp_min(1), reduction)


def regression(scores: Tensor, targets: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Returns the mean squared error to the targets standardized per list: Tab. 1f.

    Standardizing (mean 0, standard deviation 1; a constant list becomes zeros) is ours.

    Args:
        scores: (B, n), not checked for nan or inf.
        targets: (B, n), finite, on the device of `scores`.
        reduction: "mean" for a scalar, "none" for one value per list (B,).

    Raises:
        RequestError: wrong or empty shapes, or targets that are not finite.

    >>> regression(torch.tensor([[-1.0, 1.0]]), torch.tensor([[0.02, 0.04]]))
    tensor(0.)
    """
    scores, targets = prepared(scores, targets)
    errors = (scores - standardized(targets).to(scores.dtype)).square()
    return reduced(errors.mean(dim=1), reduction)


def _descending(targets: Tensor, generator: torch.Generator | None) -> Tensor:
    """Returns the order (B, n) of the targets, descending; ties at random, or by index."""
    # Adding 0 turns -0.0 into 0.0, which a radix sort could otherwise tell apart.
    targets = targets + 0
    if generator is None:
        return targets.argsort(dim=1, descending=True, stable=True)
    keys = torch.rand(targets.shape, generator=generator, device=generator.device)
    shuffled = keys.argsort(dim=1).to(targets.device)
    order = targets.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    return shuffled.gather(1, order)
