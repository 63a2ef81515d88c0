"""Texture: two classes that differ only in the parity of neighbouring cells.

Black and white cells in which the product of every 2x2 block is mostly +1 (even) or mostly -1 (odd): the isodipole
textures of Julesz, Gilbert and Victor 1978, https://doi.org/10.1007/BF00336998, with noise, so that the correlation of
the four corners of a rectangle decays with its area (the family of Victor and Conte 1991,
https://doi.org/10.1016/0042-6989(91)90146-2). Single cells, pairs and triples of cells are independent and uniform in
both classes: mean, variance, spectrum and third-order statistics are equal at every distance.
"""

import numpy as np

from glocal.data.probes.canvas import SIDE

CLASSES = ("even", "odd")
DISTANCES = (2, 4, 6)
"""Sides of a block in pixels: two cells of 1, 2 or 3."""
FAITHFUL = 0.9
"""Fraction of the blocks with the parity of their class."""
DARK, LIGHT = 48, 208


def draw(rng: np.random.Generator, label: int, distance: int) -> np.ndarray:
    """(SIDE, SIDE) uint8 of one class; with the same generator the classes differ in one cell of each 2x2 block.

    Args:
        rng: of the image.
        label: index into `CLASSES`.
        distance: side of a block of 2x2 cells, pixels.
    """
    return np.where(cells(rng, label, distance), LIGHT, DARK).astype(np.uint8)


def cells(rng: np.random.Generator, label: int, distance: int, side: int = SIDE) -> np.ndarray:
    """(side, side) bool, whether a pixel is light; arguments as of `draw`."""
    cell = distance // 2
    count = -(-side // cell) + 1
    flips = rng.random((count, count)) >= FAITHFUL  # of the parity of the block that ends here
    flips[0], flips[:, 0] = rng.random((2, count)) < 0.5  # first row and column: random
    lattice = (flips.cumsum(0) % 2).cumsum(1) % 2
    if CLASSES[label] == "odd":
        lattice[1::2, 1::2] ^= 1  # one cell of each 2x2 block, wherever it lies
    top, left = rng.integers(cell, size=2)
    return np.kron(lattice, np.ones((cell, cell), np.uint8))[top : top + side, left : left + side].astype(bool)
