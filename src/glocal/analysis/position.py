"""Position information in features: a linear probe of row and column, by depth and padding.

Islam et al. 2020, "How Much Position Information Do Convolutional Neural Networks Encode?"
(https://arxiv.org/abs/2001.08248): zero padding encodes position in a CNN. Images are randomly rolled
first, so that their content carries no position information.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glocal.analysis.depth import Point, walk
from glocal.analysis.watch import OnProgress, silent
from glocal.errors import GlocalError, check_choice

PADDINGS = ("zeros", "reflect", "circular")
RIDGES = (1e-4, 1e-2, 1.0, 100.0)  # relative to the mean variance of the features; the best one is used
FOLDS = 4


@dataclass(frozen=True, eq=False)
class PositionPoint:
    """The probe at one point of the depth.

    Attributes:
        name: see `Point`.
        kind: see `Point`.
        size: rows and columns of the map.
        r2: by padding, cross-validated R^2 of row and column: 1 is perfect, 0 the mean; below 0 worse than the mean.
    """

    name: str
    kind: str
    size: tuple[int, int]
    r2: dict[str, float]


@dataclass(frozen=True, eq=False)
class Position:
    """Result of `position`.

    Attributes:
        images: number of images.
        paddings: of the convolutions, in the order of `r2`; models are usually trained with "zeros".
        points: by depth.
    """

    images: int
    paddings: tuple[str, ...]
    points: tuple[PositionPoint, ...]


def position(
    model: nn.Module,
    images: Tensor,
    *,
    paddings: Sequence[str] = PADDINGS,
    layers: Sequence[str] = (),
    roll: bool = True,
    seed: int = 0,
    batch_size: int = 8,
    progress: OnProgress = silent,
) -> Position:
    """R^2 of a linear probe of row and column at each point.

    Args:
        model: any model; the padding of its convolutions is changed temporarily.
        images: (B, 3, H, W) normalised images, at least 8.
        paddings: of `torch.nn.Conv2d`. Pooling and explicit padding are unchanged.
        layers: patterns of module names, as in `walk`.
        roll: whether images are randomly rolled.
        seed: of the shifts.
        batch_size: images per forward pass.
        progress: called with the number of images done, over all paddings.

    Raises:
        GlocalError: if a padding is unknown or too wide for a map, or there are too few images.
    """
    for padding in paddings:
        check_choice("padding", padding, (*PADDINGS, "replicate"))
    if len(images) < 2 * FOLDS:
        raise GlocalError(f"images: expected at least {2 * FOLDS}, got {len(images)}")
    if roll:
        images = _rolled(images, seed)
    found: dict[str, tuple[str, tuple[int, int], dict[str, float]]] = {}
    for i, padding in enumerate(paddings):
        probes: dict[str, Probe] = {}
        with padded(model, padding):
            for start in range(0, len(images), batch_size):
                for point in _walk(model, images[start : start + batch_size], layers, padding):
                    maps = point.output.detach()
                    size = (maps.shape[-2], maps.shape[-1])
                    if min(size) > 1:
                        probes.setdefault(point.name, Probe(maps.shape[1])).add(maps, start)
                        found.setdefault(point.name, (point.kind, size, {}))
                progress(i * len(images) + min(start + batch_size, len(images)), len(paddings) * len(images))
        for name, probe in probes.items():
            found[name][2][padding] = probe.r2()
    points = tuple(PositionPoint(name, *of_point) for name, of_point in found.items())
    return Position(len(images), tuple(paddings), points)


def _walk(model: nn.Module, images: Tensor, layers: Sequence[str], padding: str) -> tuple[Point, ...]:
    try:
        return walk(model, images, layers).points
    except RuntimeError as error:
        if "adding" not in str(error):
            raise
        raise GlocalError(f"padding: {padding} is wider than a map of this model; use larger images") from error


def _rolled(images: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shifts = [
        [int(torch.randint(length, (), generator=generator)) for length in images.shape[-2:]]
        for _ in range(len(images))
    ]
    return torch.stack([image.roll(tuple(by), (1, 2)) for image, by in zip(images, shifts, strict=True)])


@contextmanager
def padded(model: nn.Module, padding: str) -> Iterator[None]:
    """Context in which all convolutions of the model use this padding mode."""
    modes = [(module, module.padding_mode) for module in model.modules() if isinstance(module, nn.Conv2d)]
    try:
        for module, _ in modes:
            module.padding_mode = padding  # type: ignore[assignment]
        yield
    finally:
        for module, mode in modes:
            module.padding_mode = mode


class Probe:
    """Ridge regression of (row, column) on features, in closed form, its score cross-validated over images.

    Rows and columns run from -1 to 1. Only sums of products are stored, so memory does not grow with the images.

    Args:
        dim: channels of the features.
    """

    def __init__(self, dim: int):
        size = dim + 3  # the features, 1, row, column
        self.products = torch.zeros(FOLDS, size, size, dtype=torch.float64)

    def add(self, maps: Tensor, start: int) -> None:
        """Add (B, C, h, w) maps, the first of image number ``start``."""
        height, width = maps.shape[-2:]
        row, column = (torch.linspace(-1, 1, length, dtype=torch.float64) for length in (height, width))
        places = torch.stack([torch.ones(height, width), row[:, None].expand(-1, width), column.expand(height, -1)])
        for i, features in enumerate(maps.double().cpu()):
            sample = torch.cat([features, places.double()]).flatten(1)  # (C + 3, hw)
            self.products[(start + i) % FOLDS] += sample @ sample.T

    def r2(self) -> float:
        """Mean over row and column of 1 - (squared error) / (total sum of squares), on held-out images."""
        return max(self._r2(ridge) for ridge in RIDGES)

    def _r2(self, strength: float) -> float:
        dim = self.products.shape[1] - 2
        errors, total = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for held_out in self.products:
            train = self.products.sum(0) - held_out
            inputs, targets = train[:dim, :dim], train[:dim, dim:]
            ridge = strength * inputs.diagonal()[:-1].mean().clamp(min=1e-12) * torch.eye(dim, dtype=inputs.dtype)
            ridge[-1, -1] = 0  # the constant is free
            weights = torch.linalg.solve(inputs + ridge, targets)  # (C + 1, 2)
            squared = (weights * (held_out[:dim, :dim] @ weights)).sum(0)
            crossed = (weights * held_out[:dim, dim:]).sum(0)
            of_targets = held_out[dim:, dim:].diagonal()
            errors += of_targets - 2 * crossed + squared
            total += of_targets - held_out[dim - 1, dim:] ** 2 / held_out[dim - 1, dim - 1]
        return float((1 - errors / total).mean())
