"""How flat an order is, against its definition."""

import numpy as np
import pytest

from ltrp_core.errors import RequestError
from ltrp_core.plateaus import map_with_noise, plateaus
from oracles.plateaus import noisy_map, plateaus_of

LENGTH = 12


@pytest.fixture
def scored():
    """Three images of 12 patches, 4 a partition, each patch in four partitions."""
    rng = np.random.default_rng(0)
    visible = np.stack(
        [
            np.concatenate([rng.permutation(LENGTH).reshape(3, 4) for _ in range(4)])
            for _ in range(3)
        ]
    )
    return visible, rng.gamma(2.0, size=visible.shape) + 100.0


def test_maps_and_plateaus_are_those_of_the_definition(scored):
    mean, error = map_with_noise(*scored, LENGTH)
    for bins in (1, 3, 4, 11):
        found = plateaus(mean, error, bins)
        for image, (visible, score) in enumerate(zip(*scored)):
            means, errors = noisy_map(visible, score, LENGTH)
            np.testing.assert_allclose(mean[image], means, rtol=1e-12)
            np.testing.assert_allclose(error[image], errors, rtol=1e-9)
            expected = np.array(plateaus_of(means, errors, bins))
            ours = np.stack([found.flat[image], found.width[image], found.score[image]], axis=1)
            np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_a_patch_scored_once_has_no_known_noise():
    mean, error = map_with_noise(
        np.array([[[0, 1], [1, 2]]]), np.array([[[1.0, 2.0], [4.0, 5.0]]]), 3
    )
    assert mean[0].tolist() == [1, 3, 5]
    assert np.isnan(error[0]).tolist() == [True, False, True]
    with pytest.raises(RequestError, match="score every patch at least twice"):
        plateaus(mean, error, 2)


@pytest.mark.parametrize("bins", [0, LENGTH])
def test_bins_out_of_range_are_refused(scored, bins):
    with pytest.raises(RequestError, match="bins must be from 1 to L - 1 = 11"):
        plateaus(*map_with_noise(*scored, LENGTH), bins)
