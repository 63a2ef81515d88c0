"""Similarity of features at two points: linear CKA.

Kornblith et al. 2019 (https://arxiv.org/abs/1905.00414), with the unbiased HSIC of Song et al. 2012 summed over
minibatches as in Nguyen et al. 2021 (https://arxiv.org/abs/2010.15327, §2), so that it does not depend on their size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from glocal.analysis.depth import Point, walk
from glocal.analysis.watch import OnProgress, silent
from glocal.errors import GlocalError

LEAST = 4  # images for which the unbiased HSIC is defined


@dataclass(frozen=True, eq=False)
class Similarity:
    """Result of `similarity`.

    Attributes:
        images: number of images used.
        rows: names of the points of the model.
        columns: of the other model, or the same.
        row_kinds: kinds of the rows.
        column_kinds: kinds of the columns.
        cka: (rows, columns) 1 is equal up to rotation and scale, 0 unrelated; the estimate may slightly exceed
            this range.
    """

    images: int
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_kinds: tuple[str, ...]
    column_kinds: tuple[str, ...]
    cka: np.ndarray


def similarity(
    model: nn.Module,
    images: Tensor,
    other: nn.Module | None = None,
    *,
    other_images: Tensor | None = None,
    layers: Sequence[str] = (),
    batch_size: int = 32,
    progress: OnProgress = silent,
) -> Similarity:
    """Linear CKA between all points of a model, or between those of two models on the same images.

    Args:
        model: any classifier; left unchanged.
        images: (B, 3, H, W) normalised images; more give a better estimate.
        other: a second model.
        other_images: the same images, preprocessed for it; by default ``images``.
        layers: patterns of module names, as in `walk`.
        batch_size: images per minibatch of the estimate; at least 4.
        progress: called with the number of images done.

    Raises:
        GlocalError: if there are fewer than 4 images.
    """
    size = max(LEAST, min(batch_size, len(images)))
    starts = range(0, len(images) - size + 1, size)
    if not starts:
        raise GlocalError(f"images: expected at least {LEAST}, got {len(images)}")
    cross, own_rows, own_columns = (np.zeros(()) for _ in range(3))
    rows: tuple[Point, ...] = ()
    columns: tuple[Point, ...] = ()
    for start in starts:
        rows = walk(model, images[start : start + size], layers).points
        grams = [_gram(point) for point in rows]
        others, columns = grams, rows
        if other is not None:
            given = images if other_images is None else other_images
            columns = walk(other, given[start : start + size], layers).points
            others = [_gram(point) for point in columns]
        cross = cross + np.array([[hsic(a, b) for b in others] for a in grams])
        own_rows = own_rows + np.array([hsic(a, a) for a in grams])
        own_columns = own_columns + np.array([hsic(b, b) for b in others])
        progress(start + size, len(starts) * size)
    scale = np.sqrt(np.outer(np.maximum(own_rows, 1e-300), np.maximum(own_columns, 1e-300)))
    return Similarity(
        images=len(starts) * size,
        rows=tuple(point.name for point in rows),
        columns=tuple(point.name for point in columns),
        row_kinds=tuple(point.kind for point in rows),
        column_kinds=tuple(point.kind for point in columns),
        cka=np.asarray(cross / scale),
    )


def _gram(point: Point) -> Tensor:
    """(B, B) Gram matrix of the features, scaled to the order of 1."""
    features = point.output.detach().double().flatten(1)
    features = features - features.mean(0)
    gram = features @ features.T
    return gram / gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)


def hsic(first: Tensor, second: Tensor) -> float:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion (Song et al. 2012, Eq. 5).

    Args:
        first: (n, n) kernel matrix of n >= 4 samples.
        second: (n, n), likewise.
    """
    n = len(first)
    first, second = (kernel - torch.diag(kernel.diagonal()) for kernel in (first, second))
    trace = (first * second).sum()
    means = first.sum() * second.sum() / ((n - 1) * (n - 2))
    mixed = 2 / (n - 2) * (first.sum(0) @ second.sum(1))
    return float((trace + means - mixed) / (n * (n - 3)))
