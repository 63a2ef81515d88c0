"""Mix: the parts of `arrangement` on a `texture`; each determines half of the class, so both are needed.

Classes are all pairs of a texture and a layout. Texture or layout alone gives an accuracy of 1/2, neither 1/4.
"""

import numpy as np

from glocal.data.probes import arrangement, texture

LAYOUTS = ("rows", "columns")
CLASSES = tuple(f"{ground} {layout}" for ground in texture.CLASSES for layout in LAYOUTS)
DISTANCES = arrangement.DISTANCES
DARK, LIGHT = 96, 160


def draw(rng: np.random.Generator, label: int, distance: int) -> np.ndarray:
    """(SIDE, SIDE) uint8 of one class; with the same generator the classes have the same frame at the same place.

    Args:
        rng: of the image.
        label: index into `CLASSES`.
        distance: from part to part, pixels.
    """
    ground, layout = divmod(label, len(LAYOUTS))
    block = int(rng.choice(texture.DISTANCES))
    image = np.where(texture.cells(rng, ground, block), LIGHT, DARK).astype(np.uint8)
    arrangement.place(image, rng, LAYOUTS[layout], distance)
    return image
