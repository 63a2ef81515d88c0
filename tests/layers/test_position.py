import math

import pytest
import torch

from glocal.layers import AbsolutePosition2d, RelativePosition2d, resample_map, resample_table, sincos_position_2d


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resampling_to_the_same_length_is_exact(dtype):
    table = torch.randn(27, 16, dtype=dtype)
    assert torch.equal(resample_table(table, 27), table)


def test_resampling_keeps_ends_and_centre_and_is_linear_between():
    table = torch.tensor([[0.0], [10.0], [40.0]])
    torch.testing.assert_close(resample_table(table, 5), torch.tensor([[0.0], [5.0], [10.0], [25.0], [40.0]]))
    assert resample_table(torch.randn(13, 4), 27).shape == (27, 4)


def test_a_relative_table_of_straight_lines_gives_straight_lines_at_any_size():
    """r[offset] = slope * offset / (H - 1): resampled, the bias from end to end of the map stays what it was."""
    position = RelativePosition2d((4, 4), head_dim=1).double()
    position.rel_height.data = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    position.rel_width.data.zero_()
    for height, width in ((4, 4), (7, 3), (2, 9)):
        q = torch.ones(1, 1, height * width, 1, dtype=torch.float64)
        bias = position(q, height, width).view(height, width, height, width)
        for query in range(height):
            for key in range(height):
                expected = torch.full((width, width), (key - query) / (height - 1), dtype=torch.float64)
                torch.testing.assert_close(bias[query, :, key, :], expected)


@pytest.mark.parametrize("kind", [RelativePosition2d, AbsolutePosition2d])
def test_every_entry_of_the_tables_is_reached(kind):
    position = kind((3, 4), head_dim=5)
    bias = position(torch.randn(2, 2, 12, 5), 3, 4)
    assert bias.shape[-2:] == (12, 12)
    (bias * torch.randn_like(bias)).sum().backward()
    for name, parameter in position.named_parameters():
        assert (parameter.grad.abs().sum(1) > 0).all(), name


def test_rows_and_columns_are_not_confused():
    position = RelativePosition2d((2, 3), head_dim=1).double()
    position.rel_height.data = torch.tensor([[100.0], [200.0], [300.0]], dtype=torch.float64)
    position.rel_width.data = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]], dtype=torch.float64)
    bias = position(torch.ones(1, 1, 6, 1, dtype=torch.float64), 2, 3)[0, 0]
    query, key = 0 * 3 + 2, 1 * 3 + 0  # from (0, 2) to (1, 0): one row down, two columns left
    assert bias[query, key] == 300 + 1
    assert bias[key, query] == 100 + 5


def test_sincos_against_its_formula():
    dim, height, width = 12, 3, 5
    got = sincos_position_2d(dim, height, width, torch.zeros((), dtype=torch.float64))
    for row in range(height):
        for column in range(width):
            for i in range(dim // 4):
                frequency = 10000 ** (-i / (dim // 4))
                expected = (
                    math.sin(column * frequency),
                    math.cos(column * frequency),
                    math.sin(row * frequency),
                    math.cos(row * frequency),
                )
                assert got[i :: dim // 4, row, column].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_of_positions_of_the_same_size_is_exact(dtype):
    table = torch.randn(1, 5, 7, 9, dtype=dtype)
    assert torch.equal(resample_map(table, 7, 9), table)
