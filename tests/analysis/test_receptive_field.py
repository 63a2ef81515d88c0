"""Receptive fields that are known: stacks of convolutions, dilated ones, attention to everything."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import convolve2d
from torch import nn

from glocal.analysis import receptive_field
from tests.analysis.making import images, model, unchanged


def ones(depth, *, dilation=1, channels=1):
    """3x3 convolutions of equal weights."""
    convs = [nn.Conv2d(3 if i == 0 else channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
             for i in range(depth)]  # fmt: skip
    for conv in convs:
        nn.init.constant_(conv.weight, 1.0)
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_stack_of_convolutions(dilation):
    """The field of L boxes is their convolution with one another."""
    size = 25
    found = receptive_field(ones(4, dilation=dilation), torch.randn(2, 3, size, size))
    box = np.zeros((2 * dilation + 1, 2 * dilation + 1))
    box[::dilation, ::dilation] = 1
    kernel = np.ones((1, 1))
    for depth, point in enumerate(found.points[:4], start=1):
        kernel = convolve2d(kernel, box)
        expected = np.zeros((size, size))
        half = depth * dilation
        expected[12 - half : 13 + half, 12 - half : 13 + half] = kernel
        np.testing.assert_allclose(point.field, expected / expected.sum(), atol=1e-7)
        assert point.kind == "convolution"
        assert point.reach == (2 * half + 1, 2 * half + 1)
        assert point.elongation == pytest.approx(1)
        # a box of taps at -d, 0 and d has variance 2 d^2 / 3 along each axis, and variances of convolutions add up
        assert point.radius == pytest.approx((2 * depth * 2 * dilation**2 / 3) ** 0.5)
        held = np.sort(expected[expected > 0] / expected.sum())[::-1].cumsum()
        assert point.area == pytest.approx((np.searchsorted(held, 0.95 - 1e-9) + 1) / size**2)


class Everywhere(nn.Module):
    """Attention that weighs all patches alike, without a skip."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 1, 4, stride=4, bias=False)
        self.proj = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.patches.weight)
        nn.init.ones_(self.proj.weight)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = F.scaled_dot_product_attention(0 * x, 0 * x, x)
        return self.proj(x).mean(1)


def test_global_attention_sees_everything_at_once():
    found = receptive_field(Everywhere(), torch.randn(2, 3, 16, 24))
    patch, everything = found.points
    assert patch.reach == (4, 4)
    assert (everything.kind, everything.reach) == ("attention", (16, 24))
    np.testing.assert_allclose(everything.field, 1 / (16 * 24), rtol=1e-5)
    assert everything.area == pytest.approx(0.95, abs=2 / 384)


def test_strides_and_the_place_of_the_unit():
    conv = nn.Conv2d(3, 5, 4, stride=4)
    found = receptive_field(nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.randn(2, 3, 16, 16))
    used = np.argwhere(found.points[0].field > 0)
    assert used.min(0).tolist() == [8, 8]
    assert used.max(0).tolist() == [11, 11]
    assert found.points[0].size == (4, 4)


def test_it_does_not_depend_on_the_batch_and_grows_with_depth():
    module, x = model("resnet"), images()
    with unchanged(module):
        whole = receptive_field(module, x, probes=4)
    parts = receptive_field(module, x, probes=4, batch_size=3)
    for a, b in zip(whole.points, parts.points, strict=True):
        assert a.reach == b.reach
        assert a.radius == pytest.approx(b.radius, rel=0.25)  # other signs were drawn
    areas = [point.area for point in whole.points]
    assert areas[-1] > 4 * areas[0]
    np.testing.assert_allclose([point.field.sum() for point in whole.points], 1)


def test_a_few_points_are_those_of_all_spread_over_the_depth():
    module, x = ones(4), torch.randn(2, 3, 25, 25)
    few, every = receptive_field(module, x, most=2).points, receptive_field(module, x).points[:4]
    assert [point.name for point in receptive_field(module, x, most=1).points] == [every[3].name]
    for of_few, of_all in zip(few, every[1::2], strict=True):
        assert of_few.name == of_all.name
        np.testing.assert_allclose(of_few.field, of_all.field, atol=1e-7)


class ChannelNorm(nn.Module):
    def forward(self, x):
        return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)


def test_a_norm_over_channels_does_not_hide_the_field():
    """The sum of a LayerNorm's outputs is constant: without signs there would be no gradient."""
    conv, same = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
    nn.init.dirac_(same.weight)
    module = nn.Sequential(conv, ChannelNorm(), same, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = receptive_field(module, torch.randn(4, 3, 9, 9))
    assert [point.reach for point in found.points] == [(3, 3), (3, 3)]
    x = torch.randn(4, 3, 9, 9, requires_grad=True)
    (plain,) = torch.autograd.grad(module[:3](x)[:, :, 4, 4].sum(), x)
    (signed,) = torch.autograd.grad((module[:3](x)[:, :, 4, 4] * torch.tensor([1, -1] * 4)).sum(), x)
    assert plain.abs().max() < 1e-5 < 1e-2 < signed.abs().max()
    size = found.points[-1].field
    assert 0.02 < size[3:6, 3:6].min() < size.max() < 0.3  # and not a single pixel that rounding left
