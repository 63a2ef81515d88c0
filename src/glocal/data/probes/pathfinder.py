"""Pathfinder: are two marked ends joined by one dashed contour, or on two different ones?

After Linsley et al. 2018, https://arxiv.org/abs/1805.08315 (§3, Fig. 1), and Houtkamp and Roelfsema 2010,
https://doi.org/10.1037/a0020248: two dashed curved contours of equal length, two markers on ends, short distractors.
Reimplemented from the description, for small images, with dark markers on grey, and stricter in one point: the four
ends P, Q, R, S are the corners of a rhombus, contours join P with Q and R with S, and the markers are at P and Q
(joined) or at P and R (apart). R is the mirror image of Q at the axis through P and S, and their roles, the rotation
and the position are random, so both classes have the same contours and distractors, and markers at the same positions
and distance. Most scenes are nearly straight and upright; otherwise small models stay at chance within the minutes
that a probe may take.
"""

import numpy as np
from PIL import Image, ImageDraw

from glocal.data.probes.canvas import SIDE

CLASSES = ("joined", "apart")
DISTANCES = (8, 10, 12, 14)
"""Length of a contour from end to end, pixels."""
DASH, GAP = 2.4, 0.8
"""Pixels of a dash and of the gap after it."""
WIDTH = 2.2
"""Of a dash, pixels."""
MARKER = 2.5
"""Radius of a marker, pixels."""
DISTRACTORS = 1
"""Short contours of two dashes that end at no marker."""
APART = 4.0
"""Least distance between the two contours, pixels."""
MARGIN = 3.0
"""Between a contour and the border of the image, pixels."""
BENDS = 0.25, 0.12
"""Largest amplitudes of the two waves a contour is bent by, as fractions of the distance between its ends."""
ANGLES = 85.0, 95.0
"""Of the rhombus at P, degrees."""
TURN = 30.0
"""Largest turn of the rhombus from upright, degrees."""
POWER = 5
"""Bends and turn are their maxima times u ** POWER, u uniform in [0, 1]."""
GROUND, INK, SPOT = 112, 255, 0
"""Grey levels of the ground, of contours and of markers."""
FINE = 4
"""Supersampling factor of the drawing."""
POINTS = 17
"""Of a contour, for its length and distances."""
TRIES = 16
"""Scenes drawn at once, of which the first that fits is used; positions tried for a distractor."""


def draw(rng: np.random.Generator, label: int, distance: int) -> np.ndarray:
    """(SIDE, SIDE) uint8 of one class; with the same generator the classes differ only in the position of one marker.

    Args:
        rng: of the image.
        label: index into `CLASSES`.
        distance: length of a contour, pixels.
    """
    contours, short = scene(rng, distance)
    (p, q), (r, _) = contours[:, [0, -1]]
    image = Image.new("L", (SIDE * FINE, SIDE * FINE), GROUND)
    pen = ImageDraw.Draw(image)
    for contour in (*contours, *short):
        for dash in FINE * dashes(contour):
            pen.line([(point.real, point.imag) for point in dash], fill=INK, width=round(WIDTH * FINE))
    radius = MARKER * FINE
    for marked in FINE * np.array([p, q if CLASSES[label] == "joined" else r]):
        x, y = marked.real, marked.imag
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=SPOT)
    return np.asarray(image.reduce(FINE))


def scene(rng: np.random.Generator, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """The contours and distractors, common to both classes.

    Returns:
        The contours P to Q and R to S, (2, POINTS), and the distractors, (DISTRACTORS, 2): x + iy in pixels.
    """
    while True:
        contours, mirrored = _contours(rng, distance)
        apart = np.abs(contours[:, 0, :, None] - contours[:, 1, None, :]).min((1, 2))
        both = np.concatenate([contours, mirrored], axis=1).reshape(TRIES, -1)
        x, y = both.real, both.imag  # of the mirror image too, so that fitting does not depend on the class
        low = x.min(1) + 1j * y.min(1)
        slack = SIDE - 2 * MARGIN - np.stack([np.ptp(x, 1), np.ptp(y, 1)], -1)
        fits = np.flatnonzero((apart >= APART) & (slack >= 0).all(1))
        if len(fits):
            break
    right, down = rng.random(2) * slack[fits[0]]
    found = contours[fits[0]] - low[fits[0]] + MARGIN * (1 + 1j) + right + 1j * down
    return found, _distractors(rng, found)


def _contours(rng: np.random.Generator, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates (TRIES, 2, POINTS) with P at 0, and their mirror images at the axis through P and S."""
    t = np.linspace(0, 1, POINTS)
    waves = np.stack([np.sin(np.pi * t), np.sin(2 * np.pi * t)])
    sizes = BENDS * rng.random((TRIES, 1, 2)) ** POWER  # the same for both contours: equal lengths
    bulge = sizes * rng.choice((-1, 1), (TRIES, 2, 2)) @ waves  # (TRIES, 2, POINTS)
    length = np.hypot(np.diff(bulge[:, 0]), t[1]).sum(-1)
    sense = rng.choice((-1, 1), TRIES)  # of the turn from Q to R
    turn = np.radians(45.0 + 90.0 * rng.integers(4, size=TRIES) + TURN * rng.uniform(-1, 1, TRIES) ** POWER)
    axis = (distance / length * np.exp(1j * turn))[:, None, None]  # through P and S
    half = np.exp(0.5j * sense * np.radians(rng.uniform(*ANGLES, TRIES)))[:, None]
    curves = axis / half[:, None] * (t + 1j * sense[:, None, None] * bulge)
    curves[:, 1] += axis[:, 0] * half
    return curves, np.conj(curves / axis) * axis


def _distractors(rng: np.random.Generator, contours: np.ndarray) -> np.ndarray:
    """(DISTRACTORS, 2) ends of short contours, each the farthest from other contours of several candidates."""
    taken = contours[:, ::2].ravel()
    length = 2 * DASH + GAP
    found = np.empty((DISTRACTORS, 2), complex)
    for i in range(DISTRACTORS):
        x, y = rng.uniform(MARGIN + length / 2, SIDE - MARGIN - length / 2, (2, TRIES))
        along = length * np.exp(1j * np.pi * rng.random(TRIES))
        points = (x + 1j * y)[:, None] + along[:, None] * np.linspace(-0.5, 0.5, 5)  # (TRIES, 5)
        free = np.abs(points[:, :, None] - taken).min((1, 2))
        best = points[np.argmax(free)]
        taken = np.concatenate([taken, best])
        found[i] = best[[0, -1]]
    return found


def dashes(contour: np.ndarray) -> np.ndarray:
    """(n, 3) points of the dashes along a contour given by its points; it begins and ends with a dash."""
    place = np.concatenate([[0.0], np.abs(np.diff(contour)).cumsum()])
    count = 1 + 2 * max(0, round((place[-1] + GAP) / (DASH + GAP) / 2 - 0.5))  # odd: one dash is in the middle
    stretch = place[-1] / (count * (DASH + GAP) - GAP)
    starts = np.arange(count) * (DASH + GAP) * stretch
    return np.interp(starts[:, None] + DASH * stretch * np.linspace(0, 1, 3), place, contour)
