"""Metrics of predictions: they know arrays, no model and no training."""

from glocal.metrics.classification import Metrics, Outcomes, score
from glocal.metrics.coco import Detections, Matches, Targets, average_precision, match
from glocal.metrics.segmentation import Confusion, confusion_matrix, mean_iou

__all__ = [
    "Confusion",
    "Detections",
    "Matches",
    "Metrics",
    "Outcomes",
    "Targets",
    "average_precision",
    "confusion_matrix",
    "match",
    "mean_iou",
    "score",
]
