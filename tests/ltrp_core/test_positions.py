import math

import pytest
import torch
from timm.layers.pos_embed import resample_abs_pos_embed

from ltrp_core.errors import RequestError
from ltrp_core.positions import interpolate_positions, is_sincos, sincos_positions
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


def _learned(grid: int, width: int = 8, prefix: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, prefix + grid * grid, width, generator=generator)


def test_a_stretched_table_gives_a_patch_the_position_that_it_covers() -> None:
    twice = sincos_positions(8, 8, prefix_tokens=0, learned_grid=4)[0].view(8, 8, 8)
    # Patch 3 of 8 covers the middle of the right half of patch 1 of 4: at 1.25.
    assert twice[0, 3, 0].item() == pytest.approx(math.sin(1.25))
    assert twice[3, 0, 4].item() == pytest.approx(math.sin(1.25))
    # Three for one: every middle patch lies exactly where the old one did.
    thrice = sincos_positions(8, 6, prefix_tokens=0, learned_grid=2)[0].view(6, 6, 8)
    old = sincos_positions(8, 2, prefix_tokens=0)[0].view(2, 2, 8)
    torch.testing.assert_close(thrice[1::3, 1::3], old)


def test_learning_on_the_same_grid_changes_nothing() -> None:
    assert torch.equal(sincos_positions(8, 5, learned_grid=5), sincos_positions(8, 5))


def test_the_fixed_table_is_stretched_and_keeps_its_prefix() -> None:
    table, how = interpolate_positions(sincos_positions(64, 14), 16)
    assert how == "sine-cosine, stretched"
    assert torch.equal(table, sincos_positions(64, 16, learned_grid=14))
    assert not table[0, 0].any()


def test_a_learned_table_is_resized_as_timm_resizes_it() -> None:
    table, how = interpolate_positions(_learned(4), 6)
    assert how == "bicubic"
    assert torch.equal(table, resample_abs_pos_embed(_learned(4), [6, 6], num_prefix_tokens=1))
    assert torch.equal(table[:, 0], _learned(4)[:, 0])


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_prefix_rows_of_a_learned_table_are_kept(prefix: int) -> None:
    learned = _learned(4, prefix=prefix)
    table, _ = interpolate_positions(learned, 3, prefix_tokens=prefix)
    assert table.shape == (1, prefix + 9, 8)
    assert torch.equal(table[:, :prefix], learned[:, :prefix])


def test_the_same_grid_gives_the_table_itself() -> None:
    learned = _learned(4)
    assert interpolate_positions(learned, 4)[0] is learned


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_fixed_table_is_recognized_from_a_rounded_file(dtype: torch.dtype) -> None:
    rounded = sincos_positions(192, 14).to(dtype)
    assert is_sincos(rounded)
    assert interpolate_positions(rounded, 16)[0].dtype == dtype


def test_other_tables_are_not_taken_for_the_fixed_one() -> None:
    assert not is_sincos(_learned(4))
    assert not is_sincos(_learned(4, width=6))
    assert not is_sincos(sincos_positions(64, 16, learned_grid=14))
    assert not is_sincos(sincos_positions(64, 14).roll(1, dims=1))


@pytest.mark.parametrize("shape", [(1, 6, 8), (1, 1, 8), (2, 5, 8), (5, 8)])
def test_what_is_no_square_table_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"positions must be \(1, 1 \+ g \* g, D\)"):
        interpolate_positions(torch.zeros(shape), 4)


def test_a_grid_of_nothing_is_refused() -> None:
    with pytest.raises(RequestError, match="grid must be >= 1; got 0"):
        interpolate_positions(_learned(4), 0)
    with pytest.raises(RequestError, match="learned_grid=0"):
        sincos_positions(8, 4, learned_grid=0)
