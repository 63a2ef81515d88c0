"""Each layer against a loop written from its formula, in float64."""

import math

import pytest
import torch

from glocal.layers import MHSA2d, NonLocal2d, SelfAttention, attention
from tests.randomized import wild


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True))


@torch.no_grad()
def mhsa_by_loops(layer: MHSA2d, x: torch.Tensor, kind: str) -> torch.Tensor:
    """Every output pixel of every head from the formula: softmax_j(q_i . k_j + q_i . r_ij) v_j with q_i / sqrt(d)."""
    _, dim, height, width = x.shape
    heads, d = layer.num_heads, dim // layer.num_heads
    w = layer.qkv.weight[:, :, 0, 0].view(3, heads, d, dim)
    pixels = [(row, column) for row in range(height) for column in range(width)]
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for head in range(heads):
            q = {p: w[0, head] @ x[b, :, *p] / math.sqrt(d) for p in pixels}
            k = {p: w[1, head] @ x[b, :, *p] for p in pixels}
            v = {p: w[2, head] @ x[b, :, *p] for p in pixels}
            for i in pixels:
                scores = []
                for j in pixels:
                    score = dot(q[i], k[j])
                    if kind == "relative":
                        score += dot(q[i], layer.position.rel_height[j[0] - i[0] + height - 1])
                        score += dot(q[i], layer.position.rel_width[j[1] - i[1] + width - 1])
                    elif kind == "absolute":
                        score += dot(q[i], layer.position.abs_height[j[0]] + layer.position.abs_width[j[1]])
                    scores.append(score)
                weights = softmax(scores)
                out[b, head * d : (head + 1) * d, *i] = sum(a * v[j] for a, j in zip(weights, pixels, strict=True))
    return out


@pytest.mark.parametrize("kind", ["relative", "absolute", "none"])
def test_mhsa2d_is_its_formula(kind):
    layer = wild(MHSA2d(8, num_heads=2, size=(2, 3), position=kind))
    x = torch.randn(2, 8, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), mhsa_by_loops(layer, x, kind), rtol=0, atol=1e-12)


def test_mhsa2d_contract_of_names_and_shapes():
    layer = MHSA2d(32, num_heads=4, size=(5, 7))
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "qkv.weight": (96, 32, 1, 1),
        "position.rel_height": (9, 8),
        "position.rel_width": (13, 8),
    }


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 3), (1, 7)])
def test_stride_two_averages_what_is_there(height, width):
    plain = wild(MHSA2d(8, num_heads=2, size=(4, 4)))
    strided = MHSA2d(8, num_heads=2, size=(4, 4), stride=2).double()
    strided.load_state_dict(plain.state_dict())
    x = torch.randn(1, 8, height, width, dtype=torch.float64)
    full, pooled = plain(x), strided(x)
    assert pooled.shape[-2:] == (-(-height // 2), -(-width // 2))
    for row in range(pooled.shape[2]):
        for column in range(pooled.shape[3]):
            window = full[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            torch.testing.assert_close(pooled[:, :, row, column], window.mean((2, 3)))


def test_relative_position_moves_with_the_content_and_absolute_does_not():
    """With a periodic content two pixels one period apart see the same, but for what lies beyond the border."""
    x = torch.zeros(1, 8, 1, 5, dtype=torch.float64)
    x[0, :, 0, 1] = x[0, :, 0, 3] = torch.arange(8, dtype=torch.float64)
    relative = wild(MHSA2d(8, num_heads=1, size=(1, 5), position="relative"))
    bias = relative.position(torch.ones(1, 1, 5, 8, dtype=torch.float64), 1, 5)[0, 0]
    for offset in range(-4, 5):
        diagonal = bias.diagonal(offset)
        torch.testing.assert_close(
            diagonal, diagonal[:1].expand_as(diagonal), msg="a relative bias depends on the offset alone"
        )
    absolute = wild(MHSA2d(8, num_heads=1, size=(1, 5), position="absolute"))
    bias = absolute.position(torch.ones(1, 1, 5, 8, dtype=torch.float64), 1, 5)[0, 0]
    torch.testing.assert_close(bias, bias[:1].expand_as(bias), msg="an absolute bias depends on the key alone")


def test_position_none_sees_a_set_of_pixels():
    x = torch.randn(1, 8, 3, 3, dtype=torch.float64)
    shuffle = torch.randperm(9)

    def shuffled(y: torch.Tensor) -> torch.Tensor:
        return y.flatten(2)[:, :, shuffle].unflatten(2, (3, 3))

    blind = wild(MHSA2d(8, num_heads=2, size=(3, 3), position="none"))
    torch.testing.assert_close(blind(shuffled(x)), shuffled(blind(x)))
    seeing = wild(MHSA2d(8, num_heads=2, size=(3, 3), position="relative"))
    assert not torch.allclose(seeing(shuffled(x)), shuffled(seeing(x)), atol=1e-3)


def test_self_attention_is_its_formula():
    layer = wild(SelfAttention(6, num_heads=2))
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    qkv = layer.qkv(x)
    expected = torch.zeros_like(x)
    for b in range(2):
        for head in range(2):
            q, k, v = (qkv[b, :, 6 * part + 3 * head : 6 * part + 3 * head + 3] for part in range(3))
            for i in range(4):
                weights = softmax([dot(q[i], k[j]) / math.sqrt(3) for j in range(4)])
                expected[b, i, 3 * head : 3 * head + 3] = sum(weights[j] * v[j] for j in range(4))
    torch.testing.assert_close(layer(x), layer.proj(expected), rtol=0, atol=1e-12)


def test_non_local_is_its_formula():
    layer = wild(NonLocal2d(4))
    x = torch.randn(1, 4, 2, 3, dtype=torch.float64)
    theta, phi, g = (conv(x)[0].flatten(1).T for conv in (layer.theta, layer.phi, layer.g))
    y = torch.zeros(6, 2, dtype=torch.float64)
    for i in range(6):
        weights = softmax([dot(theta[i], phi[j]) for j in range(6)])
        y[i] = sum(weights[j] * g[j] for j in range(6))
    expected = x + layer.norm(layer.out(y.T.reshape(1, 2, 2, 3)))
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_non_local_starts_as_the_identity():
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(NonLocal2d(8).eval()(x), x)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 3}, "num_heads: expected a divisor of dim 8, got 3"),
        ({"position": "sinus"}, "position: expected one of relative, absolute, none, got 'sinus'"),
        ({"stride": 3}, "stride: expected 1 or 2, got 3"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MHSA2d(8, **{"num_heads": 2, **kwargs})


@pytest.mark.parametrize("kind", ["relative", "absolute", "none"])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_bands_of_queries_change_nothing(kind, rows, monkeypatch):
    """Large maps attend band by band; the last band may be lower than the others."""
    layer = wild(MHSA2d(8, num_heads=2, size=(4, 4), position=kind))
    x = torch.randn(2, 8, 5, 3, dtype=torch.float64)
    whole, calls = layer(x), []
    monkeypatch.setattr(attention, "BIAS_OF_A_BAND", rows * 5 * 3 * 3)
    layer.attend.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[2]))
    torch.testing.assert_close(layer(x), whole, rtol=0, atol=1e-12)
    assert calls == {1: [3] * 5, 2: [6, 6, 3], 4: [12, 3]}[rows]
