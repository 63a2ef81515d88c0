"""`Linear`: torch's, whichever way it goes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from glocal.layers import Linear, linear
from glocal.layers.linear import MANY_TO_TRAIN, MANY_TOKENS, MANY_VALUES

LARGE = (2, 300, 128)


def pair(in_features=128, out_features=96, bias=True):
    torch.manual_seed(0)
    layer = Linear(in_features, out_features, bias=bias)
    plain = nn.Linear(in_features, out_features, bias=bias)
    plain.load_state_dict(layer.state_dict())
    return layer, plain


@pytest.fixture
def convolutions(monkeypatch):
    """How many convolutions were asked for."""
    seen = []
    real = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args, **kwargs: seen.append(args) or real(*args, **kwargs))
    monkeypatch.setattr(linear, "SUITED", True)
    return seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [LARGE, (600, 128), (1, 3, 10, 20, 128)])
def test_output_and_gradients_are_those_of_the_linear_layer(convolutions, shape, bias):
    layer, plain = pair(bias=bias)
    x = torch.randn(shape)
    found = []
    for module in (layer, plain):
        given = x.clone().requires_grad_()
        y = module(given)
        y.square().sum().backward()
        found.append([y, given.grad, *(p.grad for p in module.parameters())])
    assert len(convolutions) == 1
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.detach().abs().max().item())


def test_tokens_in_any_layout(convolutions):
    layer, plain = pair()
    x = torch.randn(2, 128, 300).transpose(1, 2)  # of a map that was flattened
    for tokens in (x, x[:, 1:]):
        torch.testing.assert_close(layer(tokens), plain(tokens), rtol=1e-4, atol=1e-5)
    assert len(convolutions) == 2


def test_nothing_is_copied(convolutions):
    layer, _ = pair()
    x = torch.randn(LARGE)
    y = layer(x)
    assert y.is_contiguous()
    ((taken, weight, _),) = convolutions
    assert taken.data_ptr() == x.data_ptr()
    assert weight.data_ptr() == layer.weight.data_ptr()
    assert taken.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("width", "shape", "dtype"),
    [
        (128, (1, MANY_VALUES // 128, 128), torch.float32),  # not above
        (512, (MANY_TOKENS - 1, 512), torch.float32),
        (128, (0, 128), torch.float32),
        (128, LARGE, torch.float64),
        (128, LARGE, torch.bfloat16),
    ],
)
def test_small_inputs_and_other_types_go_the_usual_way(convolutions, width, shape, dtype):
    layer, plain = (module.to(dtype) for module in pair(width))
    x = torch.randn(shape, dtype=dtype)
    assert torch.equal(layer(x), plain(x))
    assert not convolutions


def test_with_a_backward_pass_it_takes_more_tokens(convolutions):
    layer, plain = pair(512)
    x = torch.randn(MANY_TO_TRAIN - 1, 512)
    assert torch.equal(layer(x), plain(x))
    assert not convolutions
    with torch.no_grad():
        layer(x)
    assert len(convolutions) == 1
    layer.requires_grad_(False)(x)
    assert len(convolutions) == 2
    layer(x.requires_grad_())
    assert len(convolutions) == 2


@pytest.mark.parametrize("how", ["another processor", "no oneDNN"])
def test_elsewhere_it_is_the_linear_layer(convolutions, monkeypatch, how):
    layer, plain = pair()
    x = torch.randn(LARGE)
    if how == "another processor":
        monkeypatch.setattr(linear, "SUITED", False)
    else:
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert torch.equal(layer(x), plain(x))
    assert not convolutions


def test_graphs_have_a_linear_layer():
    layer, _ = pair()
    x = torch.randn(LARGE)
    exported = torch.export.export(layer, (x,))
    assert [n.target for n in exported.graph.nodes if n.op == "call_function"] == [torch.ops.aten.linear.default]


def test_it_is_a_linear_layer_to_those_who_ask():
    layer, _ = pair()
    assert isinstance(layer, nn.Linear)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)


def test_second_derivatives():
    layer, plain = pair()
    x = torch.randn(LARGE)
    found = []
    for module in (layer, plain):
        given = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(module(given).pow(3).sum(), given, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), given)
        found.append(second)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4 * found[1].detach().abs().max().item())
