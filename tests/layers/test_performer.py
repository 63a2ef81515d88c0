"""Random-feature attention: its formula by loops, its limit, and numbers that half precision cannot hold."""

import math

import pytest
import torch

from glocal.layers import Attend, RandomFeatureAttention


def test_against_the_formula_by_loops():
    layer = RandomFeatureAttention(4, num_features=3).double()
    q, k, v = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    got = layer(q, k, v)

    def features(x):
        exponents = [sum(w[c] * x[c] for c in range(4)) - sum(x[c] ** 2 for c in range(4)) / 2 for w in layer.w]
        return [math.exp(e) / math.sqrt(3) for e in exponents]

    for b in range(2):
        of_k = [features(k[b, j]) for j in range(5)]
        for i in range(5):
            of_q = features(q[b, i])
            weights = [sum(a * c for a, c in zip(of_q, of_k[j], strict=True)) for j in range(5)]
            expected = sum(weights[j] * v[b, j] for j in range(5)) / (sum(weights) + 1e-8)
            torch.testing.assert_close(got[b, i], expected)


def test_with_many_features_it_is_softmax_attention():
    torch.manual_seed(0)
    q, k, v = 0.5 * torch.randn(3, 1, 6, 4, dtype=torch.float64)
    layer = RandomFeatureAttention(4, num_features=200_000).double()
    layer.w.normal_()
    exact = Attend(scale=1.0)(q[:, None], k[:, None], v[:, None])[:, 0]
    torch.testing.assert_close(layer(q, k, v), exact, rtol=0, atol=0.01)


@pytest.mark.parametrize("size", [1.0, 5.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_and_small_exponents_in_every_precision(dtype, size):
    """At size 30 the exponents are near -28,000: the formula as it stands gives 0 / (0 + 1e-8)."""
    torch.manual_seed(0)
    layer = RandomFeatureAttention(64, num_features=32)
    q, v = torch.randn(2, 2, 50, 64)
    q, k = (q * size / 8).to(dtype), (q * size / 8).to(dtype)
    got = layer(q, k, v.to(dtype))
    assert got.dtype == dtype
    assert got.isfinite().all()
    exact = layer.double()(q.double(), k.double(), v.to(dtype).double())
    tolerance = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_the_exponents(dtype):
    torch.manual_seed(0)
    layer = RandomFeatureAttention(64, num_features=32)
    q, k, v = 2 * torch.randn(3, 1, 40, 64)
    with torch.autocast("cpu", dtype):
        half = layer(q, k, v)
    torch.testing.assert_close(half, layer(q, k, v))


def test_gradients_are_those_of_the_formula():
    layer = RandomFeatureAttention(3, num_features=4).double()
    q, k, v = (torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(layer, (q, k, v))


def test_features_are_frozen_but_saved():
    layer = RandomFeatureAttention(8, num_features=4)
    assert not list(layer.parameters())
    assert set(layer.state_dict()) == {"w"}
    torch.testing.assert_close(layer.w @ layer.w.T / 4, torch.eye(4), rtol=0, atol=1e-5)  # orthogonal rows
