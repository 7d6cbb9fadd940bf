import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ltrp_core.errors import RequestError
from ltrp_core.patches import patchify, unpatchify
from oracles.patches import patch_values


def test_a_small_image_gives_row_major_patches_with_the_channel_fastest() -> None:
    # The value at (channel c, row y, column x) is the number cyx.
    digits = torch.arange(4)
    image = 100 * torch.arange(3).view(3, 1, 1) + 10 * digits.view(1, 4, 1) + digits
    patches = patchify(image.unsqueeze(0), 2)
    assert patches.shape == (1, 4, 12)
    assert patches[0, 0].tolist() == [0, 100, 200, 1, 101, 201, 10, 110, 210, 11, 111, 211]
    assert patches[0, 1, :3].tolist() == [2, 102, 202]
    assert patches[0, 2, :3].tolist() == [20, 120, 220]


@pytest.mark.parametrize(("height", "width", "patch_size"), [(6, 6, 3), (4, 8, 2), (8, 4, 4)])
def test_every_patch_equals_the_pixels_taken_one_by_one(
    height: int, width: int, patch_size: int
) -> None:
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    patches = patchify(images, patch_size)
    columns = width // patch_size
    for b in range(2):
        for i in range(patches.shape[1]):
            expected = patch_values(images[b], patch_size, i // columns, i % columns)
            assert patches[b, i].tolist() == expected


@given(
    batch=st.integers(0, 3),
    grid=st.integers(1, 5),
    patch_size=st.integers(1, 5),
    seed=st.integers(0, 100),
)
def test_unpatchify_undoes_patchify(batch: int, grid: int, patch_size: int, seed: int) -> None:
    side = grid * patch_size
    images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))
    patches = patchify(images, patch_size)
    assert patches.shape == (batch, grid * grid, 3 * patch_size**2)
    assert torch.equal(unpatchify(patches, patch_size, grid), images)


def test_unpatchify_gives_gradients_to_every_value() -> None:
    patches = torch.zeros(1, 4, 12, requires_grad=True)
    unpatchify(patches, 2, 2).sum().backward()
    assert patches.grad is not None
    assert bool((patches.grad == 1).all())


@pytest.mark.parametrize(
    ("shape", "patch_size"),
    [((1, 3, 30, 32), 16), ((1, 3, 32, 30), 16), ((3, 32, 32), 16), ((1, 1, 32, 32), 16)],
)
def test_images_that_do_not_divide_into_patches_are_refused(
    shape: tuple[int, ...], patch_size: int
) -> None:
    with pytest.raises(RequestError, match=r"images must be|do not divide"):
        patchify(torch.zeros(shape), patch_size)


def test_patches_of_another_grid_or_size_are_refused() -> None:
    with pytest.raises(RequestError, match=r"must be \(B, 4, 768\)"):
        unpatchify(torch.zeros(1, 9, 768), 16, 2)
    with pytest.raises(RequestError, match=r"must be \(B, 4, 768\)"):
        unpatchify(torch.zeros(1, 4, 588), 16, 2)
