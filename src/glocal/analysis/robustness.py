"""Robustness of predictions to noise by frequency, occlusion and shuffled patches; shape against texture.

Park and Kim 2022 (https://arxiv.org/abs/2202.06709, Fig. 2b) for noise by frequency; Naseer et al. 2021
(https://arxiv.org/abs/2105.10497, §3) for occlusion and shuffling. Cue conflicts as in Geirhos et al. 2019
(https://arxiv.org/abs/1811.12231) but without style transfer: the phase of one image (shape) with the amplitudes of an
image of another class (texture).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from glocal.analysis.watch import OnProgress, predict, silent
from glocal.errors import GlocalError

STRENGTHS = (0.25, 0.5, 1.0, 2.0)  # of noise, relative to the std of the image
OCCLUDED = (0.25, 0.5, 0.75)  # fractions of the patches
PATCHES = 8  # along a side, for occlusion
SHUFFLES = (2.0, 4.0, 8.0)  # patches along a side
LOW, HIGH = (0.0, 1 / 3), (2 / 3, 1.0)  # bands of frequency, in units of pi


@dataclass(frozen=True)
class Disturbance:
    """An image corruption.

    Attributes:
        name: such as "occlusion".
        unit: of its levels.
        levels: from weak to strong.
        apply: (B, 3, H, W) images, a level and ``generator`` -> the disturbed images.
    """

    name: str
    unit: str
    levels: tuple[float, ...]
    apply: Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores under one disturbance.

    Attributes:
        name: of the disturbance.
        unit: of its levels.
        levels: from weak to strong.
        score: accuracy; without labels, the fraction of unchanged predictions.
    """

    name: str
    unit: str
    levels: tuple[float, ...]
    score: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Robustness:
    """Result of `robustness`.

    Attributes:
        images: number of images.
        labelled: whether scores are accuracies, not agreement with the clean predictions.
        clean: score without a disturbance.
        curves: one per disturbance.
        conflicts: number of cue-conflict images.
        shape: fraction of them predicted as the class of the shape.
        texture: fraction predicted as the class of the texture.
    """

    images: int
    labelled: bool
    clean: float
    curves: tuple[Curve, ...]
    conflicts: int
    shape: float | None
    texture: float | None


def robustness(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    seed: int = 0,
    batch_size: int = 32,
    progress: OnProgress = silent,
) -> Robustness:
    """Predictions of a model under disturbances.

    Args:
        model: any classifier; left unchanged.
        images: (B, 3, H, W) normalised images.
        labels: (B,) classes; by default the clean predictions.
        seed: of noise, patches and pairs.
        batch_size: images per forward pass.
        progress: called with the number of disturbances done.

    Raises:
        GlocalError: if images are smaller than 8x8.
    """
    if min(images.shape[-2:]) < PATCHES:
        raise GlocalError(f"images: expected at least {PATCHES}x{PATCHES} pixels, got {tuple(images.shape[-2:])}")
    predicted = predict(model, images, batch_size).argmax(1)
    right = predicted if labels is None else labels.to(predicted.device)
    total = sum(len(disturbance.levels) for disturbance in DISTURBANCES) + 1
    done, curves = 0, []
    for disturbance in DISTURBANCES:
        scores = []
        for level in disturbance.levels:
            disturbed = disturbance.apply(images, level, generator=torch.Generator().manual_seed(seed))
            scores.append(_fraction(predict(model, disturbed, batch_size).argmax(1) == right))
            progress(done := done + 1, total)
        curves.append(Curve(disturbance.name, disturbance.unit, disturbance.levels, tuple(scores)))
    shape, texture, pairs = _conflicts(model, images, right, seed, batch_size)
    progress(total, total)
    clean = _fraction(predicted == right)
    return Robustness(len(images), labels is not None, clean, tuple(curves), pairs, shape, texture)


def band_noise(images: Tensor, strength: float, *, band: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Add band-limited Gaussian noise.

    Args:
        images: (B, 3, H, W).
        strength: root mean square of the noise over the std of each image.
        band: lowest and highest frequency in units of pi, the larger of those along rows and columns.
        generator: of the noise, on the CPU.
    """
    rows, columns = (2 * torch.fft.fftfreq(length).abs() for length in images.shape[-2:])
    frequency = torch.maximum(rows[:, None], columns[None, :])
    kept = (frequency >= band[0]) & (frequency <= band[1])
    noise = torch.randn(images.shape, generator=generator)
    noise = torch.fft.ifft2(torch.fft.fft2(noise) * kept).real.to(images)
    noise = noise / noise.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)
    return images + strength * images.flatten(1).std(1)[:, None, None, None] * noise


def occlude(images: Tensor, fraction: float, *, generator: torch.Generator) -> Tensor:
    """Set a fraction of 8x8 patches to the mean colour of the image."""
    order = torch.stack([torch.randperm(PATCHES**2, generator=generator) for _ in images])
    hidden = order < round(fraction * PATCHES**2)
    mask = hidden.view(-1, 1, PATCHES, PATCHES).float().to(images)
    mask = torch.nn.functional.interpolate(mask, size=images.shape[-2:], mode="nearest").bool()
    return torch.where(mask, images.mean((2, 3), keepdim=True), images)


def shuffle(images: Tensor, grid: float, *, generator: torch.Generator) -> Tensor:
    """Shuffle ``grid`` x ``grid`` patches randomly; pixels beyond whole patches stay in place."""
    count = int(grid)
    height, width = (length // count for length in images.shape[-2:])
    made = images.clone()
    cut = images[:, :, : count * height, : count * width]
    patches = cut.unflatten(2, (count, height)).unflatten(4, (count, width)).transpose(3, 4)  # (B, 3, n, n, h, w)
    patches = patches.flatten(2, 3)
    orders = [torch.randperm(count**2, generator=generator).to(images.device) for _ in images]
    moved = torch.stack([patch[:, order] for patch, order in zip(patches, orders, strict=True)])
    moved = moved.unflatten(2, (count, count)).transpose(3, 4)
    made[:, :, : count * height, : count * width] = moved.flatten(4).flatten(2, 3)
    return made


DISTURBANCES = (
    Disturbance("low-frequency noise", "noise / std of the image", STRENGTHS, partial(band_noise, band=LOW)),
    Disturbance("high-frequency noise", "noise / std of the image", STRENGTHS, partial(band_noise, band=HIGH)),
    Disturbance("occlusion", "fraction of the patches", OCCLUDED, occlude),
    Disturbance("shuffled patches", "patches along a side", SHUFFLES, shuffle),
)


def phase_and_amplitude(shape: Tensor, texture: Tensor) -> Tensor:
    """(B, 3, H, W) images with the phase (shape) of the first and the amplitudes (texture) of the second."""
    amplitude, phase = torch.fft.fft2(texture).abs(), torch.fft.fft2(shape).angle()
    return torch.fft.ifft2(torch.polar(amplitude, phase)).real


def _conflicts(
    model: nn.Module, images: Tensor, right: Tensor, seed: int, batch_size: int
) -> tuple[float | None, float | None, int]:
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    pairs = [(a, b) for a, b in zip(order, order.roll(1), strict=True) if right[a] != right[b]]
    if not pairs:
        return None, None, 0
    first, second = (torch.stack(side) for side in zip(*pairs, strict=True))
    answers = predict(model, phase_and_amplitude(images[first], images[second]), batch_size).argmax(1)
    return _fraction(answers == right[first]), _fraction(answers == right[second]), len(pairs)


def _fraction(hits: Tensor) -> float:
    return float(hits.double().mean())
