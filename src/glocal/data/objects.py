"""What the other rooms see of data for detection: images with boxes, labels and masks, in two parts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from glocal.data.sets import Skipped


@dataclass(frozen=True)
class SkippedObject(Skipped):
    """An object that is not among those of its image, and why.

    Attributes:
        path: the image, or the annotation file where that does not say which image.
        annotation: id of the object in the annotation file, or its place there ("#3", counted from 0).
    """

    annotation: int | str = ""


def where(bad: Skipped) -> str:
    """File, and object if it is one, for messages."""
    return f"{bad.path}, annotation {bad.annotation}" if isinstance(bad, SkippedObject) else bad.path


@dataclass(frozen=True, eq=False)
class DetectionSample:
    """An image and the N objects on it, N = 0 included.

    Attributes:
        image: (H, W, 3) uint8.
        boxes: (N, 4) float32, x1 y1 x2 y2 in pixels from the upper left corner of the image, 0 <= x1 < x2 <= W.
        labels: (N,) int64, 0..K-1.
        masks: (N, H, W) bool, or None where the data has no masks.
        crowd: (N,) bool, areas that are neither found nor missed: COCO's iscrowd, VOC's difficult.
        area: (N,) float32, pixels, as the annotation says; else of the mask, else of the box.
        image_id: as the annotation says.
        path: what the image is called.
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
    """Where images and objects are."""

    def sample(self, path: str, row: int) -> DetectionSample:
        """The image with this path and row, and what is on it."""
        ...


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """One part of a data set for detection; read anew at each access, so it can be large, and pickled.

    Attributes:
        name: "train" or "val".
        classes: class names; a label is an index into them.
        paths: what each image is called.
        store: where images and objects are.
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
        """The sample, its image through the gate.

        Raises:
            ImageError: if its file can no longer be decoded.
            IndexError: beyond the last.
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
        name: what the user called it.
        train: images to learn from.
        val: images to measure on.
        classes: class names in the order of their labels.
        skipped: files and objects left out, with reasons.
        warnings: what the user should know, in sentences.
        split: how the two parts came about, in a sentence.
        fingerprint: SHA-256 over the parts, classes, names and contents of all images, and their objects.
        category_ids: the data's own id of each class, which predictions are written with.
        counts: part -> (K,) int64 objects of each class, crowds left out; empty for a generated set.
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
