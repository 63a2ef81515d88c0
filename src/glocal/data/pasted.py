"""items-on-photos: real items of Fashion-MNIST pasted on real photographs, with boxes, masks and label maps.

Made to try detection and segmentation without a download: every sample is generated on access from
(seed, part, index) and files shipped with the package. Train and val share no items; backgrounds come from the left
half of each photograph for train, from the right half for val.
Pasting to generate training data: Dwibedi et al. 2017, https://arxiv.org/abs/1708.01642.
"""

import colorsys
import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from glocal.data import builtin
from glocal.data.label_maps import SegmentationSample, SegmentationSet, SegmentationSource
from glocal.data.objects import DetectionSample, DetectionSet, DetectionSource
from glocal.data.sets import Array
from glocal.errors import GlocalError

NAME = "items-on-photos"
VERSION = 3  # raise it when the same seed gives other samples
PHOTOS = ("brick", "chelsea", "coffee", "grass", "gravel", "hubble", "retina", "rocket")
REGIONS = {"train": (0.0, 0.5), "val": (0.5, 1.0)}  # of a photograph, from left to right
COUNTS = {"train": 4800, "val": 200}
SPLIT = "generated; train and val share no items and no parts of photographs"
SIZE, LEAST_SIZE, MOST_SIZE = 128, 64, 2048
MOST_ITEMS = 8
TRIES = 8  # positions tried for an item before it is skipped
LEAST_VISIBLE = 0.75  # fraction of each item that stays visible
SIDES = (0.2, 0.5)  # of an item, as a fraction of the image's
TURN = 10.0  # degrees
OPAQUE = 128  # smallest alpha of a pixel of the item


@dataclass(frozen=True)
class Pasted:
    """Samples drawn from (seed, part, index): a `DetectionStore` and a `SegmentationStore`.

    Attributes:
        part: train or val.
        size: height and width of the images.
        seed: of all samples.
    """

    part: str
    size: int
    seed: int

    def sample(self, path: str, row: int) -> DetectionSample:
        """Image and objects; box, mask and area cover the visible part of each."""
        image, labels, owner = self._draw(row)
        masks = owner == np.arange(1, len(labels) + 1)[:, None, None]
        return DetectionSample(
            image=image,
            boxes=np.array([_box(mask) for mask in masks], dtype=np.float32),
            labels=labels,
            masks=masks,
            crowd=np.zeros(len(labels), dtype=bool),
            area=masks.sum(axis=(1, 2), dtype=np.float32),
            image_id=row,
            path=path,
        )

    def label_map(self, path: str, row: int) -> SegmentationSample:
        """The same image, with a class for each pixel; 0 is the background."""
        image, labels, owner = self._draw(row)
        return SegmentationSample(image=image, label_map=np.append(0, labels + 1)[owner], path=path)

    def _draw(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8, labels (N,) int64, and which item each pixel shows, (H, W) int64, 0 for none."""
        rng = np.random.default_rng((VERSION, self.seed, list(REGIONS).index(self.part), row))
        photos, items, classes = _materials(self.part)
        image = _background(photos[rng.integers(len(photos))], self.size, rng)
        owner = np.zeros((self.size, self.size), dtype=np.int64)
        labels: list[int] = []
        areas, visible = np.zeros(1), np.full(1, np.inf)  # pixels of each item, and its visible ones; 0 is none
        for _ in range(rng.integers(1, MOST_ITEMS + 1)):
            number = int(rng.integers(len(items)))
            colours, alpha = _item(items[number], self.size, rng)
            shape = alpha >= OPAQUE
            height, width = shape.shape
            for _ in range(TRIES):
                top, left = (int(rng.integers(self.size - side + 1)) for side in (height, width))
                window = slice(top, top + height), slice(left, left + width)
                left_over = visible - np.bincount(owner[window][shape], minlength=len(areas))
                if (left_over >= LEAST_VISIBLE * areas).all():
                    break
            else:
                continue
            owner[window][shape] = len(areas)
            areas, visible = np.append(areas, shape.sum()), np.append(left_over, shape.sum())
            labels.append(int(classes[number]))
            opacity = alpha[..., None].astype(np.float32) / 255
            image[window] = np.rint(image[window] * (1 - opacity) + colours * opacity)
        return image, np.array(labels, dtype=np.int64), owner


def is_pasted(name: str) -> bool:
    """Whether DATA is this set."""
    return name.partition(":")[0] == NAME


def size_of(name: str) -> int:
    """The size in ``items-on-photos:SIZE``.

    Raises:
        GlocalError: if SIZE is not a number.
    """
    _, colon, text = name.partition(":")
    if colon and not (text.isascii() and text.isdecimal() and len(text) < 6):
        raise GlocalError(f"data: expected {NAME} or {NAME}:SIZE, the side of the images in pixels, got {name}")
    return int(text) if colon else SIZE


def items_on_photos(
    size: int = SIZE, *, seed: int = 0, train: int = COUNTS["train"], val: int = COUNTS["val"]
) -> DetectionSource:
    """The set for detection and instance segmentation: 10 classes, 1 to 8 items per image.

    Args:
        size: height and width of the images, pixels.
        seed: of all samples.
        train: images in train.
        val: images in val.

    Raises:
        GlocalError: for a size or a number out of range.
    """
    stores, paths, fingerprint = _stores(size, seed, {"train": train, "val": val})
    classes = builtin.CLASSES
    parts = {
        part: DetectionSet(part, classes, paths[part], store, np.arange(len(paths[part])))
        for part, store in stores.items()
    }
    ids = tuple(range(1, len(classes) + 1))  # as COCO's, from 1
    return DetectionSource(NAME, parts["train"], parts["val"], classes, (), (), SPLIT, fingerprint, ids, {})


def label_maps_of_items(
    size: int = SIZE, *, seed: int = 0, train: int = COUNTS["train"], val: int = COUNTS["val"]
) -> SegmentationSource:
    """The same images for semantic segmentation: background and 10 classes; arguments as of `items_on_photos`."""
    stores, paths, fingerprint = _stores(size, seed, {"train": train, "val": val})
    classes = ("background", *builtin.CLASSES)
    parts = {
        part: SegmentationSet(part, classes, paths[part], store, np.arange(len(paths[part])))
        for part, store in stores.items()
    }
    return SegmentationSource(NAME, parts["train"], parts["val"], classes, (), (), SPLIT, fingerprint, {})


def _stores(size: int, seed: int, counts: dict[str, int]) -> tuple[dict[str, Pasted], dict[str, tuple[str, ...]], str]:
    if not LEAST_SIZE <= size <= MOST_SIZE:
        raise GlocalError(f"{NAME}: expected a size of {LEAST_SIZE} to {MOST_SIZE} pixels, got {size}")
    if seed < 0 or min(counts.values()) < 1:
        raise GlocalError(f"{NAME}: expected a seed from 0 and at least 1 image in each part, got {seed} and {counts}")
    digest = hashlib.sha256(repr((NAME, VERSION, size, seed, counts)).encode())
    for name in PHOTOS:
        digest.update(_photo_file(name).read_bytes())
    digest.update(builtin.fashion_mini().fingerprint.encode())
    stores = {part: Pasted(part, size, seed) for part in REGIONS}
    paths = {part: tuple(f"{NAME}/{part}/{row:05d}" for row in range(counts[part])) for part in REGIONS}
    return stores, paths, digest.hexdigest()


def _photo_file(name: str) -> Path:
    return Path(builtin.__file__).parent / "photos" / f"{name}.png"


@lru_cache(maxsize=len(REGIONS))
def _materials(part: str) -> tuple[tuple[Image.Image, ...], np.ndarray, np.ndarray]:
    """Parts of photographs, items (N, 28, 28) uint8 and their labels (N,): read once per process."""
    photos = []
    first, last = REGIONS[part]
    for name in PHOTOS:
        with Image.open(io.BytesIO(_photo_file(name).read_bytes()), formats=("PNG",)) as photo:
            photos.append(
                photo.convert("RGB").crop((round(first * photo.width), 0, round(last * photo.width), photo.height))
            )
    source = builtin.fashion_mini()
    items = source.train if part == "train" else source.val
    assert isinstance(items.store, Array)
    return tuple(photos), items.store.pixels, items.labels


def _background(photo: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square crop of a photograph, randomly flipped and tinted, (size, size, 3) uint8."""
    side = rng.uniform(0.4, 1.0) * min(photo.size)
    left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    square = photo.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    if rng.random() < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tint = rng.uniform(0.6, 1.0, 3).astype(np.float32)
    return np.rint(np.asarray(square) * tint).astype(np.uint8)


def _item(grey: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An item, randomly coloured, scaled and rotated.

    Args:
        grey: (28, 28) uint8.
        size: of the image.
        rng: of colour, scale and rotation.

    Returns:
        Colours (h, w, 3) float32, 0..255, and alpha (h, w) uint8, cropped to the item.
    """
    outline = _outline(grey)
    both = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(outline.astype(np.uint8) * 255)])
    if rng.random() < 0.5:
        both = both.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = max(8, round(rng.uniform(*SIDES) * size))
    both = both.resize((side, side), Image.Resampling.BICUBIC)
    both = both.rotate(rng.uniform(-TURN, TURN), Image.Resampling.BILINEAR, expand=True)
    values = np.asarray(both)
    seen = _box(values[..., 1] >= OPAQUE)
    values = values[seen[1] : seen[3], seen[0] : seen[2]]
    hue, saturation, value = rng.uniform(0, 1), rng.uniform(0.3, 0.9), rng.uniform(0.7, 1.0)
    colour = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32)
    shade = 0.25 + 0.75 * values[..., :1].astype(np.float32) / 255  # black parts stay visible
    return shade * colour, values[..., 1]


def _outline(grey: np.ndarray) -> np.ndarray:
    """The largest connected non-black part with its holes filled, (H, W) bool."""
    from scipy import ndimage  # imported late: decoding workers import this module too

    numbers, count = ndimage.label(grey > 0, structure=np.ones((3, 3)))
    largest = 1 + np.argmax(np.bincount(numbers.ravel())[1:]) if count > 1 else 1
    return ndimage.binary_fill_holes(numbers == largest)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x1 y1 x2 y2 of the true pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
