"""Attention inside and between windows against loops over pixels."""

import itertools
import math

import pytest
import torch

from glocal.layers import CrossPatchAttention, WindowAttention, from_windows, full_windows, to_windows
from tests.randomized import wild


def padded(x: torch.Tensor, side: int) -> torch.Tensor:
    height, width = (-(-length // side) * side for length in x.shape[1:3])
    whole = x.new_zeros(x.shape[0], height, width, x.shape[3])
    whole[:, : x.shape[1], : x.shape[2]] = x
    return whole


def softmax(scores: list[float]) -> list[float]:
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def attend_window(
    layer, pixels: list[tuple[int, int]], x: torch.Tensor, allowed
) -> dict[tuple[int, int], torch.Tensor]:
    """Self-attention of the pixels (row, column) of one window of one image, head by head."""
    dim, heads = x.shape[-1], layer.num_heads
    d = dim // heads
    qkv = {p: layer.qkv.weight @ x[p] + layer.qkv.bias for p in pixels}
    out = {}
    for p in pixels:
        values = []
        for n in range(heads):
            channels = slice(n * d, (n + 1) * d)
            keys = [k for k in pixels if allowed(p, k)]
            scores = []
            for k in keys:
                q = qkv[p][:dim][channels]
                row = (p[0] % layer.side - k[0] % layer.side + layer.side - 1) * (2 * layer.side - 1)
                column = p[1] % layer.side - k[1] % layer.side + layer.side - 1
                bias = layer.position.table[row + column, n].item()
                scores.append((q @ qkv[k][dim : 2 * dim][channels]).item() * d**-0.5 + bias)
            weights = softmax(scores)
            values.append(sum(w * qkv[k][2 * dim :][channels] for w, k in zip(weights, keys, strict=True)))
        out[p] = layer.proj.weight @ torch.cat(values) + layer.proj.bias
    return out


@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
def test_window_attention_against_loops(size):
    side, dim = 2, 6
    layer = wild(WindowAttention(dim, 3, side))
    x = torch.randn(2, *size, dim, dtype=torch.float64)
    got = layer(x)
    whole = padded(x, side)
    for b in range(2):
        for top in range(0, whole.shape[1], side):
            for left in range(0, whole.shape[2], side):
                pixels = [(top + i, left + j) for i in range(side) for j in range(side)]
                for (row, column), value in attend_window(layer, pixels, whole[b], lambda *_: True).items():
                    if row < size[0] and column < size[1]:
                        torch.testing.assert_close(got[b, row, column], value)


def test_shifted_windows_against_loops():
    """Windows begin ``shift`` pixels further; at the edges the rolled map puts strangers together, who stay apart."""
    side, shift, dim = 4, 2, 4
    layer = wild(WindowAttention(dim, 2, side, shift=shift))
    x = torch.randn(2, 8, 4, dim, dtype=torch.float64)
    rolled = x.roll((-shift, -shift), dims=(1, 2))
    expected = torch.zeros_like(x)

    def region(length: int, place: int) -> int:
        return (place >= length - side) + (place >= length - shift)

    for b, top in itertools.product(range(2), range(0, 8, side)):
        pixels = [(top + i, j) for i in range(side) for j in range(side)]
        together = lambda p, k: (region(8, p[0]), region(4, p[1])) == (region(8, k[0]), region(4, k[1]))  # noqa: E731
        for (row, column), value in attend_window(layer, pixels, rolled[b], together).items():
            expected[b, (row + shift) % 8, (column + shift) % 4] = value
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("size", [(6, 9), (4, 7)])
def test_cross_patch_attention_against_loops(heads, size):
    """Tokens are windows; their features are the pixels of one channel."""
    side, dim = 3, 2
    layer = wild(CrossPatchAttention(side, heads))
    x = torch.randn(1, *size, dim, dtype=torch.float64)
    whole = padded(x, side)
    expected = torch.zeros_like(whole)
    corners = [(top, left) for top in range(0, whole.shape[1], side) for left in range(0, whole.shape[2], side)]
    d = side**2 // heads
    for c in range(dim):
        features = [whole[0, t : t + side, left : left + side, c].reshape(-1) for t, left in corners]
        qkv = [layer.qkv.weight @ f + layer.qkv.bias for f in features]
        for i, (top, left) in enumerate(corners):
            parts = []
            for n in range(heads):
                q, k, v = (slice(part * side**2 + n * d, part * side**2 + (n + 1) * d) for part in range(3))
                weights = softmax([(qkv[i][q] @ other[k]).item() * d**-0.5 for other in qkv])
                parts.append(sum(w * other[v] for w, other in zip(weights, qkv, strict=True)))
            value = layer.proj.weight @ torch.cat(parts) + layer.proj.bias
            expected[0, top : top + side, left : left + side, c] = value.view(side, side)
    torch.testing.assert_close(layer(x), expected[:, : size[0], : size[1]])


@pytest.mark.parametrize("size", [(7, 7), (8, 13), (1, 2)])
def test_windows_and_back(size):
    x = torch.randn(2, *size, 3)
    windows = to_windows(x, 7)
    assert torch.equal(from_windows(windows, *size), x)
    assert torch.equal(windows[1, 0, 0, : size[0], : size[1]][:7, :7], x[1, :7, :7])
    assert windows.sum().item() == pytest.approx(x.sum().item(), rel=1e-4)


def test_wrong_heads_are_named():
    with pytest.raises(ValueError, match="num_heads: expected a divisor of dim 6, got 4"):
        WindowAttention(6, 4, 7)
    with pytest.raises(ValueError, match=r"num_heads: expected a divisor of 7\^2, got 2"):
        CrossPatchAttention(7, 2)


@pytest.mark.parametrize("layer", [WindowAttention(6, 3, 2), CrossPatchAttention(2), WindowAttention(6, 3, 2, shift=1)])
def test_windows_stay_windows(layer):
    """Of a map or of the windows that it fills, the same; a map with padding stays a map."""
    wild(layer)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    windows = full_windows(x, 2)
    assert windows.shape == (2, 2, 3, 2, 2, 6)
    assert torch.equal(from_windows(layer(windows), 4, 6), layer(x))
    assert full_windows(x[:, :3], 2).shape == (2, 3, 6, 6)
