"""Images as uint8 batches: one rule of size for all models, decoded once where they fit in memory, in a fixed order.

The order of an epoch is a function of (seed, epoch), augmentation one of (seed, epoch, position), so neither the number
of workers nor a stop and a new start changes what a model sees.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset, Sampler

from glocal.data import ImageError, ImageSet, Skipped
from glocal.training.augment import LIGHT_SHIFT, RandAugment, shift_and_flip
from glocal.training.recipe import Recipe

CACHE_BYTES = 2 * 2**30
"""A set that takes more than this as uint8 is decoded anew in every epoch."""
EVALUATION_BATCH = 128

Key = tuple[int, np.ndarray]
"""A batch before it is read: its epoch and the positions of its images."""


class Batch(NamedTuple):
    """Inputs (B, 3, S, S) uint8, or (B, D) features; labels (B,) int64; images that went bad and are left out."""

    inputs: torch.Tensor
    labels: torch.Tensor
    skipped: tuple[Skipped, ...] = ()


class Batched(Protocol):
    """A set that is read a batch at a time."""

    labels: np.ndarray
    num_classes: int

    def __len__(self) -> int: ...
    def __getitem__(self, key: Key, /) -> Batch: ...


def fit(image: Image.Image, size: int) -> Image.Image:
    """The rule of size for every model, in training and test: shorter side to ``size`` (bicubic), centre crop."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


class ImageBatches(Dataset[Batch]):
    """An image set at one size, without augmentation: what models are tested on.

    Args:
        images: where the images come from.
        size: side in pixels after `fit`.
        pixels: (N, S, S, 3) uint8, the images at this size; None to decode each when it is asked for.
    """

    def __init__(self, images: ImageSet, size: int, pixels: np.ndarray | None = None) -> None:
        self.images, self.size, self.pixels = images, size, pixels
        self.labels, self.num_classes = images.labels, len(images.classes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Batch:
        _, positions = key
        if self.pixels is not None:
            return _batch(self.pixels[positions], self.labels[positions])
        return self.read(positions, lambda image, _: np.asarray(fit(image, self.size)))

    def read(self, positions: np.ndarray, transform: Callable[[Image.Image, int], np.ndarray]) -> Batch:
        """Decode images one by one; those that went bad since they were checked are reported and left out.

        Args:
            positions: (B,) which images.
            transform: RGB image and its position -> (S, S, 3) uint8.
        """
        pixels, kept, skipped = [], [], []
        for position in positions.tolist():
            try:
                pixels.append(transform(self.images.image(position), position))
                kept.append(position)
            except ImageError as error:
                skipped.append(Skipped(error.path, f"went bad during training: {error.reason}"))
        stacked = np.stack(pixels) if pixels else np.empty((0, self.size, self.size, 3), np.uint8)
        return _batch(stacked, self.labels[kept], tuple(skipped))

    def subset(self, positions: np.ndarray) -> "ImageBatches":
        """The images at these positions."""
        pixels = None if self.pixels is None else self.pixels[positions]
        return ImageBatches(self.images.subset(positions), self.size, pixels)


class TrainingBatches(Dataset[Batch]):
    """An image set as a recipe augments it.

    Args:
        source: the images at their size.
        recipe: says how to augment.
        seed: of all draws.
    """

    def __init__(self, source: ImageBatches, recipe: Recipe, seed: int) -> None:
        self.source, self.recipe, self.seed = source, recipe, seed
        self.labels, self.num_classes = source.labels, source.num_classes
        self.randaugment = RandAugment(source.size, recipe) if recipe.augment == "randaugment" else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Batch:
        epoch, positions = key
        draws = {"count": len(self), "seed": self.seed, "epoch": epoch}
        if self.randaugment is not None:
            randaugment = self.randaugment
            return self.source.read(positions, lambda image, position: randaugment(image, position, **draws))
        batch = self.source[key]
        if self.recipe.augment == "none" and not self.recipe.flip:
            return batch
        bad = {skipped.path for skipped in batch.skipped}
        kept = np.array([i for i in positions if self.source.images.paths[i] not in bad], int) if bad else positions
        pixels = batch.inputs.permute(0, 2, 3, 1).numpy()
        reach = self.source.size // LIGHT_SHIFT if self.recipe.augment == "light" else 0
        changed = shift_and_flip(pixels, kept, reach=reach, flip=self.recipe.flip, **draws)
        return batch._replace(inputs=_to_tensor(changed))


class FeatureBatches(Dataset[Batch]):
    """(N, D) features and their labels: what a linear probe learns from."""

    def __init__(self, features: torch.Tensor, labels: np.ndarray, num_classes: int) -> None:
        self.features, self.labels, self.num_classes = features, labels, num_classes

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, key: Key) -> Batch:
        _, positions = key
        return Batch(self.features[positions], torch.from_numpy(self.labels[positions]))


def load_pixels(images: ImageSet, size: int, advance: Callable[[], Any] = lambda: None) -> ImageBatches:
    """Decode a set once and keep it as uint8, if it fits into `CACHE_BYTES`; ``advance`` is called after each image.

    Raises:
        ImageError: for an image that cannot be decoded; the caller has checked them all before.
    """
    if len(images) * size * size * 3 > CACHE_BYTES:
        return ImageBatches(images, size)
    pixels = np.empty((len(images), size, size, 3), np.uint8)

    def read(index: int) -> None:
        pixels[index] = np.asarray(fit(images.image(index), size))
        advance()

    with ThreadPoolExecutor(_workers()) as pool:
        for _ in pool.map(read, range(len(images))):
            pass
    return ImageBatches(images, size, pixels)


def num_batches(num_images: int, batch_size: int) -> int:
    """Batches that an epoch is cut into: equal but for one image, none above ``batch_size``, no image left out."""
    return -(-num_images // batch_size)


class _Epochs(Sampler[Key]):
    """Batches of shuffled positions, epoch after epoch without end."""

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed

    def __iter__(self) -> Iterator[Key]:
        for epoch in count():
            order = np.random.default_rng((self.seed, epoch, 0)).permutation(self.num_images)
            for positions in np.array_split(order, num_batches(self.num_images, self.batch_size)):
                yield epoch, positions


def training_loader(data: Batched, batch_size: int, seed: int, num_workers: int | None = None) -> DataLoader[Batch]:
    """Endless batches in an order that depends on (seed, epoch) alone."""
    return _loader(data, _Epochs(len(data), batch_size, seed), num_workers)


def evaluation_loader(data: Batched, num_workers: int | None = None) -> DataLoader[Batch]:
    """All images once, in their order."""
    positions = np.array_split(np.arange(len(data)), num_batches(len(data), EVALUATION_BATCH))
    return _loader(data, [(0, part) for part in positions], num_workers)


def _loader(data: Any, sampler: Any, num_workers: int | None) -> DataLoader[Batch]:
    workers = (_workers() if _decodes(data) else 0) if num_workers is None else num_workers
    generator = torch.Generator()  # the loader draws a seed for its workers: not from the global generator
    return DataLoader(data, batch_size=None, sampler=sampler, num_workers=workers, generator=generator)


def _decodes(data: Any) -> bool:
    """Whether reading a batch takes a decoder or PIL, which is worth processes of its own."""
    if isinstance(data, TrainingBatches):
        return data.randaugment is not None or data.source.pixels is None
    return isinstance(data, ImageBatches) and data.pixels is None


def _workers() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _batch(pixels: np.ndarray, labels: np.ndarray, skipped: tuple[Skipped, ...] = ()) -> Batch:
    return Batch(_to_tensor(pixels), torch.from_numpy(labels), skipped)


def _to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """(B, S, S, 3) -> (B, 3, S, S), channels-last in memory."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
