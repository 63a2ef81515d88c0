"""Arrangement: two light and two dark squares at the corners of a square; the class is which corners match.

The parts are the same in every image. In each class a corner is light as often as dark, so one corner gives chance
accuracy (1/3). Two corners give 2/3: they match in one class only. Three determine the class. Parts are separated from
each other and from the border by a gap at least as wide as a part: no 5-pixel patch contains two parts, and patches
have the same distribution in all classes.
"""

import numpy as np

from glocal.data.probes.canvas import SIDE

CLASSES = ("rows", "columns", "diagonals")
DISTANCES = (8, 11, 14, 17)
"""Pixels from the centre of a part to that of the next."""
PART = 4
"""Side of a part, pixels."""
GAP = 4
"""Least width of ground between two parts, and between a part and the border, pixels."""
DARK, LIGHT = 16, 240
GROUND = 120, 136
"""Grey levels of the ground, chosen at random for each pixel."""
ALIKE = {"rows": (0, 1), "columns": (0, 2), "diagonals": (0, 3)}
"""By class: two matching corners in reading order; the other two have the other colour."""


def draw(rng: np.random.Generator, label: int, distance: int) -> np.ndarray:
    """(SIDE, SIDE) uint8 of one class; with the same generator the classes have the same frame at the same place.

    Args:
        rng: of the image.
        label: index into `CLASSES`.
        distance: from part to part, pixels.
    """
    image = rng.choice(np.array(GROUND, np.uint8), (SIDE, SIDE))
    place(image, rng, CLASSES[label], distance)
    return image


def place(image: np.ndarray, rng: np.random.Generator, layout: str, distance: int) -> None:
    """Draw the four parts into an image of ``SIDE`` x ``SIDE``, at a random position, in random colours."""
    top, left = rng.integers(GAP, SIDE - GAP - PART - distance, endpoint=True, size=2)
    colours = np.full(4, DARK)
    colours[list(ALIKE[layout])] = LIGHT
    if rng.random() < 0.5:
        colours = DARK + LIGHT - colours
    for corner, colour in enumerate(colours):
        y, x = top + corner // 2 * distance, left + corner % 2 * distance
        image[y : y + PART, x : x + PART] = colour
