"""Data for semantic segmentation: images with label maps, PNGs whose pixels are classes.

ADE20K: Zhou et al. 2017, https://arxiv.org/abs/1608.05442 (SceneParse150). Cityscapes: Cordts et al. 2016,
https://arxiv.org/abs/1604.01685. Pascal VOC: Everingham et al. 2010, https://doi.org/10.1007/s11263-009-0275-4.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from glocal.data.images import ImageError, ImageLimits, open_image, open_label_map
from glocal.data.sets import Skipped

IGNORE = 255  # label of pixels without loss or metric


@dataclass(frozen=True, eq=False)
class SegmentationSample:
    """An image and the class of each of its pixels.

    Attributes:
        image: (H, W, 3) uint8.
        label_map: (H, W) int64, 0..K-1, or IGNORE.
        path: name of the image.
    """

    image: np.ndarray
    label_map: np.ndarray
    path: str


class SegmentationStore(Protocol):
    """Storage of images and label maps."""

    def label_map(self, path: str, row: int) -> SegmentationSample:
        """The image with this path and row, and its label map."""
        ...


@dataclass(frozen=True, eq=False)
class SegmentationSet:
    """One part of a data set for semantic segmentation; read lazily, so it can be large, and pickled.

    Attributes:
        name: "train" or "val".
        classes: class names; a label is an index into them.
        paths: name of each image.
        store: of images and label maps.
        rows: (M,) int64, the row of each image in its store.
    """

    name: str
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    store: SegmentationStore
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> SegmentationSample:
        """Load a sample.

        Raises:
            ImageError: if one of its files can no longer be decoded.
            IndexError: if the index is out of range.
        """
        return self.store.label_map(self.paths[index], int(self.rows[index]))

    def subset(self, positions: np.ndarray | list[int]) -> "SegmentationSet":
        """The samples at these positions, in this order."""
        positions = np.asarray(positions, dtype=np.int64)
        return replace(self, paths=tuple(self.paths[i] for i in positions), rows=self.rows[positions])


@dataclass(frozen=True, eq=False)
class SegmentationSource:
    """A data set for semantic segmentation, checked and split.

    Attributes:
        name: as the user wrote it.
        train: training images.
        val: validation images.
        classes: class names in the order of their labels.
        skipped: skipped files, with reasons.
        warnings: for the user, in sentences.
        split: how train and val were split, in a sentence.
        fingerprint: SHA-256 over the parts, classes, names and contents of all images and label maps.
        counts: part -> (K,) int64 images of each class; empty for a generated set.
    """

    name: str
    train: SegmentationSet
    val: SegmentationSet
    classes: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]
    split: str
    fingerprint: str
    counts: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class LabelMaps:
    """Images and label maps in files: a `SegmentationStore`.

    Attributes:
        root: of the files.
        images: (M) relative to the root.
        maps: (M) the label map of each.
        labels: (256,) int64, value in a label map -> label; -1 for none.
        limits: of the image loader.
        follow_links: whether links to images are followed.
    """

    root: Path
    images: tuple[str, ...]
    maps: tuple[str, ...]
    labels: np.ndarray
    limits: ImageLimits
    follow_links: bool

    def label_map(self, path: str, row: int) -> SegmentationSample:
        """Load a sample; raises ImageError, also if the files have changed since they were checked."""
        name, links = self.maps[row], self.follow_links
        image = np.array(open_image(self.root / self.images[row], limits=self.limits, follow_links=links, name=path))
        values = open_label_map(self.root / name, limits=self.limits, follow_links=links, name=name)
        if values.shape != image.shape[:2]:
            raise ImageError(name, "has changed since it was checked (its size differs from its image's)")
        labels = self.labels[np.minimum(values, 255)]
        if values.max() > 255 or labels.min() < 0:
            raise ImageError(name, "has changed since it was checked (it has values without a class)")
        return SegmentationSample(image=image, label_map=labels, path=path)
