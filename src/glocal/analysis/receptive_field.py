"""Effective receptive field of the central unit, by depth.

Luo et al. 2016, "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", §3
(https://arxiv.org/abs/1701.04128). They use the gradient of the unit summed over its channels; channels can cancel
(after a LayerNorm exactly), so random signs are used here, which on average gives the norm of the unit's Jacobian.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from glocal.analysis.depth import Point, walk
from glocal.analysis.watch import OnProgress, silent

MASS = 0.95  # of the gradient, in the definition of the area
NEGLIGIBLE = 1e-6  # of the largest gradient: rounding noise


@dataclass(frozen=True, eq=False)
class FieldPoint:
    """The receptive field at one point of the depth.

    Attributes:
        name: see `Point`.
        kind: see `Point`.
        layout: see `Point`.
        size: rows and columns of the map.
        field: (H, W) gradient magnitude at each pixel of the image; sums to 1.
        area: smallest fraction of the image with 95 % of the gradient.
        radius: root mean square distance in pixels from the unit's position.
        reach: height and width in pixels of the bounding box of non-negligible gradients.
        elongation: vertical std over horizontal std; 1 is round.
    """

    name: str
    kind: str
    layout: str
    size: tuple[int, int]
    field: np.ndarray
    area: float
    radius: float
    reach: tuple[int, int]
    elongation: float


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """Result of `receptive_field`.

    Attributes:
        images: number of images.
        image_size: height and width in pixels.
        points: by depth.
    """

    images: int
    image_size: tuple[int, int]
    points: tuple[FieldPoint, ...]


def receptive_field(
    model: nn.Module,
    images: Tensor,
    *,
    layers: Sequence[str] = (),
    most: int | None = None,
    probes: int = 1,
    seed: int = 0,
    batch_size: int = 8,
    progress: OnProgress = silent,
) -> ReceptiveField:
    """Effective receptive field of the centre unit by depth, averaged over images.

    The root of the mean, over images and probes, of the squared gradient summed over colours.

    Args:
        model: any classifier; left unchanged.
        images: (B, 3, H, W) normalised images; use a few tens for smooth fields.
        layers: patterns of module names, as in `walk`.
        most: maximum number of points, evenly spaced over the depth and including the last; by default all. Each
            takes a backward pass over all images.
        probes: random signs drawn for each batch.
        seed: of the signs.
        batch_size: images per forward pass.
        progress: called with the number of images done.
    """
    generator = torch.Generator().manual_seed(seed)
    squared: dict[str, Tensor] = {}
    points: tuple[Point, ...] = ()
    for start in range(0, len(images), batch_size):
        found = walk(model, images[start : start + batch_size], layers)
        chosen = _spread(found.points, most)
        points = points or chosen
        for point in chosen:
            unit = point.output[:, :, point.output.shape[2] // 2, point.output.shape[3] // 2]  # (B, C)
            for _ in range(probes):
                signs = torch.randint(2, unit.shape, generator=generator).to(unit) * 2 - 1
                (gradient,) = torch.autograd.grad((unit * signs).sum(), found.images, retain_graph=True)
                squared[point.name] = squared.get(point.name, 0) + gradient.double().square().sum((0, 1))
        progress(start + len(found.images), len(images))
    size = (images.shape[-2], images.shape[-1])
    return ReceptiveField(len(images), size, tuple(_describe(p, squared[p.name].sqrt()) for p in points))


def _spread(points: tuple[Point, ...], most: int | None) -> tuple[Point, ...]:
    count = len(points) if most is None else min(most, len(points))
    return tuple(points[(i + 1) * len(points) // count - 1] for i in range(count))


def _describe(point: Point, field: Tensor) -> FieldPoint:
    grid = (point.output.shape[-2], point.output.shape[-1])
    made = (field / field.sum().clamp(min=torch.finfo(field.dtype).tiny)).numpy(force=True)
    centre = [(length // 2 + 0.5) * pixels / length for length, pixels in zip(grid, made.shape, strict=True)]
    rows, columns = (np.arange(pixels) + 0.5 - middle for pixels, middle in zip(made.shape, centre, strict=True))
    across, down = made.sum(0), made.sum(1)
    spread = [float((mass * place**2).sum()) for mass, place in ((down, rows), (across, columns))]
    held = np.cumsum(np.sort(made, axis=None)[::-1])
    used = made > NEGLIGIBLE * made.max()
    return FieldPoint(
        name=point.name,
        kind=point.kind,
        layout=point.layout,
        size=grid,
        field=made,
        area=float(np.searchsorted(held, MASS - 1e-12) + 1) / made.size,
        radius=sum(spread) ** 0.5,
        reach=(_extent(used.any(1)), _extent(used.any(0))),
        elongation=(_std(down) / max(_std(across), 1e-12)),
    )


def _extent(used: np.ndarray) -> int:
    places = np.flatnonzero(used)
    return int(places[-1] - places[0] + 1) if len(places) else 0


def _std(mass: np.ndarray) -> float:
    places = np.arange(len(mass))
    mean = (mass * places).sum()
    return float(((mass * (places - mean) ** 2).sum()) ** 0.5)
