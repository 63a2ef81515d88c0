"""Images as a model wants them, and the real ones that an export is verified on."""

from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np
import torch
from PIL import Image, ImageOps

from glocal.data import load_data
from glocal.export.description import Size
from glocal.training import Normalize


def prepare(
    image: Image.Image, size: tuple[int, int], crop_pct: float = 1.0, interpolation: str = "bicubic"
) -> np.ndarray:
    """The rule of size: scale to cover ``size / crop_pct``, and take the centre; `glocal.training.fit` for any size.

    Args:
        image: RGB.
        size: height and width in pixels.
        crop_pct: share of each side that the centre keeps.
        interpolation: a name of Pillow's, small letters.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = size
    method = Image.Resampling[interpolation.upper()]
    return np.asarray(ImageOps.fit(image, (width, height), method, bleed=(1 - crop_pct) / 2))


def height_and_width(size: Size) -> tuple[int, int]:
    """Of an image, from its side or from both."""
    return (size, size) if isinstance(size, int) else size


def builtin_images(count: int) -> list[Image.Image]:
    """Real images that need no folder: the first test images of fashion-mini, RGB."""
    images = load_data("fashion-mini").val
    return [images.image(index) for index in range(min(count, len(images)))]


def to_batch(
    images: Sequence[Image.Image],
    count: int,
    size: tuple[int, int],
    *,
    crop_pct: float,
    interpolation: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> torch.Tensor:
    """(count, 3, H, W) float32, normalised; images come again where there are too few."""
    pixels = np.stack([prepare(image, size, crop_pct, interpolation) for image in islice(cycle(images), count)])
    return Normalize(mean, std)(torch.from_numpy(pixels).permute(0, 3, 1, 2)).contiguous()
