"""Segmenters compared by mIoU."""

from collections.abc import Mapping

import numpy as np

from glocal.comparison.heads import Examined, HeadMetric, draws
from glocal.metrics.segmentation import Confusion, mean_iou
from glocal.tasks import SegmentationTask, Task


class MeanIoU(HeadMetric):
    """Mean IoU over classes."""

    key = SegmentationTask.metric
    lists = ("per_class", "confusion", "curve")

    def predictions(self, task: Task, outcomes: Confusion) -> dict[str, np.ndarray]:
        """Pixels of each image by class, (N, 3, K): true positives, targets, predictions; and label maps as PNGs.

        PNG ``i`` is the bytes of ``maps`` from ``starts[i]`` to ``starts[i + 1]``.
        """
        maps = [one.label_map for one in outcomes.kept]
        return {
            "pixels": np.stack([one.pixels for one in outcomes.kept]),
            "maps": np.frombuffer(b"".join(maps), np.uint8),
            "starts": np.cumsum([0, *map(len, maps)]),
        }

    def evidence(self, predictions: Mapping[str, np.ndarray]) -> Examined:
        """Mean IoU, over all images and of single images."""
        pixels = predictions["pixels"].astype(np.float64)
        score = float(mean_iou(pixels.sum(axis=0, keepdims=True))[0])
        of_image = np.where(pixels.any(axis=(1, 2)), mean_iou(pixels), np.nan)
        drawn = draws(len(pixels)).astype(np.float64)
        return Examined(score, mean_iou(np.tensordot(drawn, pixels, 1)), of_image)
