"""Ranks of priors against their oracle, and the rows that may be priors."""

from fractions import Fraction

import pytest
import torch

from ltrp_core.errors import RequestError
from ltrp_core.selection import top_patches
from ltrp_core.selectors import (
    SELECTORS,
    Priors,
    Selector,
    SelectorOptions,
    create_selector,
    prior_names,
)
from ltrp_core.selectors.border import border_contrast
from ltrp_core.selectors.priors import normalized_ranks, with_priors
from ltrp_core.selectors.references import center_scores
from oracles import priors as oracle


def values(seed: int, length: int, distinct: int) -> torch.Tensor:
    """Random values of a few sizes, so that many are equal."""
    made = torch.Generator().manual_seed(seed)
    return torch.randint(0, distinct, (3, length), generator=made).float() / 7 - 1


@pytest.mark.parametrize(("length", "distinct"), [(1, 3), (2, 2), (9, 3), (49, 12), (49, 1000)])
def test_ranks_are_the_oracles_also_of_equals(length, distinct) -> None:
    scores = values(length, length, distinct)
    found = normalized_ranks(scores)
    assert (found.dtype, found.shape) == (torch.float64, scores.shape)
    for own, ranks in zip(scores.tolist(), found.tolist(), strict=True):
        assert ranks == [float(oracle.rank(own, place)) for place in range(length)]


@pytest.mark.parametrize(
    "weights", [{"border": 1.0}, {"border": 1.0, "center": 0.5}, {"center": 0.3}, {}]
)
def test_the_sum_orders_patches_as_exact_fractions_do(weights) -> None:
    scores = values(0, 49, 20)
    maps = {"border": values(1, 49, 9), "center": values(2, 49, 30)}
    found = with_priors(scores, maps, weights)
    exact = {name: Fraction(str(weight)) for name, weight in weights.items()}
    for row in range(len(scores)):
        of_image = {name: one[row].tolist() for name, one in maps.items()}
        expected = oracle.with_priors(scores[row].tolist(), of_image, exact)
        assert found[row].tolist() == pytest.approx([float(value) for value in expected])
        if all(weight in (0.5, 1.0) for weight in weights.values()):
            best = sorted(range(49), key=lambda i: (-expected[i], i))
            assert top_patches(found[row : row + 1], 49)[0].tolist() == best


def test_only_the_order_of_scores_and_of_priors_counts() -> None:
    scores, border = values(0, 49, 20), values(1, 49, 9)
    once = with_priors(scores, {"border": border}, {"border": 0.7})
    again = with_priors((3 * scores).exp(), {"border": border * 100 - 5}, {"border": 0.7})
    assert torch.equal(once, again)


def test_an_image_has_its_sum_whatever_stands_beside_it() -> None:
    images = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    scores = torch.randn(4, 36, generator=torch.Generator().manual_seed(2))
    priors = Priors({"border": 1.0, "patch-variance": 0.25}, center())
    whole = priors.add(scores, images, ["a", "b", "c", "d"])
    for row in range(4):
        alone = priors.add(scores[row : row + 1], images[row : row + 1], ["x"])
        assert torch.equal(alone[0], whole[row])


def center() -> Selector:
    return create_selector("center", SelectorOptions(image_size=48, patch_size=8))


def test_priors_are_of_the_selectors_own_grid() -> None:
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    scores = torch.zeros(2, 36)
    found = Priors({"border": 1.0, "center": 0.5}, center()).add(scores, images, ["a", "b"])
    maps = {"border": border_contrast(images, 8), "center": center_scores(6).expand(2, -1)}
    assert torch.equal(found, with_priors(scores, maps, {"border": 1.0, "center": 0.5}))


def test_what_may_be_a_prior_has_no_weights_and_says_where_it_hurts() -> None:
    assert prior_names() == ["center", "patch-variance", "border"]
    for name in prior_names():
        assert SELECTORS[name].weights_file is None
        assert "hurts" in SELECTORS[name].assumes


class LastPatches(Selector):
    """Has no scores."""

    def select(self, images, keys, keeps):
        return []


def test_what_cannot_be_added_is_refused() -> None:
    for weights, selector, message in (
        ({"boarder": 1.0}, center(), "did you mean border"),
        ({"ranker": 1.0}, center(), "prior 'ranker'"),
        ({"border": 1.0}, LastPatches(48, 8), "LastPatches chooses patches without scores"),
    ):
        with pytest.raises(RequestError, match=message):
            Priors(weights, selector)
    assert Priors({}, LastPatches(48, 8)).weights == {}
    with pytest.raises(RequestError, match="must be finite"):
        normalized_ranks(torch.tensor([[0.0, float("nan")]]))
    with pytest.raises(RequestError, match=r"must be \(B, L\)"):
        normalized_ranks(torch.zeros(3))
