"""The contract of selectors, over every row of the table."""

from importlib.metadata import EntryPoint

import pytest
import torch

from ltrp_core.errors import RequestError
from ltrp_core.selection import num_kept
from ltrp_core.selectors import (
    SELECTORS,
    ScoreSelector,
    Selector,
    SelectorOptions,
    SelectorSpec,
    base,
    create_selector,
    selector_names,
    selector_spec,
)

OPTIONS = SelectorOptions(image_size=48, patch_size=8)
KEYS = ["a", "b", "c"]


WEIGHTS = {"ranker": "ranker_tiny", "border-features": "mae_tiny"}
LARGE = [name for name, spec in SELECTORS.items() if spec.weights_file and name not in WEIGHTS]
"""Networks of full size, whose small ones test_methods.py asks more."""


def make(name: str) -> Selector:
    if name in WEIGHTS:
        return create_selector(name, weights=WEIGHTS[name])
    return create_selector(name, OPTIONS)


@pytest.mark.parametrize("name", [name for name in SELECTORS if name not in LARGE])
def test_every_selector_keeps_k_distinct_patches_and_looks_at_one_image_at_a_time(name) -> None:
    selector = make(name)
    side = selector.image_size
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    keeps = [num_kept(ratio, selector.grid**2) for ratio in (0.1, 0.5)]
    both = selector.select(images, KEYS, keeps)
    for kept, keep in zip(both, keeps, strict=True):
        assert (kept.shape, kept.dtype) == ((3, keep), torch.int64)
        assert all(len(set(row)) == keep for row in kept.tolist())
        assert 0 <= int(kept.min()) <= int(kept.max()) < selector.grid**2
    for row, key in enumerate(KEYS):
        alone = selector.select(images[row : row + 1], [key], keeps)
        for kept, own in zip(both, alone, strict=True):
            assert kept[row].tolist() == own[0].tolist()
    if isinstance(selector, ScoreSelector):
        again = selector.keep(selector.scores(images, KEYS), images, keeps)
        assert [kept.tolist() for kept in again] == [kept.tolist() for kept in both]


@pytest.mark.parametrize("name", LARGE)
def test_a_method_with_a_network_takes_the_papers_views_and_keeps_by_score_alone(name) -> None:
    selector = create_selector(name, weights="random", grid=14, patch_size=16, seed=3)
    assert (selector.grid, selector.image_size) == (14, 224)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    few, every = selector.select(images, ["a"], [49, 196])
    assert len(set(few[0].tolist())) == 49
    assert sorted(every[0].tolist()) == list(range(196))
    assert isinstance(selector, ScoreSelector) == selector_spec(name).has_scores
    if isinstance(selector, ScoreSelector):
        assert selector.homogeneous == 0.0
        best = selector.scores(images, ["a"]).argsort(dim=1, descending=True, stable=True)
        assert torch.equal(few, best[:, :49])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("centre", {}, "did you mean center"),
        ("center", {"weights": "x"}, "has no weights"),
        ("ranker", {}, "needs weights"),
        ("center", {"image_size": 50}, "does not divide into patches of 16"),
        ("ranker", {"weights": "ranker_tiny", "patch_size": 8}, "has patches of 16 px"),
        ("border-features", {"weights": "mae_tiny", "image_size": 96}, "--image-size is 96, and"),
        ("border-features", {}, "needs weights"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, message) -> None:
    with pytest.raises(RequestError, match=message):
        create_selector(name, SelectorOptions(**options))


class LastPatches(Selector):
    """Has no scores: what it keeps depends on k alone."""

    def select(self, images, keys, keeps):
        length = self.grid**2
        return [torch.arange(length - k, length).expand(len(keys), -1) for k in keeps]


SPEC = SelectorSpec(make=lambda options: LastPatches(options.image_size, 8), help="the last ones")
NO_SPEC = LastPatches


def entry_points(monkeypatch, **values) -> None:
    found = [EntryPoint(name, value, base.ENTRY_POINTS) for name, value in values.items()]
    monkeypatch.setattr(base, "entry_points", lambda group: found if group else [])


def test_a_selector_of_another_package_is_found_by_its_entry_point(monkeypatch) -> None:
    # Importable under a name of its own, as an installed package is.
    import sys

    monkeypatch.setitem(sys.modules, "another_package", sys.modules[__name__])
    entry_points(monkeypatch, last="another_package:SPEC", wrong="another_package:NO_SPEC",
                 gone="no_such_package:SPEC", center="another_package:SPEC")  # fmt: skip
    assert selector_names() == [*SELECTORS, "gone", "last", "wrong"]
    kept = create_selector("last", OPTIONS).select(torch.zeros(1, 3, 48, 48), ["a"], [2])
    assert kept[0].tolist() == [[34, 35]]
    assert selector_spec("center") is SELECTORS["center"], "the package's own names stay its own"
    with pytest.raises(RequestError, match="must name a SelectorSpec"):
        selector_spec("wrong")
    with pytest.raises(RequestError, match=r"cannot be imported .*no_such_package"):
        selector_spec("gone")
