"""Learning-to-rank losses between ranker scores and pseudo-scores (Sec. 3.3, Eq. 3, Tab. 1f).

Every loss takes lists `scores (B, n)` and `targets (B, n)`, higher = matters more, and returns the
mean over the B lists: a scalar >= 0. All compute in float32 (float64 where the scores are float64;
half precision is upcast), so they may stand inside an autocast region. Values and gradients are
finite for scores up to 1e4 in size and as exact as the rounding of such scores allows: 1e-3 of a
gradient. Only the order or the standardized values of the targets count, so the unit of the
pseudo-scores (l1, -PSNR, 1-SSIM) does not; ranknet's `tie` alone is in that unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ltrp_core.errors import RequestError, unknown_name
from ltrp_core.lists import check_lists


def listmle(scores: Tensor, targets: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Returns the mean over lists of -log P(the order of `targets` | `scores`), a scalar: Eq. (3).

    Method: with pi = order of the targets, descending, a list costs
    `sum_i [logsumexp_{k >= i} s_pi(k) - s_pi(i)]`, summed over the list, not averaged.

    Args:
        scores: (B, n), not checked for nan or inf.
        targets: (B, n), finite, on the device of `scores`.
        generator: breaks ties of the targets at random; it may be on another device. None: the
            lower index comes first.

    Raises:
        RequestError: wrong or empty shapes, or targets that are not finite.

    >>> loss = listmle(torch.zeros(2, 3), torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]]))
    >>> round(loss.exp().item(), 4)  # each of the 3! orders is as likely
    6.0
    """
    scores, targets = _prepare(scores, targets)
    # The loss does not change with a shift of the list; without it, scores that drift far from 0
    # would cost the digits of their differences. Last place first: the sums run from the end.
    scores = scores - scores.detach().amax(dim=1, keepdim=True)
    reversed_scores = scores.gather(1, _descending(targets, generator).flip(1))
    return (reversed_scores.logcumsumexp(dim=1) - reversed_scores).sum(dim=1).mean()


def listnet(scores: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Returns the mean over lists of the cross-entropy of top-one probabilities, a scalar: Tab. 1f.

    Method: `-sum_i softmax(y / t)_i log_softmax(s)_i` with y standardized per list (mean 0,
    standard deviation 1; a constant list becomes zeros). Standardizing is ours: raw l1
    pseudo-scores are so close together that their softmax is nearly uniform.

    Args:
        scores: (B, n), not checked for nan or inf.
        targets: (B, n), finite, on the device of `scores`.
        temperature: t > 0; lower puts more weight on the best patches.

    Raises:
        RequestError: wrong or empty shapes, targets that are not finite, or t not above 0.

    >>> loss = listnet(torch.zeros(1, 4), torch.tensor([[4.0, 1.0, 2.0, 3.0]]))
    >>> round(loss.exp().item(), 4)
    4.0
    """
    _check_positive("temperature", temperature)
    scores, targets = _prepare(scores, targets)
    probabilities = (_standardized(targets).to(scores.dtype) / temperature).softmax(dim=1)
    return -(probabilities * scores.log_softmax(dim=1)).sum(dim=1).mean()


def ranknet(scores: Tensor, targets: Tensor, *, sigma: float = 1.0, tie: float = 0.0) -> Tensor:
    """Returns the mean over lists of the mean logistic loss of their ordered pairs: Tab. 1f.

    Method: the mean of `softplus(-sigma (s_i - s_j))` over the pairs with `y_i - y_j > tie`. A list
    without such a pair counts as 0. Memory: a few (B, n, n) tensors.

    Args:
        scores: (B, n), not checked for nan or inf.
        targets: (B, n), finite, on the device of `scores`.
        sigma: steepness, > 0.
        tie: pairs whose targets differ by at most this, in units of the targets, say nothing; >= 0.

    Raises:
        RequestError: wrong or empty shapes, targets that are not finite, sigma or tie out of range.

    >>> ranknet(torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[2.0, 1.0, 1.0]]), tie=1.0)
    tensor(0.)
    """
    _check_positive("sigma", sigma)
    if not (math.isfinite(tie) and tie >= 0):
        raise RequestError(f"tie must be a difference of targets >= 0; got {tie}. Use 0 for none.")
    scores, targets = _prepare(scores, targets)
    is_ordered = targets.unsqueeze(2) - targets.unsqueeze(1) > tie
    # -logsigmoid rather than softplus, which torch cuts off to a straight line above 20.
    pair_loss = -F.logsigmoid(sigma * (scores.unsqueeze(2) - scores.unsqueeze(1)))
    total = torch.where(is_ordered, pair_loss, 0.0).sum(dim=(1, 2))
    return (total / is_ordered.sum(dim=(1, 2)).clamp_min(1)).mean()


def regression(scores: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean squared error to the targets standardized per list, a scalar: Tab. 1f.

    Standardizing (mean 0, standard deviation 1; a constant list becomes zeros) is ours.

    Args:
        scores: (B, n), not checked for nan or inf.
        targets: (B, n), finite, on the device of `scores`.

    Raises:
        RequestError: wrong or empty shapes, or targets that are not finite.

    >>> regression(torch.tensor([[-1.0, 1.0]]), torch.tensor([[0.02, 0.04]]))
    tensor(0.)
    """
    scores, targets = _prepare(scores, targets)
    return (scores - _standardized(targets).to(scores.dtype)).square().mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "listmle": listmle,
    "listnet": listnet,
    "ranknet": ranknet,
    "regression": regression,
}


def loss_by_name(name: str) -> Callable[..., Tensor]:
    """Returns the loss called `name` in `LOSSES`.

    Raises:
        RequestError: there is none; the message lists the nearest names.
    """
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    return LOSSES[name]


def _prepare(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both, checked, in float32 or better; targets without gradient."""
    check_lists(scores, targets)
    if not bool(targets.isfinite().all()):
        raise RequestError(
            "targets must be finite; found nan or inf. Check the cache they were read from."
        )
    return _at_least_float32(scores), _at_least_float32(targets.detach())


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


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


def _standardized(targets: Tensor) -> Tensor:
    """Returns the targets (B, n) with mean 0 and standard deviation 1 per list, or zeros."""
    # To [0, 1] first: a constant list then gives exact zeros, and squares cannot underflow.
    spread = targets - targets.amin(dim=1, keepdim=True)
    largest = spread.amax(dim=1, keepdim=True)
    unit = spread / torch.where(largest > 0, largest, 1.0)
    centered = unit - unit.mean(dim=1, keepdim=True)
    deviation = centered.square().mean(dim=1, keepdim=True).sqrt()
    return centered / torch.where(deviation > 0, deviation, 1.0)


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise RequestError(f"{name} must be a finite number above 0; got {value}. Try 1.0.")
