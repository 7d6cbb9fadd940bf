"""How scores are summed up for the report: nothing is lost, ties are counted, odd input is fine."""

import numpy as np
import pytest

from pipeline.report.cache_figures import score_figures


def test_every_score_is_in_the_histogram_also_the_few_far_out() -> None:
    random = np.random.default_rng(0)
    units = [random.lognormal(-3, 1, (50, 4, 19)).astype(np.float16) for _ in range(3)]
    units[0][0, 0, 0] = 60_000
    found = score_figures("pseudo-score", units)
    assert found is not None
    assert found.counts.sum() == found.num_scores == 3 * 50 * 4 * 19
    assert found.is_log
    values = np.concatenate([unit.ravel() for unit in units]).astype(float)
    assert found.quartiles == tuple(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
    assert found.edges[-1] < 60_000


def test_equal_neighbors_are_counted_in_the_order_of_each_record() -> None:
    records = np.array([[3.0, 1.0, 3.0, 2.0], [1.0, 1.0, 1.0, 0.0]], np.float32)
    found = score_figures("ranker score", [records])
    assert found is not None
    assert found.equal == pytest.approx(3 / 6)
    assert not found.is_log


@pytest.mark.parametrize("value", [0.0, -1.0, 2.5])
def test_scores_that_are_all_the_same_have_a_histogram(value) -> None:
    found = score_figures("ranker score", [np.full((2, 5), value, np.float32)])
    assert found is not None
    assert found.counts.sum() == 10
    assert (np.diff(found.edges) > 0).all()


def test_no_scores_have_none() -> None:
    assert score_figures("pseudo-score", [np.zeros((0, 1, 1, 19), np.float16)]) is None
