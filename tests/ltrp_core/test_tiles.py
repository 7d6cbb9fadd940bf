"""Kept patches as tiles of one picture."""

import math

import numpy as np
import pytest
import torch

from ltrp_core.errors import RequestError
from ltrp_core.tiles import MEAN_COLOR, sheet_shape, sheet_tiles, to_sheet


@pytest.mark.parametrize("count", range(1, 200))
def test_a_sheet_is_as_near_to_a_square_as_it_can_be_and_has_no_spare_row(count) -> None:
    rows, columns = sheet_shape(count)
    assert rows * columns >= count > (rows - 1) * columns
    assert columns == math.ceil(math.sqrt(count))
    assert 0 <= columns - rows <= 1


@pytest.mark.parametrize("count", [1, 5, 9, 98])
@pytest.mark.parametrize("patch", [3, 16])
def test_tiles_lie_row_by_row_unscaled_and_spare_ones_are_flat(count, patch) -> None:
    torch.manual_seed(count)
    patches = torch.randint(0, 256, (count, 3 * patch**2), dtype=torch.uint8)
    sheet = to_sheet(patches, patch)
    rows, columns = sheet_shape(count)
    assert sheet.shape == (rows * patch, columns * patch, 3)
    for number in range(rows * columns):
        top, left = patch * (number // columns), patch * (number % columns)
        tile = sheet[top : top + patch, left : left + patch]
        if number < count:
            assert torch.equal(tile.reshape(-1), patches[number])
        else:
            assert (tile == torch.tensor(MEAN_COLOR, dtype=torch.uint8)).all()
    tiles = sheet_tiles(sheet.numpy(), patch, count).reshape(rows * columns, -1)
    assert np.array_equal(tiles[:count], patches.numpy())


def test_a_picture_of_another_size_is_no_sheet() -> None:
    with pytest.raises(RequestError, match="sheet of 5 patches of 4 px is 12 x 8 px"):
        sheet_tiles(np.zeros((8, 8, 3), np.uint8), 4, 5)
