"""Selection: exactly k distinct patches for every k and share, those that the paper's text says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltrp_core.clustering import dpc_knn
from ltrp_core.errors import RequestError
from ltrp_core.selection import num_kept, select_patches, top_patches
from oracles import selection as oracle

SHARES = [i / 10 for i in range(11)]


def _case(count: int, length: int, channels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns scores with ties (count, length) and integer patches with duplicates."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, max(2, length // 2), (count, length), generator=generator).float()
    integers = torch.randint(-6, 7, (count, length, channels), generator=generator)
    integers[:, length // 2 :] = integers[:, length // 2, None]
    return scores, integers


def _assert_exactly_k(selected: Tensor, scores: Tensor, keep: int, homogeneous: float) -> None:
    assert selected.shape == (len(scores), keep)
    assert selected.dtype == torch.int64
    assert bool((selected.sort(dim=1).values.diff(dim=1) > 0).all())
    assert 0 <= int(selected.min()) <= int(selected.max()) < scores.shape[1]
    num_best = keep - int(homogeneous * keep + 0.5)
    if num_best > 0:
        assert torch.equal(selected[:, :num_best], top_patches(scores, num_best))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9, 16, 25])
def test_select_keeps_exactly_k_distinct_patches_for_every_k_and_share(length: int) -> None:
    scores, integers = _case(2, length, 3, length)
    for keep in range(1, length + 1):
        for share in SHARES:
            selected = select_patches(scores, keep, patches=integers.float(), homogeneous=share)
            _assert_exactly_k(selected, scores, keep, share)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(keep=st.integers(1, 196), share=st.sampled_from(SHARES), seed=st.integers(0, 999))
def test_select_keeps_exactly_k_distinct_patches_of_196(keep: int, share: float, seed: int) -> None:
    scores, integers = _case(2, 196, 4, seed)
    selected = select_patches(scores, keep, patches=integers.float(), homogeneous=share)
    _assert_exactly_k(selected, scores, keep, share)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    length=st.integers(1, 30),
    share=st.floats(0, 1),
    seed=st.integers(0, 999),
    fraction=st.floats(0, 1),
)
def test_selection_is_the_one_that_sets_and_loops_find(
    length: int, share: float, seed: int, fraction: float
) -> None:
    keep = 1 + int(fraction * (length - 1))
    scores, integers = _case(3, length, 2, seed)
    selected = select_patches(scores, keep, patches=integers.double(), homogeneous=share)
    assignment, centers = dpc_knn(integers.double(), keep, min(5, length))
    for image in range(3):
        rows = (x[image].tolist() for x in (assignment, centers, integers))
        expected = oracle.select(scores[image].tolist(), keep, share, *rows)
        assert selected[image].tolist() == expected


@pytest.mark.parametrize("share", SHARES)
def test_a_constant_image_still_yields_exactly_k(share: float) -> None:
    scores = torch.zeros(2, 49)
    for keep in (1, 2, 10, 48, 49):
        selected = select_patches(scores, keep, patches=torch.ones(2, 49, 6), homogeneous=share)
        _assert_exactly_k(selected, scores, keep, share)


def test_the_largest_flat_region_gives_a_patch_though_its_scores_are_low() -> None:
    pixels = torch.randn(1, 20, 12, generator=torch.Generator().manual_seed(0))
    pixels[0, 10:] = 0.5
    scores = torch.arange(20.0).flip(0).unsqueeze(0)
    selected = select_patches(scores, 5, patches=pixels, homogeneous=0.2)
    assert selected[0, :4].tolist() == [0, 1, 2, 3]
    assert selected[0, 4] == 10


def test_without_patches_or_with_share_0_the_best_scores_are_taken() -> None:
    scores, integers = _case(3, 25, 2, seed=1)
    expected = top_patches(scores, 10)
    assert torch.equal(select_patches(scores, 10), expected)
    found = select_patches(scores, 10, patches=integers.float(), homogeneous=0.0)
    assert torch.equal(found, expected)


def test_equal_scores_are_taken_by_index() -> None:
    scores = torch.tensor([[0.0, 2.0, -0.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    assert top_patches(scores, 4).tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]


def test_top_patches_are_those_of_a_stable_python_sort() -> None:
    scores, _ = _case(4, 196, 1, seed=2)
    for row, found in zip(scores.tolist(), top_patches(scores, 98).tolist(), strict=True):
        assert found == sorted(range(196), key=lambda i: (-row[i], i))[:98]


def test_a_batch_gives_the_selection_of_one_by_one_and_of_another_run() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(8, 196, generator=generator)
    patches = torch.randn(8, 196, 768, generator=generator)
    batch = select_patches(scores, 98, patches=patches)
    singles = [
        select_patches(s[None], 98, patches=p[None]) for s, p in zip(scores, patches, strict=True)
    ]
    assert torch.equal(batch, torch.cat(singles))
    assert torch.equal(batch, select_patches(scores, 98, patches=patches))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_selection_of_the_cpu() -> None:
    scores, integers = _case(8, 196, 48, seed=3)
    scores[:, ::2] *= -1  # both zeros occur
    patches = integers.float()
    for keep in (49, 98, 137):
        expected = select_patches(scores, keep, patches=patches)
        found = select_patches(scores.cuda(), keep, patches=patches.cuda())
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize(
    ("ratio", "length", "keep"),
    [(0.7, 196, 137), (0.5, 196, 98), (0.75, 196, 147), (1.0, 196, 196), (0.5, 5, 3), (0.5, 1, 1)],
)
def test_num_kept_rounds_half_up(ratio: float, length: int, keep: int) -> None:
    assert num_kept(ratio, length) == keep


@pytest.mark.parametrize("ratio", [0.0, 0.002, -0.5, 1.01, float("nan"), float("inf")])
def test_keep_ratios_that_leave_no_patch_or_too_many_are_refused(ratio: float) -> None:
    with pytest.raises(RequestError, match="keep ratio"):
        num_kept(ratio, 196)


@pytest.mark.parametrize("keep", [-1, 0, 10])
def test_k_out_of_range_is_refused_with_the_values(keep: int) -> None:
    for call in (select_patches, top_patches):
        with pytest.raises(RequestError, match=f"k out of range.*L = 9; got {keep}"):
            call(torch.zeros(2, 9), keep)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    scores = torch.zeros(2, 9)
    scores[1, 4] = bad
    for call in (select_patches, top_patches):
        with pytest.raises(RequestError, match="scores must be finite"):
            call(scores, 3)


@pytest.mark.parametrize("homogeneous", [-0.1, 1.1, float("nan")])
def test_shares_outside_0_to_1_are_refused(homogeneous: float) -> None:
    with pytest.raises(RequestError, match="homogeneous must be"):
        select_patches(torch.zeros(2, 9), 3, homogeneous=homogeneous)


def test_wrong_shapes_and_damaged_patches_are_refused() -> None:
    with pytest.raises(RequestError, match=r"scores must be \(B, L\)"):
        top_patches(torch.zeros(9), 3)
    for shape in ((2, 8, 3), (1, 9, 3), (2, 9)):
        with pytest.raises(RequestError, match=r"patches must be \(B, L, C\)"):
            select_patches(torch.zeros(2, 9), 3, patches=torch.zeros(shape))
    with pytest.raises(RequestError, match="finite"):
        select_patches(torch.zeros(2, 9), 3, patches=torch.full((2, 9, 3), float("nan")))
