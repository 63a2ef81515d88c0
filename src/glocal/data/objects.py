"""Detection data sets: images with boxes, labels and masks, split into train and val."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from glocal.data.sets import Skipped


@dataclass(frozen=True)
class SkippedObject(Skipped):
    """A skipped annotation, and why.

    Attributes:
        path: the image, or the annotation file if it does not name one.
        annotation: id of the object in the annotation file, or its index ("#3", counted from 0).
    """

    annotation: int | str = ""


def where(bad: Skipped) -> str:
    """File, and annotation if any, for messages."""
    return f"{bad.path}, annotation {bad.annotation}" if isinstance(bad, SkippedObject) else bad.path


@dataclass(frozen=True, eq=False)
class DetectionSample:
    """An image and its N objects; N may be 0.

    Attributes:
        image: (H, W, 3) uint8.
        boxes: (N, 4) float32, x1 y1 x2 y2 in pixels from the upper left corner of the image, 0 <= x1 < x2 <= W.
        labels: (N,) int64, 0..K-1.
        masks: (N, H, W) bool, or None where the data has no masks.
        crowd: (N,) bool, objects that the metric ignores: COCO's iscrowd, VOC's difficult.
        area: (N,) float32, pixels, from the annotation, else the mask, else the box.
        image_id: from the annotation.
        path: name of the image.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    crowd: np.ndarray
    area: np.ndarray
    image_id: int | str
    path: str


class DetectionStore(Protocol):
    """Storage of images and objects."""

    def sample(self, path: str, row: int) -> DetectionSample:
        """The image with this path and row, and its objects."""
        ...


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """One part of a data set for detection; read lazily, so it can be large, and pickled.

    Attributes:
        name: "train" or "val".
        classes: class names; a label is an index into them.
        paths: name of each image.
        store: of images and objects.
        rows: (M,) int64, the row of each image in its store.
    """

    name: str
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    store: DetectionStore
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> DetectionSample:
        """Load a sample.

        Raises:
            ImageError: if its file can no longer be decoded.
            IndexError: if the index is out of range.
        """
        return self.store.sample(self.paths[index], int(self.rows[index]))

    def subset(self, positions: np.ndarray | list[int]) -> "DetectionSet":
        """The samples at these positions, in this order."""
        positions = np.asarray(positions, dtype=np.int64)
        return replace(self, paths=tuple(self.paths[i] for i in positions), rows=self.rows[positions])


@dataclass(frozen=True, eq=False)
class DetectionSource:
    """A data set for detection, checked and split.

    Attributes:
        name: as the user wrote it.
        train: training images.
        val: validation images.
        classes: class names in the order of their labels.
        skipped: skipped files and objects, with reasons.
        warnings: for the user, in sentences.
        split: how train and val were split, in a sentence.
        fingerprint: SHA-256 over the parts, classes, names and contents of all images, and their objects.
        category_ids: the data's id of each class, used for prediction files.
        counts: part -> (K,) int64 objects of each class, without crowds; empty for a generated set.
    """

    name: str
    train: DetectionSet
    val: DetectionSet
    classes: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]
    split: str
    fingerprint: str
    category_ids: tuple[int, ...]
    counts: Mapping[str, np.ndarray]
