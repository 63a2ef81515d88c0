"""Features in any layout as (B, C, h, w) maps."""

from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

MAX_PREFIX = 16  # class, distillation and register tokens


class Grid(NamedTuple):
    """A token grid over an image: `prefix` tokens first, then rows x columns."""

    prefix: int
    rows: int
    columns: int


@lru_cache(maxsize=4096)
def grid_of(count: int, height: int, width: int) -> Grid | None:
    """The grid of ``count`` tokens over an image of this size; None if there is none.

    A grid is the image size over an integer stride, rounded up or down; the one with the fewest prefix tokens wins.
    """
    grids = (
        Grid(count - rows * columns, rows, columns)
        for stride in range(1, max(height, width) + 1)
        for rows in {height // stride, -(-height // stride)}
        for columns in {width // stride, -(-width // stride)}
        if rows * columns and 0 <= count - rows * columns <= MAX_PREFIX
    )
    return min(grids, default=None)


def to_map(x: Tensor, height: int, width: int, fine: tuple[int, int] | None = None) -> Tensor | None:
    """Features of an image of this size -> their (B, C, h, w) map without prefix tokens; None if they are not a map.

    (B, C, h, w) is unchanged, (B, h, w, C) is permuted if only then the size fits the image, (B, N, C) is reshaped by
    `grid_of`. Six axes are cells of s x s pixels, (B, C, h, s, w, s) or (B, h, s, w, s, C), or windows,
    (B, h, w, s, s, C); they are merged.

    Args:
        x: the features.
        height: of the image, in pixels.
        width: likewise.
        fine: the two of six axes inside a cell, if known.
    """
    if x.ndim == 3 and (grid := grid_of(x.shape[1], height, width)):
        return x[:, grid.prefix :].transpose(1, 2).unflatten(2, grid[1:])
    if x.ndim == 6:
        _, a, b, c, d, e = x.shape
        if (fine == (3, 5) or (fine is None and c == e)) and _fits(b * c, d * e, height, width):
            return x.flatten(4).flatten(2, 3)
        if fine is None and c == d and _fits(a * c, b * d, height, width):
            return x.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
        if (fine == (2, 4) or (fine is None and b == d)) and _fits(a * b, c * d, height, width):
            return x.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
    if x.ndim != 4:
        return None
    _, a, b, c = x.shape
    last = _fits(a, b, height, width) and not _fits(b, c, height, width)
    return x.permute(0, 3, 1, 2) if last else x


def _fits(rows: int, columns: int, height: int, width: int) -> bool:
    return any(
        rows in (height // stride, -(-height // stride)) and columns in (width // stride, -(-width // stride))
        for stride in range(1, max(height, width) + 1)
    )
