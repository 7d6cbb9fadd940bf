import math

import pytest
import torch

from ltrp_core.errors import RequestError
from ltrp_core.positions import sincos_positions
from oracles.patches import position_table


@pytest.mark.parametrize(("width", "grid"), [(4, 1), (8, 3), (192, 14), (64, 16)])
def test_table_equals_the_formula_written_out(width: int, grid: int) -> None:
    table = sincos_positions(width, grid, prefix_tokens=0, dtype=torch.float64)
    torch.testing.assert_close(table[0], position_table(width, grid), rtol=0, atol=1e-12)


def test_first_half_encodes_the_column_and_second_half_the_row() -> None:
    table = sincos_positions(8, 5, prefix_tokens=0)[0].view(5, 5, 8)
    assert torch.equal(table[:, 2, :4], table[:1, 2, :4].expand(5, 4))
    assert torch.equal(table[2, :, 4:], table[2, :1, 4:].expand(5, 4))
    assert table[0, 3, 0].item() == pytest.approx(math.sin(3.0))
    assert table[3, 0, 4].item() == pytest.approx(math.sin(3.0))


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_prefix_rows_are_zero_and_the_rest_does_not_move(prefix: int) -> None:
    table = sincos_positions(12, 3, prefix_tokens=prefix)
    assert table.shape == (1, prefix + 9, 12)
    assert not table[0, :prefix].any()
    assert torch.equal(table[:, prefix:], sincos_positions(12, 3, prefix_tokens=0))


def test_float32_is_the_float64_table_rounded_once() -> None:
    exact = sincos_positions(768, 14, dtype=torch.float64)
    assert torch.equal(sincos_positions(768, 14), exact.float())


@pytest.mark.parametrize(("width", "grid", "prefix"), [(6, 2, 1), (0, 2, 1), (8, 0, 1), (8, 2, -1)])
def test_sizes_that_give_no_table_are_refused(width: int, grid: int, prefix: int) -> None:
    with pytest.raises(RequestError, match=r"width must be|grid must be"):
        sincos_positions(width, grid, prefix_tokens=prefix)
