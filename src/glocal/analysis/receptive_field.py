"""What part of the image a unit in the centre sees, by depth: the effective receptive field.

Luo et al. 2016, "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", §3
(https://arxiv.org/abs/1701.04128). They take the gradient of the unit, summed over its channels; channels can cancel
out (after a LayerNorm they do so exactly), so here signs are drawn at random, which on average gives the size of the
whole Jacobian of the unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from glocal.analysis.depth import Point, walk
from glocal.analysis.watch import Progress, silent

HELD = 0.95  # of the gradient, by which an area is told
NOTHING = 1e-6  # of the largest gradient: the rounding of a place that does not count


@dataclass(frozen=True, eq=False)
class FieldPoint:
    """The receptive field at one point of the depth.

    Attributes:
        name: see `Point`.
        kind: see `Point`.
        layout: see `Point`.
        size: rows and columns of the map.
        field: (H, W) size of the gradient at each pixel of the image; sums to 1.
        area: least share of the image's pixels that hold 95 % of the gradient.
        radius: root mean square distance in pixels from the unit's own place.
        reach: height and width in pixels of the box of all pixels that count at all.
        elongation: deviation down over deviation across; 1 is round.
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
        images: how many.
        image_size: height and width in pixels.
        points: in the order of the depth.
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
    progress: Progress = silent,
) -> ReceptiveField:
    """Effective receptive field of the centre unit by depth, averaged over images.

    The root of the mean, over images and probes, of the squared gradient summed over colours.

    Args:
        model: any classifier; left as it was.
        images: (B, 3, H, W) normalised images; a few tens make the field smooth.
        layers: patterns of module names, as in `walk`.
        most: points that are measured, spread evenly over the depth, the last among them; by default all. Each takes
            a backward pass of all images.
        probes: random signs drawn for each batch.
        seed: of the signs.
        batch_size: images that are run at once.
        progress: told how many images are done.
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
    spread = [float((share * place**2).sum()) for share, place in ((down, rows), (across, columns))]
    held = np.cumsum(np.sort(made, axis=None)[::-1])
    used = made > NOTHING * made.max()
    return FieldPoint(
        name=point.name,
        kind=point.kind,
        layout=point.layout,
        size=grid,
        field=made,
        area=float(np.searchsorted(held, HELD - 1e-12) + 1) / made.size,
        radius=sum(spread) ** 0.5,
        reach=(_extent(used.any(1)), _extent(used.any(0))),
        elongation=(_std(down) / max(_std(across), 1e-12)),
    )


def _extent(used: np.ndarray) -> int:
    places = np.flatnonzero(used)
    return int(places[-1] - places[0] + 1) if len(places) else 0


def _std(share: np.ndarray) -> float:
    places = np.arange(len(share))
    mean = (share * places).sum()
    return float(((share * (places - mean) ** 2).sum()) ** 0.5)
