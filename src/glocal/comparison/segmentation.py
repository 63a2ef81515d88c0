"""Segmenters compared by the mean overlap of classes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from glocal.comparison.heads import Headed
from glocal.comparison.measure import Examined
from glocal.comparison.settings import Run
from glocal.tasks import SegmentImages
from glocal.tasks.segmentation import Confusion
from glocal.training.trainer import TrainResult


class Segmenters(Headed):
    """Each model the backbone of one kind of segmenter."""

    assign = SegmentImages
    numbers = ("miou", "pixel_accuracy", "loss")
    lists = ("per_class", "confusion")

    def entry(self, run: Run, result: TrainResult) -> dict[str, Any]:
        """Overlaps, and which class was taken for which."""
        scores = self._assignment(run.fraction).results(result.outcomes)
        return {key: value for key, value in scores.items() if key not in ("classes", "images")}

    def predictions(self, outcomes: Confusion) -> dict[str, np.ndarray]:
        """Pixels of each image by class, (N, 3, K): right ones, true ones, predicted ones; and label maps as PNGs.

        PNG ``i`` is the bytes of ``maps`` from ``starts[i]`` to ``starts[i + 1]``.
        """
        maps = [one.label_map for one in outcomes.kept]
        return {
            "pixels": np.stack([one.pixels for one in outcomes.kept]),
            "maps": np.frombuffer(b"".join(maps), np.uint8),
            "starts": np.cumsum([0, *map(len, maps)]),
        }

    def examine(self, predictions: Mapping[str, np.ndarray], drawn: np.ndarray) -> Examined:
        """Mean overlap; of an image alone too."""
        pixels = predictions["pixels"].astype(np.float64)
        score = float(mean_overlap(pixels.sum(axis=0, keepdims=True))[0])
        of_image = np.where(pixels.any(axis=(1, 2)), mean_overlap(pixels), np.nan)
        return Examined(score, mean_overlap(np.tensordot(drawn.astype(np.float64), pixels, 1)), of_image)


def mean_overlap(pixels: np.ndarray) -> np.ndarray:
    """`Confusion.miou` of single images, or of sums over them.

    Args:
        pixels: (M, 3, K) right, true and predicted pixels of each class.

    Returns:
        (M,) the mean over the classes that are in the truth or the prediction; 0 where there is none.
    """
    right, true, predicted = np.moveaxis(pixels, 1, 0)
    either = true + predicted - right
    there = either > 0
    return np.where(there, right / np.maximum(either, 1), 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
