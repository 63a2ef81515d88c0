"""Fourier amplitude of feature maps by depth: Park and Kim 2022, "How Do Vision Transformers Work?".

https://arxiv.org/abs/2202.06709, §2 and Fig. 2a, 8 and 9. The authors find that self-attention reduces high frequencies
and convolution amplifies them. Two definitions of the curve: ours (`spectrum`), and that of their notebook
(`notebook_spectrum`, github.com/xxxnell/how-do-vits-work, fourier_analysis.ipynb).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from glocal.analysis.depth import Point, walk
from glocal.analysis.watch import OnProgress, silent
from glocal.errors import GlocalError, check_choice

FLOOR = 1e-6  # of a map's amplitudes relative to its largest: below is rounding noise
DEFINITIONS = ("rings", "notebook")
OUTPUTS = ("residual", "branch")


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A curve of log-amplitude over frequency.

    Attributes:
        frequency: (K,) in units of pi radians per pixel of the map: 1 is the Nyquist frequency.
        amplitude: (K,) mean log-amplitude relative to that of frequency 0, in nats.
    """

    frequency: np.ndarray
    amplitude: np.ndarray


def spectrum(maps: Tensor) -> Spectrum:
    """Log-amplitude of the discrete Fourier transform over rings of equal frequency, relative to frequency 0.

    The mean of log |F| over images, channels and all frequencies of a ring. A frequency is the larger of those along
    rows and columns, so rings are square; ring k of a square map of side n is at 2 pi k / n, and the last one of an
    even map at pi. For non-square maps, frequencies are assigned to the nearest ring of the shorter side, and a ring's
    frequency is the mean of its members. Amplitudes are clipped from below at 1e-6 of the largest of their map.

    Args:
        maps: (B, C, H, W).

    Raises:
        ValueError: if a map is smaller than 2x2.
    """
    height, width = _checked(maps)
    amplitude = torch.fft.fft2(maps.detach().double()).abs()  # (B, C, H, W)
    largest = amplitude.amax((2, 3), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    mean = (amplitude / largest).clamp(min=FLOOR).log().mean((0, 1)).flatten().numpy(force=True)
    rings, radius = _rings(height, width)
    count = np.bincount(rings)
    curve = np.bincount(rings, mean) / count
    return Spectrum(np.bincount(rings, radius) / count, curve - curve[0])


@lru_cache(maxsize=64)
def _rings(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(HW,) ring and frequency / pi of each bin of `torch.fft.fft2`."""
    rows, columns = (2 * np.abs(np.fft.fftfreq(length)) for length in (height, width))
    radius = np.maximum(rows[:, None], columns[None, :]).ravel()
    shorter = min(height, width)
    rings = np.clip(np.rint(radius * shorter / 2), 1, shorter // 2).astype(np.int64)
    return np.where(radius == 0, 0, rings), radius


def notebook_spectrum(maps: Tensor) -> Spectrum:
    """The curve of the authors' notebook: log(|F| + 1e-6) along half the diagonal, relative to its start.

    Its last point is plotted there at pi, but is at (1 - 2 / n) pi for even n, and (1 - 1 / n) pi for odd n; the
    frequencies here are the true ones.

    Args:
        maps: (B, C, n, n).

    Raises:
        ValueError: if maps are not square, or smaller than 2x2.
    """
    height, width = _checked(maps)
    if height != width:
        raise GlocalError(f"definition: the notebook's is for square maps, got {height}x{width}; use rings")
    log = (torch.fft.fft2(maps.detach().double()).abs() + 1e-6).log().mean((0, 1))
    diagonal = torch.fft.fftshift(log).diag()[height // 2 :].numpy(force=True)
    return Spectrum(2 * np.arange(len(diagonal)) / height, diagonal - diagonal[0])


def _checked(maps: Tensor) -> tuple[int, int]:
    if maps.ndim != 4 or min(maps.shape[-2:]) < 2:
        raise GlocalError(f"maps: expected (B, C, H, W) of at least 2x2, got {tuple(maps.shape)}")
    return maps.shape[-2], maps.shape[-1]


@dataclass(frozen=True, eq=False)
class FourierPoint:
    """Spectrum of one point.

    Attributes:
        name: see `Point`.
        kind: see `Point`.
        layout: see `Point`.
        size: rows and columns of the map.
        frequency: (K,) see `Spectrum`.
        amplitude: (K,) of the map: nats relative to frequency 0.
        change: (K,) its change by the operation, in nats: below 0 the operation blurs. None at a named layer.
        high: amplitude at the highest frequency.
        high_change: change at the highest frequency.
        variance: of the map over places, mean over channels and images.
    """

    name: str
    kind: str
    layout: str
    size: tuple[int, int]
    frequency: np.ndarray
    amplitude: np.ndarray
    change: np.ndarray | None
    high: float
    high_change: float | None
    variance: float


@dataclass(frozen=True, eq=False)
class Fourier:
    """Result of `fourier`.

    Attributes:
        definition: "rings" or "notebook".
        output: "residual" or "branch".
        images: number of images.
        points: by depth.
    """

    definition: str
    output: str
    images: int
    points: tuple[FourierPoint, ...]


def fourier(
    model: nn.Module,
    images: Tensor,
    *,
    output: str = "residual",
    definition: str = "rings",
    layers: Sequence[str] = (),
    batch_size: int = 8,
    progress: OnProgress = silent,
) -> Fourier:
    """Relative log-amplitude of the feature maps of a model by depth, and its change by each operation.

    Args:
        model: any classifier; left unchanged.
        images: (B, 3, H, W) normalised images, of any size that the model takes.
        output: "residual" measures the output of each residual sum, "branch" the output of the operation itself; the
            change is relative to the skip.
        definition: "rings" (`spectrum`) or "notebook" (`notebook_spectrum`).
        layers: patterns of module names whose outputs are measured instead of residual sums.
        batch_size: images per forward pass.
        progress: called with the number of images done.

    Raises:
        GlocalError: if an argument is unknown, or the model has no map of at least 2x2.
    """
    check_choice("output", output, OUTPUTS)
    check_choice("definition", definition, DEFINITIONS)
    curve = spectrum if definition == "rings" else notebook_spectrum
    sums: dict[str, FourierPoint] = {}
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        for point in walk(model, batch, layers).points:
            if min(point.output.shape[-2:]) >= 2:
                measured = _measure(point, output, curve)
                sums[point.name] = _mean(sums[point.name], start, measured, len(batch)) if start else measured
        progress(start + len(batch), len(images))
    if not sums:
        raise GlocalError("images: expected maps of at least 2x2 in the model, got none; use larger images")
    return Fourier(definition, output, len(images), tuple(sums.values()))


def _measure(point: Point, output: str, curve: Callable[[Tensor], Spectrum]) -> FourierPoint:
    maps = point.branch if output == "branch" and point.branch is not None else point.output
    found = curve(maps)
    change = None if point.skip is None else found.amplitude - curve(point.skip).amplitude
    return FourierPoint(
        name=point.name,
        kind=point.kind,
        layout=point.layout,
        size=(maps.shape[-2], maps.shape[-1]),
        frequency=found.frequency,
        amplitude=found.amplitude,
        change=change,
        high=float(found.amplitude[-1]),
        high_change=None if change is None else float(change[-1]),
        variance=float(maps.detach().double().var((2, 3), correction=0).mean()),
    )


def _mean(one: FourierPoint, weight: int, other: FourierPoint, weight_of_other: int) -> FourierPoint:
    """The mean of the results of two batches."""
    share = weight_of_other / (weight + weight_of_other)
    amplitude = one.amplitude + share * (other.amplitude - one.amplitude)
    change = None
    if one.change is not None and other.change is not None:
        change = one.change + share * (other.change - one.change)
    return FourierPoint(
        name=one.name,
        kind=one.kind,
        layout=one.layout,
        size=one.size,
        frequency=one.frequency,
        amplitude=amplitude,
        change=change,
        high=float(amplitude[-1]),
        high_change=None if change is None else float(change[-1]),
        variance=one.variance + share * (other.variance - one.variance),
    )
