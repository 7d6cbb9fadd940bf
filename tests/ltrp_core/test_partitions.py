import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltrp_core.errors import RequestError
from ltrp_core.partitions import SAMPLERS, cover_count, num_visible, sample_visible

GOLDEN_IID = [4, 19, 31, 44, 77, 84, 110, 157, 163]
GOLDEN_COVER = [8, 21, 26, 45, 70, 114, 131, 136, 171]

lengths = st.integers(4, 300)
ratios = st.floats(0.3, 0.9)
keys = st.text(max_size=20)
seeds = st.integers(0, 2**63 - 1)
samplers = st.sampled_from(SAMPLERS)


@pytest.mark.parametrize(
    ("length", "ratio", "n"),
    [
        (196, 0.95, 9),
        (196, 0.9, 19),
        (196, 0.8, 39),
        (196, 0.75, 49),
        (196, 0.7, 58),
        (100, 0.9, 10),
        (10, 0.7, 3),
    ],
)
def test_number_of_visible_patches_survives_floating_point(length, ratio, n):
    assert num_visible(length, ratio) == n


@given(keys, st.integers(0, 50), st.integers(1, 12), lengths, ratios, seeds, samplers)
def test_partitions_are_distinct_ascending_and_of_n(key, view, count, length, ratio, seed, sampler):
    n = int(np.floor(length * (1 - ratio) + 1e-9))
    if n < 1:
        return
    rows = sample_visible(key, view, count, length, ratio, seed, sampler)
    assert rows.shape == (count, n)
    assert rows.dtype == np.int64
    assert rows.min() >= 0
    assert rows.max() < length
    assert (np.diff(rows, axis=1) > 0).all()


@given(keys, st.integers(0, 50), lengths, ratios, seeds)
def test_cover_shows_every_patch_in_every_round(key, view, length, ratio, seed):
    if length * (1 - ratio) < 1.1:
        return
    count = cover_count(length, ratio)
    rows = sample_visible(key, view, 3 * count, length, ratio, seed, "cover")
    for start in (0, count, 2 * count):
        assert set(rows[start : start + count].ravel().tolist()) == set(range(length))


@given(keys, st.integers(0, 5), seeds, samplers, st.integers(1, 15))
def test_a_partition_does_not_depend_on_how_many_are_asked_for(key, view, seed, sampler, count):
    many = sample_visible(key, view, 15, 49, 0.8, seed, sampler)
    assert np.array_equal(sample_visible(key, view, count, 49, 0.8, seed, sampler), many[:count])


def test_partitions_differ_between_keys_views_and_seeds():
    base = sample_visible("a", 0, 5, 196, 0.9, 0)
    for other in (
        sample_visible("b", 0, 5, 196, 0.9, 0),
        sample_visible("a", 1, 5, 196, 0.9, 0),
        sample_visible("a", 0, 5, 196, 0.9, 1),
    ):
        assert not (base == other).all(axis=1).any()


def test_partitions_are_the_same_in_every_release():
    """Golden: a change here orphans every cache that anyone has."""
    assert sample_visible("cat", 0, 1, 196, 0.95, 0).tolist() == [GOLDEN_IID]
    assert sample_visible("cat", 3, 1, 196, 0.95, 7, "cover").tolist() == [GOLDEN_COVER]


def test_iid_shows_every_patch_equally_often():
    rows = sample_visible("k", 0, 4000, 49, 0.8, 0)
    shares = np.bincount(rows.ravel(), minlength=49) / 4000
    expected = 9 / 49
    # Binomial: five standard deviations over 49 patches.
    assert np.abs(shares - expected).max() < 5 * np.sqrt(expected * (1 - expected) / 4000)


@pytest.mark.parametrize("ratio", [1.0, 0.999, 0.0, -0.5, float("nan"), float("inf")])
def test_a_ratio_without_visible_or_masked_patch_is_refused(ratio):
    with pytest.raises(RequestError, match=r"mask ratio .* leaves no"):
        sample_visible("k", 0, 1, 196, ratio, 0)


def test_an_unknown_sampler_is_named():
    with pytest.raises(RequestError, match="unknown sampler 'covr'; did you mean cover"):
        sample_visible("k", 0, 1, 196, 0.9, 0, "covr")
