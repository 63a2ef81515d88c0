"""Conformer's coupling unit, both directions, against loops."""

import math

import pytest
import torch

from glocal.layers import FCUDown, FCUUp
from tests.randomized import wild


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_down_against_loops(pooling):
    layer = wild(FCUDown(3, 4, 2, pooling=pooling))
    x = torch.randn(1, 3, 4, 6, dtype=torch.float64)
    tokens = torch.randn(1, 1 + 6, 4, dtype=torch.float64)
    got = layer(x, tokens) - tokens
    torch.testing.assert_close(got[:, 0], tokens[:, 0])
    weight, bias = layer.conv_project.weight[:, :, 0, 0], layer.conv_project.bias
    for row in range(2):
        for column in range(3):
            window = [weight @ x[0, :, 2 * row + i, 2 * column + j] + bias for i in range(2) for j in range(2)]
            pooled = torch.stack(window).mean(0) if pooling == "avg" else torch.stack(window).amax(0)
            normed = (pooled - pooled.mean()) / torch.sqrt(pooled.var(unbiased=False) + 1e-6)
            normed = normed * layer.ln.weight + layer.ln.bias
            expected = torch.tensor([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in normed.tolist()])
            torch.testing.assert_close(got[0, 1 + 3 * row + column].float(), expected)


def test_up_against_loops():
    layer = wild(FCUUp(4, 3, 2))
    tokens = torch.randn(1, 1 + 6, 4, dtype=torch.float64)
    x = torch.randn(1, 3, 4, 6, dtype=torch.float64)
    got = layer(tokens, x) - x
    weight, bias = layer.conv_project.weight[:, :, 0, 0], layer.conv_project.bias
    norm = layer.bn
    for row in range(4):
        for column in range(6):
            y = weight @ tokens[0, 1 + 3 * (row // 2) + column // 2] + bias
            y = (y - norm.running_mean) / torch.sqrt(norm.running_var + 1e-6) * norm.weight + norm.bias
            torch.testing.assert_close(got[0, :, row, column], y.clamp(min=0))


@pytest.mark.parametrize("stride", [2, 4, 16])
def test_compiled_it_is_equal_and_the_map_keeps_its_size(stride):
    """The size of the map stays the expression it was, or each block of a Conformer would add to it."""
    sizes = []

    def backend(graph, _):
        values = [node.meta.get("example_value") for node in graph.graph.nodes]
        maps = [value.shape for value in values if isinstance(value, torch.Tensor) and value.ndim == 4]
        sizes.append([[str(size) for size in shape[2:]] for shape in maps if shape[1:2] == (3,)])
        return graph

    layer = wild(FCUUp(4, 3, stride)).eval()
    compiled = torch.compile(layer, fullgraph=True, backend=backend, dynamic=True)
    for rows, columns in ((2, 3), (7, 5)):
        tokens = torch.randn(2, 1 + rows * columns, 4, dtype=torch.float64)
        x = torch.randn(2, 3, rows * stride, columns * stride, dtype=torch.float64)
        assert torch.equal(compiled(tokens, x), layer(tokens, x))
    assert all(before == after for before, *_, after in sizes)


def test_up_bilinear_keeps_a_constant():
    layer = wild(FCUUp(4, 3, 2, upsampling="bilinear"))
    tokens = torch.randn(1, 1, 4, dtype=torch.float64).expand(1, 7, 4)
    got = layer(tokens, torch.zeros(1, 3, 4, 6, dtype=torch.float64))
    torch.testing.assert_close(got, got[:, :, :1, :1].expand_as(got))


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="pooling: expected one of avg, max, got 'median'"):
        FCUDown(3, 4, 2, pooling="median")
    with pytest.raises(ValueError, match="upsampling: expected one of nearest, bilinear, got 'cubic'"):
        FCUUp(4, 3, 2, upsampling="cubic")
