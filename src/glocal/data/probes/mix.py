"""Mix: the parts of `arrangement` on a `texture`; either says half of the class, so local and global must be joined.

Classes are all pairs of a texture and a layout. Who sees the texture alone or the layout alone is right in half of the
cases, who sees neither in a quarter.
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
