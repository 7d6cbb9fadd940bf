"""How well scores order the patches of a list as the targets do (method: Sec. 3.3, ours).

Every metric takes lists `scores (B, n)` and `targets (B, n)`, finite, higher = matters more, and
returns one value per list, float64 (B,), that no other list of the batch influences. A list for
which a metric is undefined (the docstring says when; a list of one is constant) gives nan, never 0:
leave it out of a mean with `nanmean` and say how many there were.

Order is counted, not computed: pairs, ranks and places are exact integers. The pairs need (n, n)
numbers per list; long batches are cut into pieces of about 2.5 million pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ltrp_core.errors import RequestError
from ltrp_core.lists import check_lists

_PAIRS_AT_ONCE = 64 * 196 * 196


@torch.no_grad()
def kendall_tau_b(scores: Tensor, targets: Tensor) -> Tensor:
    """Returns Kendall's tau-b of each list, float64 (B,), from -1 to 1; ties are corrected for.

    (concordant - discordant) / sqrt(pairs untied in scores * pairs untied in targets). nan where
    the scores or the targets of a list are constant.

    Raises:
        RequestError: wrong or empty shapes, or values that are not finite.

    >>> kendall_tau_b(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 3.0, 2.0]]))
    tensor([0.3333], dtype=torch.float64)
    """
    _check(scores, targets)
    return _in_pieces(_kendall_tau_b, scores, targets)


@torch.no_grad()
def spearman_rho(scores: Tensor, targets: Tensor) -> Tensor:
    """Returns Spearman's rho of each list, float64 (B,), from -1 to 1; ties share their mean rank.

    nan where the scores or the targets of a list are constant.

    Raises:
        RequestError: wrong or empty shapes, or values that are not finite.

    >>> spearman_rho(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 3.0, 2.0]]))
    tensor([0.5000], dtype=torch.float64)
    """
    _check(scores, targets)
    return _in_pieces(_spearman_rho, scores, targets)


@torch.no_grad()
def ndcg(scores: Tensor, targets: Tensor, top: int = 5) -> Tensor:
    """Returns the normalized discounted cumulative gain of the first places, float64 (B,), 0 to 1.

    The gain of a patch is its target scaled to [0, 1] within the list (so that -PSNR, which is
    negative, works), the discount of place i = 0, 1, ... is 1 / log2(i + 2), and patches with equal
    scores share the mean discount of their places. nan where the targets of a list are constant;
    constant scores give the expectation of a random order.

    Args:
        top: places that count, >= 1; all of them where a list is shorter.

    Raises:
        RequestError: wrong or empty shapes, values that are not finite, or top < 1.

    >>> ndcg(torch.tensor([[9.0, 5.0, 1.0]]), torch.tensor([[0.3, 0.2, 0.1]]))
    tensor([1.], dtype=torch.float64)
    """
    _check(scores, targets)
    if top < 1:
        raise RequestError(f"top must be at least 1 place; got {top}. The usual one is 5.")
    return _in_pieces(lambda s, y: _ndcg(s, y, top), scores, targets)


@torch.no_grad()
def top1_agreement(scores: Tensor, targets: Tensor) -> Tensor:
    """Returns 1 where the patch with the best score has the best target, else 0, float64 (B,).

    Of equal scores the lower index is first; of equal best targets any will do. nan where the
    targets of a list are constant.

    Raises:
        RequestError: wrong or empty shapes, or values that are not finite.

    >>> top1_agreement(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[5.0, 5.0, 1.0]]))
    tensor([1.], dtype=torch.float64)
    """
    _check(scores, targets)
    first = _first_places(scores, 1)
    agrees = targets.gather(1, first).squeeze(1) == targets.amax(dim=1)
    return _nan_where_constant(agrees.double(), targets)


@torch.no_grad()
def top_k_overlap(scores: Tensor, targets: Tensor, k: int) -> Tensor:
    """Returns the share of the k best by score that are also the k best by target, float64 (B,).

    Equal values are taken by index, in both. nan where the targets of a list are constant. A random
    order has k / n in expectation.

    Args:
        k: from 1 to n.

    Raises:
        RequestError: wrong or empty shapes, values that are not finite, or k out of range.

    >>> top_k_overlap(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 2)
    tensor([0.5000], dtype=torch.float64)
    """
    _check(scores, targets)
    if not 1 <= k <= scores.shape[1]:
        raise RequestError(
            f"k must be from 1 to n = {scores.shape[1]}; got {k}. Choose fewer patches."
        )
    is_best = [
        torch.zeros_like(x, dtype=torch.bool).scatter_(1, _first_places(x, k), True)
        for x in (scores, targets)
    ]
    return _nan_where_constant((is_best[0] & is_best[1]).sum(dim=1).double() / k, targets)


def _kendall_tau_b(scores: Tensor, targets: Tensor) -> Tensor:
    """Returns tau-b; every pair is counted twice, above and below the line of the fraction."""
    a, b = _pair_signs(scores), _pair_signs(targets)
    return _ratio((a * b).sum(dim=(1, 2)), (a != 0).sum(dim=(1, 2)), (b != 0).sum(dim=(1, 2)))


def _spearman_rho(scores: Tensor, targets: Tensor) -> Tensor:
    """Returns rho: patches below less patches above is twice the centered rank, an integer."""
    a, b = _pair_signs(scores).sum(dim=2), _pair_signs(targets).sum(dim=2)
    return _ratio((a * b).sum(dim=1), a.square().sum(dim=1), b.square().sum(dim=1))


def _ndcg(scores: Tensor, targets: Tensor, top: int) -> Tensor:
    """Returns the discounted gain over the best possible one, 0 / 0 = nan for constant targets."""
    low, high = targets.double().aminmax(dim=1, keepdim=True)
    gains = (targets.double() - low) / torch.where(high > low, high - low, 1.0)
    places = torch.arange(scores.shape[1], device=scores.device, dtype=torch.float64)
    discounts = torch.where(places < top, 1 / torch.log2(places + 2), 0.0)
    summed = torch.cat([discounts.new_zeros(1), discounts.cumsum(0)])

    signs = _pair_signs(scores)
    num_above, num_equal = (signs < 0).sum(dim=2), (signs == 0).sum(dim=2)
    shared = (summed[num_above + num_equal] - summed[num_above]) / num_equal
    best = (gains.sort(dim=1, descending=True).values * discounts).sum(dim=1)
    return ((gains * shared).sum(dim=1) / best).clamp(max=1.0)


def _pair_signs(x: Tensor) -> Tensor:
    """Returns the sign of x_i - x_j, int8 (B, n, n), by comparing: a difference may overflow."""
    left, right = x.unsqueeze(2), x.unsqueeze(1)
    return (left > right).to(torch.int8) - (left < right).to(torch.int8)


def _ratio(joint: Tensor, of_scores: Tensor, of_targets: Tensor) -> Tensor:
    """Returns joint / sqrt(of_scores * of_targets), float64 (B,), from integers; 0 / 0 = nan."""
    return (joint.double() / (of_scores.double() * of_targets.double()).sqrt()).clamp(-1.0, 1.0)


def _first_places(x: Tensor, count: int) -> Tensor:
    """Returns the `count` best (B, count), value descending, then index ascending."""
    # Adding 0 turns -0.0 into 0.0, which a radix sort could otherwise tell apart.
    return (x + 0).argsort(dim=1, descending=True, stable=True)[:, :count]


def _nan_where_constant(values: Tensor, targets: Tensor) -> Tensor:
    low, high = targets.aminmax(dim=1)
    return values.masked_fill(low == high, torch.nan)


def _in_pieces(metric: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Returns `metric` of all lists, a bounded number of pairs at a time."""
    lists = max(1, _PAIRS_AT_ONCE // a.shape[1] ** 2)
    return torch.cat([metric(*piece) for piece in zip(a.split(lists), b.split(lists), strict=True)])


def _check(scores: Tensor, targets: Tensor) -> None:
    """Raises RequestError unless both hold finite lists of one shape on one device."""
    check_lists(scores, targets)
    for name, x in (("scores", scores), ("targets", targets)):
        if not bool(x.isfinite().all()):
            raise RequestError(
                f"{name} must be finite; found nan or inf. Check what produced them."
            )
