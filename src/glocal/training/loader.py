"""Images as uint8 batches: one rule of size for all models, decoded once where they fit in memory, in a fixed order.

The order of an epoch is a function of (seed, epoch), augmentation one of (seed, epoch, position), so neither the number
of workers nor a stop and a new start changes what a model sees.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset, Sampler

from glocal.data import ImageSet, Skipped
from glocal.errors import GlocalError
from glocal.training.augment import RandAugment, light
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
        return _batch(self.read(positions), self.labels[positions])

    def read(self, positions: np.ndarray) -> np.ndarray:
        """(B, S, S, 3) uint8."""
        if self.pixels is not None:
            return self.pixels[positions]
        return np.stack([np.asarray(fit(self.images.image(int(i)), self.size)) for i in positions])

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
        on_error: what to do with an image that went bad since it was checked: ``stop``, or ``skip`` and report it.
    """

    def __init__(
        self, source: ImageBatches, recipe: Recipe, seed: int, on_error: Literal["stop", "skip"] = "stop"
    ) -> None:
        self.source, self.recipe, self.seed, self.on_error = source, recipe, seed, on_error
        self.labels, self.num_classes = source.labels, source.num_classes
        self.randaugment = RandAugment(source.size, recipe) if recipe.augment == "randaugment" else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Batch:
        epoch, positions = key
        if self.source.pixels is not None and self.randaugment is None:
            return _batch(self._shifted(self.source.read(positions), positions, epoch), self.labels[positions])
        return self._read_one_by_one(epoch, positions)

    def _read_one_by_one(self, epoch: int, positions: np.ndarray) -> Batch:
        read, kept, skipped = [], [], []
        for position in positions:
            try:
                read.append(self._read(epoch, position))
                kept.append(position)
            except GlocalError as error:
                if self.on_error == "stop":
                    raise
                path = self.source.images.paths[position]
                skipped.append(Skipped(path, f"went bad during training: {getattr(error, 'reason', error)}"))
        if not read:
            raise GlocalError(f"every image of a batch went bad during training, {skipped[0].path} among them")
        return _batch(np.stack(read), self.labels[kept], tuple(skipped))

    def _read(self, epoch: int, position: int) -> np.ndarray:
        if self.randaugment is not None:
            image = self.source.images.image(int(position))
            return self.randaugment(image, position, count=len(self), seed=self.seed, epoch=epoch)
        at = np.array([position])
        return self._shifted(self.source.read(at), at, epoch)[0]

    def _shifted(self, pixels: np.ndarray, positions: np.ndarray, epoch: int) -> np.ndarray:
        if self.recipe.augment == "none":
            return pixels
        return light(pixels, positions, count=len(self), seed=self.seed, epoch=epoch, flip=self.recipe.flip)


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
    return DataLoader(data, batch_size=None, sampler=sampler, num_workers=workers)


def _decodes(data: Any) -> bool:
    """Whether reading a batch takes a decoder or PIL, which is worth processes of its own."""
    if isinstance(data, TrainingBatches):
        return data.randaugment is not None or data.source.pixels is None
    return isinstance(data, ImageBatches) and data.pixels is None


def _workers() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _batch(pixels: np.ndarray, labels: np.ndarray, skipped: tuple[Skipped, ...] = ()) -> Batch:
    """(B, S, S, 3) pixels as a channels-last (B, 3, S, S) tensor."""
    inputs = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    return Batch(inputs, torch.from_numpy(labels), skipped)
