"""The curves against sums written from the definition, and against what is known by heart."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from glocal.analysis import fourier, notebook_spectrum, spectrum
from glocal.errors import GlocalError

SIZES = [(8, 8), (7, 7), (6, 10), (9, 4), (5, 8), (2, 2), (3, 2), (2, 9)]


def amplitudes(x):
    """|F| of one (H, W) map, by the double sum."""
    height, width = x.shape
    found = np.zeros((height, width))
    for u in range(height):
        for v in range(width):
            total = 0j
            for row in range(height):
                for column in range(width):
                    total += x[row, column] * np.exp(-2j * np.pi * (u * row / height + v * column / width))
            found[u, v] = abs(total)
    return found


def frequency(index, length):
    """Of a bin, in units of pi, from 0 to 1."""
    return 2 * min(index, length - index) / length


def rings_by_hand(maps):
    """The definition, bin by bin: {ring: (mean frequency, mean log-amplitude)}."""
    batch, channels, height, width = maps.shape
    members: dict[int, list[tuple[float, float]]] = {}
    for b in range(batch):
        for c in range(channels):
            found = amplitudes(maps[b, c])
            for u in range(height):
                for v in range(width):
                    radius = max(frequency(u, height), frequency(v, width))
                    shorter = min(height, width)
                    ring = 0 if radius == 0 else min(max(round(radius * shorter / 2), 1), shorter // 2)
                    value = math.log(max(found[u, v] / found.max(), 1e-6))
                    members.setdefault(ring, []).append((radius, value))
    return [np.mean(members[ring], axis=0) for ring in sorted(members)]


@pytest.mark.parametrize("size", SIZES)
def test_the_rings_equal_a_direct_transform(size):
    maps = np.random.default_rng(0).normal(0.5, 1, (2, 3, *size))
    found = spectrum(torch.tensor(maps))
    expected = np.array(rings_by_hand(maps))
    np.testing.assert_allclose(found.frequency, expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(found.amplitude, expected[:, 1] - expected[0, 1], atol=1e-6)
    assert found.frequency[0] == found.amplitude[0] == 0
    assert found.frequency[-1] <= 1
    assert len(found.frequency) == min(size) // 2 + 1


@pytest.mark.parametrize("side", [2, 4, 5, 8, 9])
def test_the_notebook_equals_its_definition(side):
    """log(|F| + 1e-6), mean of the logs, from the middle of the shifted diagonal on, minus its start."""
    maps = np.random.default_rng(1).normal(0.3, 1, (2, 3, side, side))
    logs = np.mean([[np.log(amplitudes(channel) + 1e-6) for channel in image] for image in maps], axis=(0, 1))
    shifted = np.empty_like(logs)
    for u in range(side):
        for v in range(side):
            shifted[(u + int(side / 2)) % side, (v + int(side / 2)) % side] = logs[u, v]
    diagonal = [shifted[i, i] for i in range(int(side / 2), side)]
    found = notebook_spectrum(torch.tensor(maps))
    np.testing.assert_allclose(found.amplitude, np.array(diagonal) - diagonal[0], atol=1e-6)
    assert found.frequency[-1] == pytest.approx(1 - 2 / side if side % 2 == 0 else 1 - 1 / side)


def test_the_notebook_refuses_what_it_does_not_define():
    with pytest.raises(GlocalError, match="square maps, got 4x6; use rings"):
        notebook_spectrum(torch.randn(1, 1, 4, 6))
    with pytest.raises(GlocalError, match="at least 2x2"):
        spectrum(torch.randn(1, 1, 1, 6))


def test_white_noise_is_flat():
    """A complex bin has ln sigma - gamma / 2 on average, a real one ln sigma - (gamma + ln 2) / 2; at 0 it is real."""
    side = 16
    maps = torch.randn(400, 25, side, side, generator=torch.Generator().manual_seed(0))
    found = spectrum(maps)
    expected = np.full(side // 2 + 1, math.log(2) / 2)
    expected[0] = 0
    expected[-1] *= 1 - 3 / (2 * side - 1)  # of the outermost ring, three bins are real
    np.testing.assert_allclose(found.amplitude, expected, atol=0.04)
    np.testing.assert_allclose(found.amplitude[1:-1], math.log(2) / 2, atol=0.04)


def test_a_sinusoid_is_one_peak():
    side, wave, level = 12, 3, 0.25
    row = torch.arange(side, dtype=torch.float64)
    maps = (level + torch.cos(2 * math.pi * wave * row / side)).repeat(side, 1)[None, None]
    found = spectrum(maps)
    # the largest bin is one of the two of the wave, side^2 / 2; that of frequency 0 is level side^2
    count = 8 * wave  # bins of the ring
    floor = math.log(1e-6)
    peak = (2 * 0 + (count - 2) * floor) / count
    start = math.log(2 * level)
    assert found.amplitude[wave] == pytest.approx(peak - start, abs=1e-6)
    others = np.delete(found.amplitude, [0, wave])
    np.testing.assert_allclose(others, floor - start, atol=1e-6)
    assert found.frequency[wave] == pytest.approx(2 * wave / side)


def test_a_box_blur_lowers_by_its_transfer_function():
    """Blurring k x k around a torus multiplies each bin by the Dirichlet kernels of its two frequencies."""
    side, kernel = 16, 3
    maps = torch.randn(8, 4, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.2
    around = torch.nn.functional.pad(maps, (1, 1, 1, 1), mode="circular")
    blurred = torch.nn.functional.avg_pool2d(around, kernel, stride=1)

    def dirichlet(index):
        angle = math.pi * index / side
        return 1.0 if index == 0 else abs(math.sin(kernel * angle) / (kernel * math.sin(angle)))

    rings: dict[int, list[float]] = {}
    for u in range(side):
        for v in range(side):
            ring = max(min(u, side - u), min(v, side - v))
            rings.setdefault(ring, []).append(math.log(dirichlet(u) * dirichlet(v)))
    expected = np.array([np.mean(rings[ring]) for ring in sorted(rings)])
    found = spectrum(blurred).amplitude - spectrum(maps).amplitude
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (np.diff(found)[:4] < 0).all()


def test_scale_does_not_matter_and_a_constant_map_is_no_signal():
    maps = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    np.testing.assert_allclose(spectrum(1e-5 * maps).amplitude, spectrum(maps).amplitude, atol=1e-9)
    np.testing.assert_allclose(spectrum(torch.full((1, 1, 8, 8), 3.0)).amplitude[1:], math.log(1e-6), atol=1e-9)
    assert (spectrum(torch.zeros(1, 2, 8, 8)).amplitude == 0).all()


class Blurring(nn.Module):
    """Adds a blurred copy, then its own double, of a stem that is the image."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1, bias=False)
        self.blur = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular", groups=3, bias=False)
        self.point = nn.Conv2d(3, 3, 1, bias=False)
        self.head = nn.Linear(3, 2)
        for conv in (self.stem, self.point):
            nn.init.dirac_(conv.weight)
        nn.init.constant_(self.blur.weight, 1 / 9)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.blur(x)
        x = x + self.point(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("output", ["residual", "branch"])
def test_the_change_of_each_operation(output):
    model, x = Blurring(), torch.randn(12, 3, 10, 14, generator=torch.Generator().manual_seed(0)) + 1
    found = fourier(model, x, output=output, batch_size=5)
    assert [(point.name, point.kind, point.size) for point in found.points] == [
        ("convolution", "convolution", (10, 14)),
        ("mlp", "mlp", (10, 14)),
    ]
    blur, double = found.points
    blurred = model.blur(x).detach()
    mixed = blurred if output == "branch" else x + blurred
    np.testing.assert_allclose(blur.change, spectrum(mixed).amplitude - spectrum(x).amplitude, atol=1e-6)
    assert blur.high_change < -0.1
    np.testing.assert_allclose(double.change, 0, atol=1e-6)  # the same, or twice of it
    assert blur.variance == pytest.approx(float(mixed.double().var((2, 3), correction=0).mean()))
    assert blur.high == blur.amplitude[-1]


def test_bad_choices_are_named():
    with pytest.raises(GlocalError, match="output: expected one of residual, branch, got 'both'"):
        fourier(Blurring(), torch.randn(2, 3, 8, 8), output="both")
    with pytest.raises(GlocalError, match="definition: expected one of rings, notebook"):
        fourier(Blurring(), torch.randn(2, 3, 8, 8), definition="radial")
    with pytest.raises(GlocalError, match="got stm, which match none; nearest: stem"):
        fourier(Blurring(), torch.randn(2, 3, 8, 8), layers=("stm",))
