"""Images and targets changed together: mirrored, scaled, and cut or filled to a size; by numbers drawn beforehand."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from glocal.data import IGNORE

JITTER = (0.8, 1.25)
"""Scales of ``augment: light`` for detection: the standard jitter of Ghiasi et al. 2021 (Copy-Paste), §3."""
SCALES = (0.5, 2.0)
"""Scales of ``augment: light`` for segmentation, as the papers' recipes of mmsegmentation have them."""
LONGEST = 16
"""Times the shorter side that an image is long at most when it is resized; one that is longer is pressed to that.
Scaled as it is, a picture of 1 x 2000 pixels would be one of 512 x 1,024,000."""
FILL = (124, 116, 104)
"""Outside the image: ImageNet's mean, which becomes about 0."""


class View(NamedTuple):
    """How an image is looked at.

    Attributes:
        flip: mirrored left to right, first.
        scale: factor on both sides, before it is cut.
        across: where it is cut or put, 0 far left to 1 far right.
        down: 0 top to 1 bottom.
    """

    flip: bool
    scale: float
    across: float
    down: float


def view_of(drawn: np.ndarray, *, flip: bool, scales: tuple[float, float] | None) -> View:
    """A view by the (4,) numbers of `glocal.training.augment.draws`; the scale is uniform in its logarithm."""
    down, across, side, size = (int(number) / 2**32 for number in drawn)
    scale = 1.0 if scales is None else scales[0] * (scales[1] / scales[0]) ** size
    return View(flip and side >= 0.5, scale, across, down)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (height, width, 3), bilinear, with antialiasing."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def size_at(height: int, width: int, size: float) -> tuple[int, int]:
    """(height, width) of an image whose shorter side is resized to ``size``."""
    factor = size / min(height, width)
    most = max(1, round(LONGEST * size))
    return min(most, max(1, round(height * factor))), min(most, max(1, round(width * factor)))


def resize_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(..., H, W) -> (..., height, width): of each new pixel the one that its centre lies in."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for new, old in ((height, labels.shape[-2]), (width, labels.shape[-1]))
    )
    return labels[..., rows[:, None], columns]


class Place(NamedTuple):
    """Where an image of one size comes to lie in one of another: offsets are negative where it is cut."""

    top: int
    left: int


def place_of(view: View, inner: tuple[int, int], outer: tuple[int, int]) -> Place:
    """The offsets of ``inner`` (H, W) in ``outer``, by the view's draws."""
    return Place(
        *(
            int(share * (room + 1)) if room >= 0 else -int(share * (1 - room))
            for share, room in (
                (view.down, outer[0] - inner[0]),
                (view.across, outer[1] - inner[1]),
            )
        )
    )


def put(array: np.ndarray, place: Place, height: int, width: int, fill: object) -> np.ndarray:
    """(H, W, ...) -> (height, width, ...), at its place, with ``fill`` around it."""
    out = np.empty((height, width, *array.shape[2:]), array.dtype)
    out[:] = fill
    top, left = max(place.top, 0), max(place.left, 0)
    bottom = min(place.top + array.shape[0], height)
    right = min(place.left + array.shape[1], width)
    out[top:bottom, left:right] = array[top - place.top : bottom - place.top, left - place.left : right - place.left]
    return out


def look_at_objects(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, masks: np.ndarray | None, view: View
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """An image and its objects through a view of its own size; objects of which nothing is left are left out.

    Args:
        image: (H, W, 3) uint8.
        boxes: (N, 4) float32, x1 y1 x2 y2 in pixels.
        labels: (N,).
        masks: (N, H, W) bool, or None.
        view: how.

    Returns:
        The same four.
    """
    height, width = image.shape[:2]
    if view.flip:
        image = image[:, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
        masks = None if masks is None else masks[:, :, ::-1]
    if view.scale == 1:
        return image, boxes, labels, masks
    inner = max(1, round(height * view.scale)), max(1, round(width * view.scale))
    place = place_of(view, inner, (height, width))
    image = put(resize_image(image, *inner), place, height, width, FILL)
    grown = np.array([inner[1] / width, inner[0] / height] * 2, np.float32)
    boxes = boxes * grown + np.array([place.left, place.top] * 2, np.float32)
    boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
    left = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(axis=1)
    if masks is not None:
        moved = put(resize_labels(masks, *inner).transpose(1, 2, 0), place, height, width, False)
        masks = moved.transpose(2, 0, 1)
        left &= masks.any(axis=(1, 2))
        masks = masks[left]
    return image, boxes[left], labels[left], masks


def look_at_pixels(image: np.ndarray, label_map: np.ndarray, view: View, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A square of an image and its label map: shorter side to ``size`` times the scale, then cut or filled.

    Args:
        image: (H, W, 3) uint8.
        label_map: (H, W).
        view: how.
        size: side of the square, pixels.

    Returns:
        (size, size, 3) and (size, size), `IGNORE` around the image.
    """
    if view.flip:
        image, label_map = image[:, ::-1], label_map[:, ::-1]
    height, width = label_map.shape
    inner = size_at(height, width, view.scale * size)
    place = place_of(view, inner, (size, size))
    return (
        put(resize_image(np.ascontiguousarray(image), *inner), place, size, size, FILL),
        put(resize_labels(label_map, *inner), place, size, size, IGNORE),
    )
