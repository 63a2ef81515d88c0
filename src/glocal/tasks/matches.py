"""What average precision depends on, image by image, so that it can be computed for any draw of the images.

Which found object is which true one does not depend on other images. So it is found once, as COCO's evaluation does
(Lin et al. 2014; pycocotools' `COCOeval.evaluateImg`), and the precision of images drawn with replacement is that of
images with weights: how often each was drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glocal.tasks.precision import MOST_FOUND, Found, Truth

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
CELLS = 2**22
"""Draws times found objects that are looked at together: 32 MiB."""


@dataclass(frozen=True, eq=False)
class Matches:
    """Found objects and whether they are true ones.

    Attributes:
        image: (D,) int64, position of the image; objects of an image stand together.
        place: (D,) int64, position among what was found on the image.
        label: (D,) int64.
        score: (D,) float32.
        right: (D, 10) bool, whether it is a true object at each of `OVERLAPS`.
        neither: (D, 10) bool, whether it is in a crowd, which is neither right nor wrong.
        objects: (N, K) int64, how many objects of each class are on each image, crowds left out.
    """

    image: np.ndarray
    place: np.ndarray
    label: np.ndarray
    score: np.ndarray
    right: np.ndarray
    neither: np.ndarray
    objects: np.ndarray

    def best_threshold(self) -> float:
        """The score from which on what was found agrees best with the truth: F1 at an overlap of 0.5, all classes.

        1 where nothing found is right.
        """
        order = np.argsort(-self.score, kind="stable")
        order = order[~self.neither[order, 0]]
        right = self.right[order, 0].cumsum()
        f1 = 2 * right / (np.arange(1, len(order) + 1) + self.objects.sum())
        return float(self.score[order[f1.argmax()]]) if right.any() else 1.0

    def f1_of_images(self, threshold: float) -> np.ndarray:
        """(N,) F1 of each image at an overlap of 0.5, of objects from a score on; NaN where nothing is or was found."""
        counted = (self.score >= threshold) & ~self.neither[:, 0]
        num_images = len(self.objects)
        right = np.bincount(self.image[counted & self.right[:, 0]], minlength=num_images)
        both = np.bincount(self.image[counted], minlength=num_images) + self.objects.sum(axis=1)
        return np.where(both > 0, 2 * right / np.maximum(both, 1), np.nan)

    def average_precision(self, weights: np.ndarray | None = None) -> np.ndarray:
        """COCO's average precision of boxes, the mean over classes and overlaps, for draws of the images.

        A class without an object on the images of a draw is left out of its mean; where there is none at all it is 0.
        Objects of equal score stand in the order of their images, those of an image drawn twice one after the other.

        Args:
            weights: (draws, N) how often each image is in each draw; by default one draw with each image once.

        Returns:
            (draws,) from 0 to 1.
        """
        if weights is None:
            weights = np.ones((1, len(self.objects)), np.int64)
        total, classes = np.zeros(len(weights)), np.zeros(len(weights))
        for label in np.flatnonzero(self.objects.any(axis=0)).tolist():
            found = np.flatnonzero(self.label == label)
            found = found[np.argsort(-self.score[found], kind="stable")]
            rows = max(1, CELLS // max(1, len(found)))
            for start in range(0, len(weights), rows):
                part = slice(start, start + rows)
                objects = weights[part] @ self.objects[:, label]
                total[part] += self._of_class(found, weights[part], objects)
                classes[part] += objects > 0
        return total / np.maximum(classes, 1)

    def _of_class(self, found: np.ndarray, weights: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """(draws,) mean over overlaps and recalls; 0 for a draw without objects.

        Precision is looked at where an object is right: nowhere else it rises, and recall rises there alone.
        """
        drawn = weights[:, self.image[found]]  # (draws, found)
        seen = drawn.cumsum(axis=1)
        total = np.zeros(len(weights))
        for right, neither in zip(self.right[found].T, self.neither[found].T, strict=True):
            hits = np.flatnonzero(right)
            if not len(hits):
                continue
            true = drawn[:, hits].cumsum(axis=1)
            counted = seen[:, hits]
            if neither.any():
                counted = counted - (drawn * neither).cumsum(axis=1)[:, hits]
            precision = true / np.maximum(counted, 1)
            best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            reached = np.searchsorted(RECALLS, true / np.maximum(objects, 1)[:, None], side="right")
            total += (np.diff(reached, axis=1, prepend=0) * best_from_here).sum(axis=1)
        return np.where(objects > 0, total / (len(OVERLAPS) * len(RECALLS)), 0.0)


def match(truths: Sequence[Truth], founds: Sequence[Found], num_classes: int) -> Matches:
    """Found boxes beside true ones, image by image.

    The surest box takes the object it overlaps most, each object once; crowds are taken where nothing else is, by any
    number. Counted are the `MOST_FOUND` surest of each class and image.

    Args:
        truths: what is on each image.
        founds: what was found on it.
        num_classes: labels are below.
    """
    image, place, label, score, right, neither = [], [], [], [], [], []
    objects = np.zeros((len(truths), num_classes), np.int64)
    for position, (truth, found) in enumerate(zip(truths, founds, strict=True)):
        boxes, labels, crowd = (np.asarray(part) for part in (truth.boxes, truth.labels, truth.crowd))
        objects[position] = np.bincount(labels[~crowd], minlength=num_classes)
        for of_class in np.unique(found.labels).tolist():
            mine = np.flatnonzero(found.labels == of_class)
            mine = mine[np.argsort(-found.scores[mine], kind="stable")][:MOST_FOUND]
            there = np.flatnonzero(labels == of_class)
            there = there[np.argsort(crowd[there], kind="stable")]
            taken, ignored = _match(_overlaps(found.boxes[mine], boxes[there], crowd[there]), crowd[there])
            image.append(np.full(len(mine), position))
            place.append(mine)
            label.append(np.full(len(mine), of_class))
            score.append(found.scores[mine])
            right.append(taken & ~ignored)
            neither.append(ignored)
    none = np.zeros((0, len(OVERLAPS)), bool)
    return Matches(
        image=np.concatenate([np.zeros(0, np.int64), *image]).astype(np.int64),
        place=np.concatenate([np.zeros(0, np.int64), *place]).astype(np.int64),
        label=np.concatenate([np.zeros(0, np.int64), *label]).astype(np.int64),
        score=np.concatenate([np.zeros(0, np.float32), *score]).astype(np.float32),
        right=np.concatenate([none, *right]),
        neither=np.concatenate([none, *neither]),
        objects=objects,
    )


def _overlaps(found: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(M, G) intersection over union; of a crowd, intersection over the found box."""
    found, true = found.astype(np.float64)[:, None], true.astype(np.float64)[None]
    sides = np.minimum(found[..., 2:], true[..., 2:]) - np.maximum(found[..., :2], true[..., :2])
    both = np.clip(sides, 0, None).prod(axis=-1)
    area_found, area_true = ((box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (found, true))
    return both / np.where(crowd, area_found, area_found + area_true - both)


def _match(overlaps: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, G) overlaps, surest first, crowds last -> (M, 10) whether anything is taken, and whether it is a crowd."""
    taken, ignored = (np.zeros((len(overlaps), len(OVERLAPS)), bool) for _ in range(2))
    free = np.ones((len(OVERLAPS), overlaps.shape[1]), bool)
    needed = np.minimum(OVERLAPS, 1 - 1e-10)[:, None]
    places = np.arange(overlaps.shape[1])
    for number in np.flatnonzero((overlaps >= needed[0]).any(axis=1)).tolist():
        can = (overlaps[number] >= needed) & free  # (10, G)
        one = can & ~crowd
        can = np.where(one.any(axis=1, keepdims=True), one, can)
        # of equal overlaps the last, as pycocotools takes it
        best = len(places) - 1 - np.where(can, overlaps[number], -1.0)[:, ::-1].argmax(axis=1)
        some = can.any(axis=1)
        taken[number], ignored[number] = some, some & crowd[best]
        free[some & ~crowd[best], best[some & ~crowd[best]]] = False
    return taken, ignored
