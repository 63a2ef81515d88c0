"""Pictures with predictions: boxes, masks, class names and scores."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from glocal.files import printable

# The report's: Okabe and Ito 2008, told apart with every kind of colour vision (`glocal.report.figures.COLOURS`).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#c0609a", "#a87400", "#3a8fc4", "#7f6eb3", "#8c6d31")
OVERLAY = 0.45
"""How much of a pixel is the colour of its object."""
MOST_NAMED = 8
"""Classes in the legend of a label map, the largest."""
LONGEST_NAME = 40


def draw_objects(
    image: Image.Image,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    masks: np.ndarray | None,
    classes: Sequence[str],
) -> Image.Image:
    """An image with its objects, the surest on top.

    Args:
        image: RGB.
        boxes: (N, 4) x1 y1 x2 y2 in pixels, best first.
        labels: (N,).
        scores: (N,), or None for objects that are there without a doubt.
        masks: (N, H, W) bool, or None.
        classes: names.
    """
    pixels = np.asarray(image).astype(np.float32)
    order = range(len(boxes) - 1, -1, -1)
    if masks is not None:
        for i in order:
            pixels[masks[i]] = (1 - OVERLAY) * pixels[masks[i]] + OVERLAY * np.array(colour(labels[i]), np.float32)
    drawn = Image.fromarray(np.rint(pixels).astype(np.uint8))
    canvas = ImageDraw.Draw(drawn)
    width = max(1, round(min(image.size) / 200))
    font = _font(image)
    for i in order:
        x1, y1, x2, y2 = (float(side) for side in boxes[i])
        canvas.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour(labels[i]), width=width)
        score = "" if scores is None else f" {100 * scores[i]:.0f}"
        _name(canvas, (x1, y1), _short(classes[labels[i]]) + score, colour(labels[i]), font, image.size)
    return drawn


def draw_label_map(image: Image.Image, label_map: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """An image with its classes, those that take most of it named; a class called background is left as it is.

    Args:
        image: RGB.
        label_map: (H, W) integers; pixels of no class, above all labels, are left as they are too.
        classes: names.
    """
    table = np.array([colour(label) for label in range(len(classes) + 1)], np.float32)
    shown = np.array([*(name != "background" for name in classes), False])
    label_map = np.minimum(label_map, len(classes))
    pixels = np.asarray(image).astype(np.float32)
    mixed = (1 - OVERLAY) * pixels + OVERLAY * table[label_map]
    drawn = Image.fromarray(np.rint(np.where(shown[label_map][..., None], mixed, pixels)).astype(np.uint8))
    canvas, font = ImageDraw.Draw(drawn), _font(image)
    counts = np.bincount(label_map.ravel(), minlength=len(shown)) * shown
    top = 0.0
    for label in np.argsort(-counts, kind="stable")[:MOST_NAMED].tolist():
        if counts[label]:
            share = 100 * counts[label] / label_map.size
            top = _name(canvas, (0, top), f"{_short(classes[label])} {share:.0f} %", colour(label), font, image.size)
    return drawn


def colour(label: int) -> tuple[int, int, int]:
    """RGB of a class."""
    text = COLOURS[int(label) % len(COLOURS)]
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _font(image: Image.Image) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=max(9, min(image.size) / 32))


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


def _name(
    canvas: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    background: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> float:
    """White text on a strip of colour, inside the image; where the strip ends below."""
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0.0, min(corner[0], size[0] - width))
    y = max(0.0, min(corner[1], size[1] - height))
    canvas.rectangle((x, y, x + width, y + height), fill=background)
    canvas.text((x + 2 - left, y + 2 - top), text, fill=(255, 255, 255), font=font)
    return y + height + 1
