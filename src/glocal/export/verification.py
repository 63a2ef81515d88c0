"""Compare the outputs of an exported file with its model, on real images."""

import math
from collections.abc import Sequence
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from glocal.data import load_data
from glocal.data.transforms import Normalize, resize_crop
from glocal.errors import GlocalError, first_line
from glocal.export.description import STEP, Description, Format
from glocal.export.loading import ExportedModel

TOLERANCE = 1e-4
"""Of the largest difference relative to the largest logit. The order of sums makes differences of 1e-6
(docs/results/export.md)."""
TOLERANCE_HALF: dict[Format, float] = {"onnx": 1e-2, "openvino": 5e-2, "torch-export": 5e-2, "aoti": 5e-2}
"""float16 has 11 bits, bfloat16 has 8: they differ by 1e-3 and 1e-2."""
OTHER_BATCH = 5
"""A second batch size to check."""
OTHER_SIZE = STEP, 2 * STEP
"""Added to height and width for a second size; different, to detect swapped axes."""


class Check(NamedTuple):
    """Difference between the logits of a file and of its model.

    Attributes:
        batch_size: of the images.
        image_size: height and width.
        difference: largest absolute difference.
        relative: relative to the largest logit.
    """

    batch_size: int
    image_size: tuple[int, int]
    difference: float
    relative: float


class VerificationError(GlocalError):
    """The logits of a file differ from its model's.

    Attributes:
        checks: all checks.
    """

    def __init__(self, message: str, checks: tuple[Check, ...]) -> None:
        super().__init__(message)
        self.checks = checks


class Reference:
    """A model on real images, preprocessed by its description."""

    def __init__(self, model: nn.Module, images: Sequence[Image.Image], description: Description) -> None:
        self.model, self.images, self.description = model, images, description

    def batch(self, count: int, size: tuple[int, int]) -> Tensor:
        """(count, 3, H, W) float32, normalised."""
        of = self.description
        return to_batch(
            self.images, count, size, crop_pct=of.crop_pct, interpolation=of.interpolation, mean=of.mean, std=of.std
        )

    def logits(self, count: int, size: tuple[int, int]) -> Tensor:
        """(count, K) float32.

        Raises:
            GlocalError: if the model does not take images of this size, or is not a classifier.
        """
        height, width = size
        try:
            with torch.inference_mode():
                logits = self.model(self.batch(count, size))
        except Exception as error:  # models may raise anything
            raise GlocalError(
                f"size: {self.description.name} cannot be run on {height} x {width} images: {first_line(error)}"
            ) from error
        if not (isinstance(logits, Tensor) and logits.ndim == 2 and bool(logits.isfinite().all())):
            raise GlocalError(f"{self.description.name}: expected finite (B, K) logits, got something else")
        return logits

    def check(
        self, exported: ExportedModel, batch_sizes: Sequence[int], sizes: Sequence[tuple[int, int]]
    ) -> list[Check]:
        """Check each batch size at each image size; non-finite logits give an infinite difference."""
        checks = []
        for size in sizes:
            for count in batch_sizes:
                expected, got = self.logits(count, size), exported(self.batch(count, size))
                difference = float((got - expected).abs().max()) if bool(got.isfinite().all()) else math.inf
                largest = float(expected.abs().max())
                checks.append(Check(count, size, difference, difference and difference / max(largest, 1e-30)))
        return checks


def builtin_images(count: int) -> list[Image.Image]:
    """The first test images of the built-in fashion-mini, RGB."""
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
    """(count, 3, H, W) float32, normalised; images repeat if there are too few."""
    pixels = np.stack([resize_crop(image, size, crop_pct, interpolation) for image in islice(cycle(images), count)])
    return Normalize(mean, std)(torch.from_numpy(pixels).permute(0, 3, 1, 2)).contiguous()
