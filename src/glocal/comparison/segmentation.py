"""Segmenters compared by mean IoU."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from glocal.comparison.heads import Headed
from glocal.comparison.measure import Examined
from glocal.comparison.settings import Run
from glocal.metrics.segmentation import Confusion, mean_iou
from glocal.tasks import SegmentImages
from glocal.training.trainer import TrainResult


class Segmenters(Headed):
    """Each model the backbone of one kind of segmenter."""

    assign = SegmentImages
    numbers = ("miou", "pixel_accuracy", "loss")
    lists = ("per_class", "confusion")

    def entry(self, run: Run, result: TrainResult) -> dict[str, Any]:
        """IoU and the confusion matrix."""
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
        """Mean IoU; of a single image too."""
        pixels = predictions["pixels"].astype(np.float64)
        score = float(mean_iou(pixels.sum(axis=0)))
        of_image = np.where(pixels.any(axis=(1, 2)), mean_iou(pixels), np.nan)
        return Examined(score, mean_iou(np.tensordot(drawn.astype(np.float64), pixels, 1)), of_image)
