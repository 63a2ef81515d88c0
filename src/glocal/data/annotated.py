"""Annotated objects, checked against their images, in a few flat arrays."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from glocal.data.images import ImageError, ImageLimits, open_image
from glocal.data.measured import Measured, measure_files
from glocal.data.objects import DetectionSample
from glocal.data.rle import mask_from_counts, mask_from_polygon
from glocal.data.sets import Skipped

TOLERANCE = 1.0  # pixels that a box may exceed its image without a warning: rounding of masks
LEAST_SIDE = 0.01  # pixels; a smaller box has no area in float32 ...
LEAST_FRACTION = 2.0**-22  # ... nor has one below this fraction of the image's longer side
LARGEST = 1e7  # pixels, of any coordinate: beyond it the annotation is broken
MOST_MASK_BYTES = 4 * 2**30  # of the masks of one image


class ObjectError(ValueError):
    """An unusable annotation; the text is the reason."""


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image entry of an annotation file.

    Attributes:
        name: relative to the folder of images.
        image_id: referenced by objects.
        size: width and height, if given.
    """

    name: str
    image_id: int | str
    size: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Object:
    """A checked object.

    Attributes:
        box: x1 y1 x2 y2 in pixels, inside its image.
        label: 0..K-1.
        crowd: whether the metric ignores it.
        area: pixels; NaN if the annotation has none.
        polygons: (P, 2) float64 each, x y in pixels.
        counts: run lengths, instead of polygons.
    """

    box: tuple[float, float, float, float]
    label: int
    crowd: bool
    area: float
    polygons: tuple[np.ndarray, ...] = ()
    counts: np.ndarray | None = None

    @property
    def has_mask(self) -> bool:
        """Whether it has polygons or run lengths."""
        return bool(self.polygons) or self.counts is not None


@dataclass(frozen=True, eq=False)
class Outlines:
    """Polygons and run lengths of A objects.

    Attributes:
        values: (V,) float64, x y x y ... of polygons, and counts of runs.
        pieces: (P + 1,) int64, where each polygon or list of runs begins in values.
        objects: (A + 1,) int64, where each object begins in pieces.
        runs: (A,) bool, whether an object has runs; else it has polygons.
    """

    values: np.ndarray
    pieces: np.ndarray
    objects: np.ndarray
    runs: np.ndarray

    def draw(self, number: int, mask: np.ndarray) -> None:
        """Draw an object into an empty mask, (H, W) bool."""
        for piece in range(self.objects[number], self.objects[number + 1]):
            values = self.values[self.pieces[piece] : self.pieces[piece + 1]]
            if self.runs[number]:
                mask |= mask_from_counts(values.astype(np.int64), *mask.shape)
            else:
                mask |= mask_from_polygon(values.reshape(-1, 2), *mask.shape)

    def of(self, first: int, last: int) -> np.ndarray:
        """The values of the objects from first to before last."""
        return self.values[self.pieces[self.objects[first]] : self.pieces[self.objects[last]]]


@dataclass(frozen=True, eq=False)
class Annotated:
    """Images in files and objects in arrays: a `DetectionStore`.

    Attributes:
        folder: of the images.
        names: (M) of the images, relative to it.
        image_ids: (M).
        sizes: (M, 2) int64, width and height.
        spans: (M + 1,) int64, where the objects of each image begin.
        boxes: (A, 4) float32.
        labels: (A,) int64.
        crowd: (A,) bool.
        area: (A,) float32; NaN if the annotation has none.
        outlines: of the objects; None unless all have one.
        limits: of the image loader.
        follow_links: whether links to images are followed.
    """

    folder: Path
    names: tuple[str, ...]
    image_ids: tuple[int | str, ...]
    sizes: np.ndarray
    spans: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    outlines: Outlines | None
    limits: ImageLimits
    follow_links: bool

    def sample(self, path: str, row: int) -> DetectionSample:
        """Load a sample; raises ImageError, also if the image size has changed since it was checked."""
        file = self.folder / self.names[row]
        image = np.array(open_image(file, limits=self.limits, follow_links=self.follow_links, name=path))
        height, width = image.shape[:2]
        if (width, height) != tuple(self.sizes[row]):
            raise ImageError(
                path, f"has changed since it was checked (it was {self.sizes[row]}, is {width} x {height})"
            )
        first, last = self.spans[row], self.spans[row + 1]
        boxes, area = self.boxes[first:last].copy(), self.area[first:last].copy()
        masks = None
        sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        if self.outlines is not None:
            masks = np.zeros((last - first, height, width), dtype=bool)
            for number, mask in enumerate(masks, first):
                self.outlines.draw(number, mask)
            sizes = masks.sum(axis=(1, 2), dtype=np.float32)
        return DetectionSample(
            image=image,
            boxes=boxes,
            labels=self.labels[first:last].copy(),
            masks=masks,
            crowd=self.crowd[first:last].copy(),
            area=np.where(np.isnan(area), sizes, area),
            image_id=self.image_ids[row],
            path=path,
        )

    def counts(self, rows: np.ndarray, num_classes: int) -> np.ndarray:
        """Objects of each class on some of the images, without crowds, (K,) int64."""
        row_of = np.repeat(np.arange(len(self.names)), np.diff(self.spans))
        counted = np.isin(row_of, rows) & ~self.crowd
        return np.bincount(self.labels[counted], minlength=num_classes).astype(np.int64)

    def update(self, digest: "hashlib._Hash", row: int) -> None:
        """Take the name, the id and the objects of an image into a digest."""
        digest.update(f"{self.names[row]}\0{self.image_ids[row]!r}\0".encode("utf-8", "surrogateescape"))
        first, last = self.spans[row], self.spans[row + 1]
        for array in (self.boxes, self.labels, self.crowd, self.area):
            digest.update(array[first:last].tobytes())
        if self.outlines is not None:
            digest.update(self.outlines.of(first, last).tobytes())


@dataclass(frozen=True, eq=False)
class CheckedPart:
    """The usable images and objects of an annotation file, and the unusable ones.

    Attributes:
        store: images and objects.
        paths: name of each image.
        digests: SHA-256 of each image's bytes.
        skipped: unusable images and objects.
        clipped: number of boxes clipped to their image.
        notes: for the user, in sentences.
    """

    store: Annotated
    paths: tuple[str, ...]
    digests: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    clipped: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """Options for reading files.

    Attributes:
        limits: of the image loader.
        follow_links: whether links are followed.
        progress: show a progress bar.
        workers: decoding processes.
    """

    limits: ImageLimits = field(default_factory=ImageLimits)
    follow_links: bool = False
    progress: bool = True
    workers: int | None = None


def measure_images(
    folder: Path, shown: dict[str, str], images: Sequence[ListedImage], reading: Reading
) -> tuple[dict[int | str, tuple[ListedImage, Measured]], list[Skipped]]:
    """Decode every listed image.

    Args:
        folder: of the images.
        shown: name of an image -> its name in messages.
        images: of the annotation file.
        reading: options.

    Returns:
        image id -> image and its measurements, in order; and the unusable images.
    """
    found = measure_files(
        folder,
        [image.name for image in images],
        reading.limits,
        kind="image",
        follow_links=reading.follow_links,
        progress=reading.progress,
        workers=reading.workers,
    )
    good, skipped = {}, []
    for image in images:
        measured = found[image.name]
        reason = measured.reason
        if reason is None and image.size not in (None, measured.size):
            reason = _other_size(image.size or (0, 0), measured.size)
        if reason is None:
            good[image.image_id] = image, measured
        else:
            skipped.append(Skipped(shown[image.name], reason))
    return good, skipped


def _other_size(said: tuple[int, int], found: tuple[int, int]) -> str:
    turned = "; upright, by its EXIF orientation" if said == found[::-1] else ""
    return f"size differs from its annotation ({found[0]} x {found[1]}{turned}, not {said[0]} x {said[1]})"


def clip_box(
    box: tuple[float, float, float, float], width: int, height: int
) -> tuple[tuple[float, float, float, float], bool]:
    """The box clipped to its image, and whether it exceeded it by more than the tolerance.

    Args:
        box: x1 y1 x2 y2 in pixels.
        width: of the image.
        height: of the image.

    Raises:
        ObjectError: if it has no area, or none inside the image.
    """
    x1, y1, x2, y2 = box
    if not all(abs(side) <= LARGEST for side in box):  # NaN too
        raise ObjectError(f"box with NaN or far outside the image ({_numbers(box)})")
    least = max(LEAST_SIDE, LEAST_FRACTION * max(width, height))
    if x2 - x1 < least or y2 - y1 < least:
        raise ObjectError(f"box without area ({x2 - x1:g} x {y2 - y1:g})")
    clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if clipped[2] - clipped[0] < least or clipped[3] - clipped[1] < least:
        raise ObjectError(f"box outside the image ({_numbers(box)} on {width} x {height})")
    return clipped, max(abs(a - b) for a, b in zip(box, clipped, strict=True)) > TOLERANCE


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def collect(
    folder: Path,
    shown: dict[str, str],
    images: Sequence[tuple[ListedImage, Measured]],
    objects: Sequence[Sequence[Object]],
    reading: Reading,
    *,
    skipped: Sequence[Skipped],
    clipped: int,
) -> CheckedPart:
    """Checked images and objects -> arrays.

    Args:
        folder: of the images.
        shown: name of an image -> its name in messages.
        images: usable ones.
        objects: of each.
        reading: options.
        skipped: unusable ones; images whose masks need too much memory are added.
        clipped: number of boxes clipped to their image.
    """
    with_mask = sum(one.has_mask for of_image in objects for one in of_image)
    number = sum(map(len, objects))
    masks = 0 < with_mask == number
    notes = (f"masks are ignored: {number - with_mask} of {number} objects have none",) * (0 < with_mask < number)
    skipped = list(skipped)
    kept = []
    for (image, measured), of_image in zip(images, objects, strict=True):
        size = len(of_image) * measured.size[0] * measured.size[1]
        if masks and size > MOST_MASK_BYTES:
            reason = f"masks above the limit ({len(of_image)} of them have {size / 2**30:.1f} GiB, the limit is 4 GiB)"
            skipped.append(Skipped(shown[image.name], reason))
        else:
            kept.append((image, measured, of_image))
    every = [one for _, _, of_image in kept for one in of_image]
    store = Annotated(
        folder=folder,
        names=tuple(image.name for image, _, _ in kept),
        image_ids=tuple(image.image_id for image, _, _ in kept),
        sizes=np.array([measured.size for _, measured, _ in kept], dtype=np.int64).reshape(-1, 2),
        spans=_starts([len(of_image) for _, _, of_image in kept]),
        boxes=np.array([one.box for one in every], dtype=np.float32).reshape(-1, 4),
        labels=np.array([one.label for one in every], dtype=np.int64),
        crowd=np.array([one.crowd for one in every], dtype=bool),
        area=np.array([one.area for one in every], dtype=np.float32),
        outlines=_outlines(every) if masks else None,
        limits=reading.limits,
        follow_links=reading.follow_links,
    )
    paths = tuple(shown[image.name] for image, _, _ in kept)
    digests = tuple(measured.digest for _, measured, _ in kept)
    return CheckedPart(store, paths, digests, tuple(skipped), clipped, notes)


def _outlines(objects: Sequence[Object]) -> Outlines:
    pieces = [one.polygons if one.counts is None else (one.counts,) for one in objects]
    flat = [np.asarray(piece, dtype=np.float64).ravel() for of_object in pieces for piece in of_object]
    return Outlines(
        values=np.concatenate(flat) if flat else np.zeros(0),
        pieces=_starts([len(piece) for piece in flat]),
        objects=_starts([len(of_object) for of_object in pieces]),
        runs=np.array([one.counts is not None for one in objects], dtype=bool),
    )


def _starts(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.array(lengths, dtype=np.int64))]).astype(np.int64)
