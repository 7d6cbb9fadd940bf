"""What another package selects is checked; units are read as seldom as they can be."""

import numpy as np
import pytest
import torch

from ltrp_core.errors import RequestError
from ltrp_core.selectors import Priors, Selector, base
from stages.recent_units import RecentUnits
from stages.select_patches import SelectConfig
from stages.selectors import check_choices, choose


class Chooses(Selector):
    """Keeps what it is told to."""

    def __init__(self, kept):
        super().__init__(16, 8)
        self.kept = kept

    def select(self, images, keys, keeps):
        return self.kept


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([], "gives 0 choices for 1 k"),
        ([[[0, 1, 2]]], r"int64 \(1, 3\) for int64 \(1, 2\)"),
        ([[[0.0, 1.0]]], r"gives float32"),
        ([[[1, 1]]], "keeps a patch twice"),
        ([[[0, 4]]], "not of the 4"),
        ([[[-1, 0]]], "not of the 4"),
    ],
)
def test_what_is_no_choice_is_refused(kept, message) -> None:
    selector = Chooses([torch.tensor(one) for one in kept])
    images, none = torch.zeros(1, 3, 16, 16), Priors({}, selector)
    found, scores, plain = choose(selector, images, ["a"], [2], [None], none)
    assert scores is plain is None
    with pytest.raises(RequestError, match=f"selector Chooses .*{message}"):
        check_choices(selector, [one.numpy() for one in found], 1, [2])


def test_a_choice_in_any_order_is_taken() -> None:
    check_choices(Chooses([]), [np.array([[3, 0]])], 1, [2])


def test_a_broken_package_does_not_keep_others_from_their_baselines(monkeypatch) -> None:
    from importlib.metadata import EntryPoint

    broken = [EntryPoint("broken", "no_such_package:SPEC", base.ENTRY_POINTS)]
    monkeypatch.setattr(base, "entry_points", lambda group: broken)
    assert SelectConfig(baseline="center").method == "center"
    with pytest.raises(RequestError, match="cannot be imported"):
        SelectConfig(selector="broken")


def test_units_that_come_round_again_are_read_once_until_they_are_too_many() -> None:
    read = []

    def unit(name):
        read.append(name)
        return {"key": np.full(100, len(read), np.int64)}

    recent = RecentUnits(unit, limit_bytes=2 * 800)
    assert [recent[name]["key"][0] for name in "ababab"] == [1, 2, 1, 2, 1, 2]
    assert read == ["a", "b"]
    assert recent["c"]["key"][0] == 3
    # The one that was not asked for longest is gone, and is read anew as it is then.
    assert (recent["b"]["key"][0], recent["a"]["key"][0]) == (2, 4)
    assert read == ["a", "b", "c", "a"]
    alone = RecentUnits(unit, limit_bytes=1)
    assert alone["x"]["key"][0] == alone["x"]["key"][0]
