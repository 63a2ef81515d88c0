"""CvT's attention against loops over tokens and windows."""

import math

import pytest
import torch

from glocal.layers import ConvAttention, sinusoid
from tests.randomized import wild


def projected(layer, name: str, x: torch.Tensor, stride: int, projection: str) -> list[torch.Tensor]:
    """(dim, H, W) -> the tokens that the projection of q, k or v makes of the map, by loops."""
    dim, height, width = x.shape
    if projection == "linear" or (projection == "pool" and (name == "q" or stride == 1)):
        return [x[:, i, j] for i in range(height) for j in range(width)]
    rows, columns = ((n + 2 - 3 + (stride - 1 if projection == "pool" else 0)) // stride + 1 for n in (height, width))
    tokens = []
    for row in range(rows):
        for column in range(columns):
            values = x.new_zeros(dim)
            inside = 0
            for i in range(3):
                for j in range(3):
                    r, c = row * stride + i - 1, column * stride + j - 1
                    inside += r <= height and c <= width  # one row and column of zeros count, further ones do not
                    if 0 <= r < height and 0 <= c < width:
                        if projection == "conv":
                            values = values + getattr(layer, f"conv_proj_{name}").conv.weight[:, 0, i, j] * x[:, r, c]
                        else:
                            values = values + x[:, r, c]
            if projection == "conv":
                norm = getattr(layer, f"conv_proj_{name}").bn
                values = (values - norm.running_mean) / torch.sqrt(norm.running_var + 1e-5) * norm.weight + norm.bias
            else:
                values = values / inside
            tokens.append(values)
    return tokens


@pytest.mark.parametrize("projection", ["conv", "pool", "linear"])
@pytest.mark.parametrize("prefix", [0, 1])
def test_against_loops(projection, prefix):
    dim, heads, height, width, stride = 4, 2, 4, 5, 2
    layer = wild(ConvAttention(dim, heads, projection=projection, kv_stride=stride, num_prefix_tokens=prefix))
    x = torch.randn(1, prefix + height * width, dim, dtype=torch.float64)
    got = layer(x, height, width)
    as_map = x[0, prefix:].T.reshape(dim, height, width)
    q, k, v = (
        [
            getattr(layer, f"proj_{name}").weight @ token + getattr(layer, f"proj_{name}").bias
            for token in [*x[0, :prefix], *projected(layer, name, as_map, s, projection)]
        ]
        for name, s in (("q", 1), ("k", stride), ("v", stride))
    )
    d = dim // heads
    for i, query in enumerate(q):
        parts = []
        for n in range(heads):
            channels = slice(n * d, (n + 1) * d)
            scores = [(query[channels] @ key[channels]).item() * dim**-0.5 for key in k]
            weights = [math.exp(score) for score in scores]
            parts.append(sum(w / sum(weights) * value[channels] for w, value in zip(weights, v, strict=True)))
        torch.testing.assert_close(got[0, i], layer.proj.weight @ torch.cat(parts) + layer.proj.bias)


def test_unknown_projection_is_named():
    with pytest.raises(ValueError, match="projection: expected one of conv, pool, linear, got 'fft'"):
        ConvAttention(4, 2, projection="fft")


def test_sinusoid_by_its_formula():
    table = sinusoid(7, 6)
    for position in range(7):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
