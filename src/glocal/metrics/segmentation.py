"""Mean IoU and pixel accuracy of label maps, over the classes in the labels or the predictions, as mmsegmentation."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from glocal.data import IGNORE
from glocal.schema import Scores


class Labelled(NamedTuple):
    """A prediction for one image of the validation set.

    Attributes:
        pixels: (3, K) int64, see `class_pixels`.
        label_map: a PNG.
    """

    pixels: np.ndarray
    label_map: bytes


@dataclass(frozen=True, eq=False)
class Confusion:
    """Confusion matrix of the pixels of images, and their loss.

    Attributes:
        counts: (K, K) int64, a row for each true class, a column for each predicted one.
        loss: sum of the cross-entropy of all labelled pixels.
        images: number of images.
        kept: each of them, where they were to be kept.
    """

    counts: np.ndarray
    loss: float
    images: int
    kept: tuple[Labelled, ...] = ()

    def __len__(self) -> int:
        return self.images

    @property
    def iou(self) -> np.ndarray:
        """(K,) see `class_iou`."""
        return class_iou(class_pixels(self.counts))

    @property
    def miou(self) -> float:
        """See `mean_iou`."""
        return float(mean_iou(class_pixels(self.counts)))

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels that are right."""
        return float(np.diag(self.counts).sum() / max(1, self.counts.sum()))

    @property
    def mean_loss(self) -> float:
        """Of a pixel."""
        return self.loss / max(1, int(self.counts.sum()))

    def to_dict(self) -> Scores:
        """As JSON."""
        per_class = [None if np.isnan(share) else float(share) for share in self.iou]
        return {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "loss": self.mean_loss,
            "per_class": per_class,
            "confusion": self.counts.tolist(),
        }


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K) int64 counts of two label maps, rows are ``labels``; pixels labelled `IGNORE` are ignored."""
    there = labels != IGNORE
    pairs = labels[there].astype(np.int64) * num_classes + predicted[there]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_pixels(matrix: np.ndarray) -> np.ndarray:
    """(K, K) confusion matrix -> (3, K) pixels of each class: true positives, labelled, predicted."""
    return np.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)])


def class_iou(pixels: np.ndarray) -> np.ndarray:
    """(..., 3, K) `class_pixels`, of one image or summed over images -> (..., K) IoU; NaN for an absent class."""
    intersection, labelled, predicted = np.moveaxis(pixels, -2, 0)
    union = labelled + predicted - intersection
    return np.where(union > 0, intersection / np.maximum(union, 1), np.nan)


def mean_iou(pixels: np.ndarray) -> np.ndarray:
    """(..., 3, K) `class_pixels` -> (...) mean of `class_iou` over the classes present; 0 where there is none."""
    iou = class_iou(pixels)
    present = ~np.isnan(iou)
    return np.where(present, iou, 0).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
