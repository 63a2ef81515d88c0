"""Classification data sets: images with labels, split into train and val."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from glocal.data.images import ImageLimits, open_image
from glocal.errors import GlocalError
from glocal.files import printable


@dataclass(frozen=True)
class Skipped:
    """A skipped file, and why."""

    path: str
    reason: str


class Store(Protocol):
    """Storage of images."""

    def image(self, path: str, row: int) -> Image.Image:
        """The image with this path and row, RGB."""
        ...


@dataclass(frozen=True)
class Folder:
    """Images in files under a root."""

    root: Path
    limits: ImageLimits
    follow_links: bool

    def image(self, path: str, row: int) -> Image.Image:
        """Load an image; raises ImageError."""
        return open_image(self.root / path, limits=self.limits, follow_links=self.follow_links, name=path)


@dataclass(frozen=True)
class Array:
    """Grey images in memory, (N, H, W) uint8."""

    pixels: np.ndarray

    def image(self, path: str, row: int) -> Image.Image:
        """The grey image as RGB."""
        return Image.fromarray(self.pixels[row]).convert("RGB")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One part of a data set: training, validation or test.

    Attributes:
        name: "train", "val" or "test".
        classes: class names; a label is an index into them.
        labels: (N,) int64.
        paths: of each image under the data's root, or a name such as "val/00017".
        store: of the images.
        rows: (N,) int64, the row of each image in its store.
        groups: (N,) int64, the shard of each image, if reading by shard is faster (`shards.shuffled`); else None.
        distances: (N,) pixels over which a model must integrate to classify the image, if known
            (`glocal.data.probes`); else None.
    """

    name: str
    classes: tuple[str, ...]
    labels: np.ndarray
    paths: tuple[str, ...]
    store: Store
    rows: np.ndarray
    groups: np.ndarray | None = None
    distances: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        """The image, RGB.

        Raises:
            ImageError: if its file can no longer be decoded.
        """
        return self.store.image(self.paths[index], int(self.rows[index]))

    def subset(self, indices: np.ndarray | list[int]) -> "ImageSet":
        """The images at these indices, in this order."""
        indices = np.asarray(indices, dtype=np.int64)
        paths = tuple(self.paths[i] for i in indices)
        groups = None if self.groups is None else self.groups[indices]
        distances = None if self.distances is None else self.distances[indices]
        return replace(
            self, labels=self.labels[indices], paths=paths, rows=self.rows[indices], groups=groups, distances=distances
        )

    def fraction(self, fraction: float, seed: int) -> "ImageSet":
        """A fraction of each class, at least one image; nested: a smaller fraction is a subset of a larger one.

        Raises:
            GlocalError: if fraction is not above 0 and at most 1.
        """
        if not 0 < fraction <= 1:
            raise GlocalError(f"fraction: expected a number above 0 and at most 1, got {fraction}")
        if fraction == 1:
            return self
        order = np.random.default_rng(seed).permutation(len(self))
        kept = []
        for label in range(len(self.classes)):
            members = order[self.labels[order] == label]
            kept.append(members[: max(1, round(fraction * len(members)))])
        return self.subset(np.sort(np.concatenate(kept)))


@dataclass(frozen=True, eq=False)
class DataSource:
    """A data set, checked and split.

    Attributes:
        name: as the user wrote it.
        train: training images.
        val: validation images.
        classes: class names in the order of their labels; both parts have images of each.
        skipped: skipped files, with reasons.
        warnings: for the user, in sentences.
        split: how train and val were split, in a sentence.
        fingerprint: SHA-256 over the parts, classes, paths and contents of all images.
        test: images that choose nothing, neither weights nor a model; None if there are none. Classes may be missing.
    """

    name: str
    train: ImageSet
    val: ImageSet
    classes: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]
    split: str
    fingerprint: str
    test: ImageSet | None = None


def warn_of_duplicates(
    train: Iterable[tuple[str, str]], val: Iterable[tuple[str, str]], *, part: str = "val", other: str = "train"
) -> tuple[str, ...]:
    """A warning if identical images are in train and val.

    Args:
        train: (path, digest) of each image.
        val: likewise.
        part: name of the second part.
        other: name of the first part.
    """
    in_train = {digest: path for path, digest in train}
    twins = [f"{path} = {in_train[digest]}" for path, digest in val if digest in in_train]
    if not twins:
        return ()
    return (
        f"images of {part} that are also in {other}, byte for byte: {some(twins)}; "
        f"the accuracy on them is not on unseen images",
    )


def some(names: list[str]) -> str:
    """The number of names, and the first three."""
    return f"{len(names)} ({', '.join(printable(name) for name in names[:3])}{', ...' * (len(names) > 3)})"
