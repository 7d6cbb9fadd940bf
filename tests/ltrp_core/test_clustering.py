"""DPC-KNN: equal to the formulas, and the same bits whatever the run, batch or device."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from torch import Tensor

from ltrp_core import clustering
from ltrp_core.clustering import _log, dpc_knn, find_clusters
from ltrp_core.errors import RequestError
from oracles import clustering as oracle

GRID = 2.0**-13
"""The step of an image whose largest value is from 2 to 4."""


def _grid_points(count: int, length: int, channels: int, seed: int, levels: int = 2**15) -> Tensor:
    """Returns int64 points (count, length, channels) within +-levels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-levels, levels, (count, length, channels), generator=generator)


def _photo_patches() -> Tensor:
    """Returns raw normalized pixels of real photographs: (14, 196, 768)."""
    crops = []
    for photo in (data.astronaut(), data.chelsea()):
        pixels = torch.tensor(photo).permute(2, 0, 1).float() / 255
        height, width = pixels.shape[1:]
        rows, columns = range(0, height - 223, 96), range(0, width - 223, 56)
        crops += [pixels[:, r : r + 224, c : c + 224] for r, c in itertools.product(rows, columns)]
    images = torch.stack(crops[:: len(crops) // 14][:14])
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    images = (images - mean) / std
    grid = images.unfold(2, 16, 16).unfold(3, 16, 16)
    return grid.permute(0, 2, 3, 4, 5, 1).reshape(len(images), 196, 768)


def _unrounded_dpc_knn(points: Tensor, clusters: int, neighbors: int = 5) -> tuple[Tensor, Tensor]:
    """Returns DPC-KNN of one image (L, C) in plain float64, its points not rounded."""
    distance = torch.stack([(points - p).norm(dim=1) for p in points]) / points.shape[1] ** 0.5
    rho = (-distance.square().sort(dim=1).values[:, :neighbors].mean(dim=1)).exp()
    index = torch.arange(len(points))
    is_equal_and_first = (rho.unsqueeze(0) == rho.unsqueeze(1)) & (index < index.unsqueeze(1))
    denser = (rho.unsqueeze(0) > rho.unsqueeze(1)) | is_equal_and_first
    delta = torch.where(denser, distance, distance.max()).amin(dim=1)
    centers = (rho * delta).argsort(descending=True, stable=True)[:clusters]
    assignment = distance[:, centers].argmin(dim=1)
    assignment[centers] = torch.arange(clusters)
    return assignment, centers


def _assert_matches_oracle(integers: Tensor, unit: float, clusters: int, neighbors: int) -> None:
    assignment, centers = dpc_knn(integers.double() * unit, clusters, neighbors)
    for image, found in enumerate(zip(assignment.tolist(), centers.tolist(), strict=True)):
        expected = oracle.dpc_knn(integers[image].tolist(), Decimal(unit), clusters, neighbors)
        assert found == expected


@pytest.mark.parametrize(
    ("length", "channels", "clusters", "neighbors"),
    [(1, 1, 1, 1), (5, 3, 5, 5), (16, 12, 4, 5), (25, 1, 7, 3), (49, 48, 34, 5), (64, 3, 1, 64)],
)
def test_clusters_of_random_points_are_those_of_the_formulas(
    length: int, channels: int, clusters: int, neighbors: int
) -> None:
    _assert_matches_oracle(_grid_points(3, length, channels, length), GRID, clusters, neighbors)


def test_clusters_are_those_of_the_formulas_at_the_size_of_a_grid_of_14() -> None:
    _assert_matches_oracle(_grid_points(1, 196, 12, seed=3), GRID, 137, 5)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_duplicates_and_equal_distances_are_ordered_by_index(levels: int) -> None:
    integers = _grid_points(4, 30, 2, seed=levels, levels=levels)
    for clusters in (1, 6, 20, 30):
        _assert_matches_oracle(integers, 0.5, clusters, 5)


def test_densities_that_underflow_still_order_the_centers_as_the_formulas_do() -> None:
    _assert_matches_oracle(_grid_points(2, 20, 4, seed=1), 2.0**-9, 8, 5)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(2.0**-60, 2.0**60))
def test_the_portable_logarithm_is_within_a_few_ulp(x: float) -> None:
    found = float(_log(torch.tensor([x], dtype=torch.float64)))
    assert found == pytest.approx(math.log(x), rel=4e-16, abs=4e-16)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_clusters_of_small_integer_points_are_those_of_the_formulas(draws: st.DataObject) -> None:
    length = draws.draw(st.integers(1, 14))
    row = st.lists(st.integers(-9, 9), min_size=2, max_size=2)
    integers = torch.tensor([draws.draw(st.lists(row, min_size=length, max_size=length))])
    clusters, neighbors = draws.draw(st.integers(1, length)), draws.draw(st.integers(1, length))
    _assert_matches_oracle(integers, 0.25, clusters, neighbors)


def test_in_a_constant_image_the_first_patches_are_centers_and_the_first_takes_all_others() -> None:
    for value in (0.0, -2.1179):
        assignment, centers = dpc_knn(torch.full((1, 9, 6), value), 4)
        assert centers.tolist() == [[0, 1, 2, 3]]
        assert assignment.tolist() == [[0, 1, 2, 3, 0, 0, 0, 0, 0]]


def test_every_center_is_in_its_own_cluster_and_centers_are_distinct() -> None:
    integers = _grid_points(4, 40, 2, seed=5, levels=3)
    for clusters in range(1, 41):
        assignment, centers = dpc_knn(integers.float(), clusters)
        assert assignment.dtype == centers.dtype == torch.int64
        own = torch.arange(clusters).expand(4, -1)
        assert torch.equal(assignment.gather(1, centers), own)
        assert bool((centers.sort(dim=1).values.diff(dim=1) > 0).all())


def test_distance_to_the_center_is_the_root_mean_square_difference() -> None:
    points = _grid_points(2, 30, 7, seed=8).double() * GRID
    found = find_clusters(points, 6)
    own = found.centers.gather(1, found.assignment)
    for image, patch in itertools.product(range(2), range(30)):
        expected = (points[image, patch] - points[image, own[image, patch]]).square().mean()
        torch.testing.assert_close(found.squared_distance[image, patch], expected)


def test_a_batch_gives_the_bits_of_one_by_one_and_of_another_run() -> None:
    points = torch.randn(8, 196, 768, generator=torch.Generator().manual_seed(0))
    points[3] = points[2]
    points[4, 100:] = points[4, :96]
    batch = find_clusters(points, 137)
    for again in (
        find_clusters(points, 137),
        [torch.cat(f) for f in zip(*(find_clusters(p[None], 137) for p in points), strict=True)],
        [f.flip(0) for f in find_clusters(points.flip(0), 137)],
    ):
        for field, other in zip(batch, again, strict=True):
            assert torch.equal(field, other)


@pytest.mark.parametrize("length", [1, 6, 7, 20])
def test_distances_made_block_by_block_are_those_made_at_once(length, monkeypatch) -> None:
    points = torch.randn(3, length, 9, generator=torch.Generator().manual_seed(length))
    at_once = clustering.find_clusters(points, max(1, length // 2), min(length, 5))
    monkeypatch.setattr(clustering, "_BLOCK", 6)
    by_block = clustering.find_clusters(points, max(1, length // 2), min(length, 5))
    assert all(torch.equal(a, b) for a, b in zip(at_once, by_block, strict=True))


def test_the_order_of_the_values_of_a_patch_and_the_threads_change_nothing() -> None:
    points = torch.randn(2, 196, 768, generator=torch.Generator().manual_seed(1))
    shuffled = points[:, :, torch.randperm(768, generator=torch.Generator().manual_seed(2))]
    expected = find_clusters(points, 98)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        found = find_clusters(shuffled, 98)
    finally:
        torch.set_num_threads(threads)
    for field, other in zip(expected, found, strict=True):
        assert torch.equal(field, other)


def test_autocast_and_gradients_change_nothing() -> None:
    points = torch.randn(2, 49, 48, generator=torch.Generator().manual_seed(4))
    expected = dpc_knn(points, 20)
    with torch.autocast("cpu", torch.bfloat16):
        found = dpc_knn(points.clone().requires_grad_(), 20)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_bits_of_the_cpu() -> None:
    points = torch.randn(8, 196, 768, generator=torch.Generator().manual_seed(0))
    for field, other in zip(
        find_clusters(points, 137), find_clusters(points.cuda(), 137), strict=True
    ):
        assert torch.equal(field, other.cpu())


def test_a_grid_of_32_and_an_empty_batch_work() -> None:
    integers = _grid_points(2, 1024, 48, seed=6)
    assignment, centers = dpc_knn(integers.float() * GRID, 512)
    assert assignment.shape == (2, 1024)
    assert assignment.unique().tolist() == list(range(512))
    assignment, centers = dpc_knn(torch.zeros(0, 9, 4), 3)
    assert (assignment.shape, centers.shape) == ((0, 9), (0, 3))


def test_rounding_to_the_grid_hardly_ever_changes_a_photograph() -> None:
    shares = []
    for keep in (49, 98, 137):
        assignment, centers = dpc_knn(_photo_patches(), keep)
        for image, points in enumerate(_photo_patches().double()):
            plain_assignment, plain_centers = _unrounded_dpc_knn(points, keep)
            own = centers[image][assignment[image]]
            shares.append(float((own == plain_centers[plain_assignment]).double().mean()))
    # All are equal on these photographs; 0.99 leaves room for the rounding of the plain version.
    assert sum(shares) / len(shares) > 0.99


@pytest.mark.parametrize(
    ("points", "clusters", "neighbors", "message"),
    [
        (torch.zeros(9, 4), 3, 5, "points must be"),
        (torch.zeros(1, 9, 4, dtype=torch.uint8), 3, 5, "floating"),
        (torch.zeros(1, 9, 0), 3, 5, "points must be"),
        (torch.zeros(1, 9, 4), 0, 5, "clusters must be from 1 to L = 9; got 0"),
        (torch.zeros(1, 9, 4), 10, 5, "clusters must be from 1 to L = 9; got 10"),
        (torch.zeros(1, 9, 4), 3, 0, "neighbors must be from 1 to L = 9; got 0"),
        (torch.zeros(1, 9, 4), 3, 10, "neighbors must be from 1 to L = 9; got 10"),
        (torch.zeros(1, 9, 2**20), 3, 9, "exact sums"),
        (torch.full((1, 9, 4), float("nan")), 3, 5, "finite"),
        (torch.tensor([[[1.0], [float("-inf")]]]), 1, 1, "finite"),
        (torch.full((1, 9, 4), 1e100, dtype=torch.float64), 3, 5, "below"),
    ],
)
def test_wrong_arguments_are_refused(
    points: Tensor, clusters: int, neighbors: int, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        dpc_knn(points, clusters, neighbors)
