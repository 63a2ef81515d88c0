"""Images as uint8 batches: one resize rule for all models, decoded once if they fit into memory, in a fixed order.

The order of an epoch is a function of (seed, epoch), augmentation one of (seed, epoch, position), so neither the number
of workers nor a stop and a new start changes what a model sees.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from glocal.data import ImageError, ImageSet, Skipped
from glocal.data.shards import shuffled
from glocal.data.transforms import LIGHT_SHIFT, RandAugment, draws, resize_crop, shift_and_flip
from glocal.data.workers import default_workers, read_in_order
from glocal.errors import GlocalError
from glocal.training.config import TrainConfig

CACHE_BYTES = 2 * 2**30
"""A set that takes more than this as uint8 is decoded anew in every epoch."""
EVALUATION_BATCH = 128


class BatchIndices(NamedTuple):
    """The indices of a batch.

    Attributes:
        epoch: counted from 0.
        indices: (B,) of its images in their set; the r-th repeat of image i in a set of N is i + r N.
        weight: of its mean loss in the step it is a part of; above 1 where it has more images than other parts.
    """

    epoch: int
    indices: np.ndarray
    weight: float = 1.0


class Batch(NamedTuple):
    """Images of a step, or of a micro-batch of one device.

    Attributes:
        inputs: (B, 3, S, S) uint8; other tasks have what their loss takes.
        labels: (B,) int64; likewise. Fewer than inputs where black images stand at the end for unreadable ones.
        seeds: (B,) int64, of each image's random augmentation on the device.
        weight: see `BatchIndices`.
        skipped: images that became unreadable.
    """

    inputs: Any
    labels: Any
    seeds: torch.Tensor
    weight: float = 1.0
    skipped: tuple[Skipped, ...] = ()


class BatchDataset(Protocol):
    """A torch Dataset that returns a whole batch per index; inherit from it for the defaults.

    Attributes:
        labels: (N,) int64.
        num_classes: number of classes of the labels.
        groups: (N,) int64, the shard of each image, if reading by shard is faster (`shards.shuffled`); else None.
        evaluation_batch: batch size without gradients.
    """

    labels: np.ndarray
    num_classes: int
    groups: np.ndarray | None = None
    evaluation_batch: int = EVALUATION_BATCH

    @property
    def reads_files(self) -> bool:
        """Whether images are decoded when they are asked for, which is worth data-loading workers."""
        return False

    def __len__(self) -> int: ...
    def __getitem__(self, key: BatchIndices, /) -> Batch: ...


class ImageBatches(BatchDataset, Dataset[Batch]):
    """An image set at one size, without augmentation, for evaluation.

    Args:
        images: where the images come from.
        size: side in pixels after `resize_crop`.
        pixels: (N, S, S, 3) uint8, the images at this size; None to decode each when it is asked for.
        crop_pct: of `resize_crop`.
    """

    def __init__(self, images: ImageSet, size: int, pixels: np.ndarray | None = None, crop_pct: float = 1.0) -> None:
        self.images, self.size, self.pixels, self.crop_pct = images, size, pixels, crop_pct
        self.labels, self.num_classes = images.labels, len(images.classes)

    @property
    def reads_files(self) -> bool:
        """Whether images are decoded on access."""
        return self.pixels is None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: BatchIndices) -> Batch:
        return self.read(key.indices)[0]

    def read(
        self, positions: np.ndarray, transform: Callable[[Image.Image, int], np.ndarray] | None = None
    ) -> tuple[Batch, list[int]]:
        """Decode images one by one; those that became unreadable since the check are reported and skipped.

        Args:
            positions: (B,) which images.
            transform: RGB image and its place in the batch -> (S, S, 3) uint8; by default `resize_crop`.

        Returns:
            The batch, and which places of ``positions`` are in it.
        """
        if transform is None:
            if self.pixels is not None:
                return _batch(self.pixels[positions], self.labels[positions]), list(range(len(positions)))
            transform = lambda image, _: resize_crop(image, self.size, self.crop_pct)  # noqa: E731
        pixels, kept, skipped = [], [], []
        for place, position in enumerate(positions.tolist()):
            try:
                pixels.append(transform(self.images.image(position), place))
                kept.append(place)
            except ImageError as error:
                skipped.append(Skipped(error.path, f"became unreadable: {error.reason}"))
        stacked = np.stack(pixels) if pixels else np.empty((0, self.size, self.size, 3), np.uint8)
        return _batch(stacked, self.labels[positions[kept]], tuple(skipped)), kept

    def subset(self, positions: np.ndarray) -> "ImageBatches":
        """The images at these positions."""
        pixels = None if self.pixels is None else self.pixels[positions]
        return ImageBatches(self.images.subset(positions), self.size, pixels, self.crop_pct)


class TrainingBatches(BatchDataset, Dataset[Batch]):
    """An image set with the augmentation of a recipe.

    Args:
        source: the images at their size.
        recipe: says how to augment.
        seed: of all draws.
    """

    def __init__(self, source: ImageBatches, recipe: TrainConfig, seed: int) -> None:
        self.source, self.recipe, self.seed = source, recipe, seed
        self.labels, self.num_classes = source.labels, source.num_classes
        self.randaugment = rand_augment(source.size, recipe) if recipe.data.augment == "randaugment" else None
        self.groups = source.images.groups if self.reads_files else None

    @property
    def reads_files(self) -> bool:
        """Whether images are decoded anew in each epoch."""
        return self.randaugment is not None or self.source.reads_files

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: BatchIndices) -> Batch:
        positions = key.indices % len(self)
        drawn = draws(self.seed, key.epoch, key.indices)
        if self.randaugment is not None:
            randaugment = self.randaugment
            batch, kept = self.source.read(positions, lambda image, place: randaugment(image, drawn[place]))
        else:
            batch, kept = self.source.read(positions)
            if self.recipe.data.augment == "light" or self.recipe.data.flip:
                pixels = batch.inputs.permute(0, 2, 3, 1).numpy()
                max_shift = self.source.size // LIGHT_SHIFT if self.recipe.data.augment == "light" else 0
                changed = shift_and_flip(pixels, drawn[kept], max_shift=max_shift, flip=self.recipe.data.flip)
                batch = batch._replace(inputs=_to_tensor(changed))
        return batch._replace(seeds=torch.from_numpy(drawn[kept, 3].astype(np.int64)), weight=key.weight)


def rand_augment(size: int, recipe: TrainConfig) -> RandAugment:
    """RandAugment of a recipe."""
    return RandAugment(
        size,
        flip=recipe.data.flip,
        crop_scale=recipe.data.crop_scale,
        auto_augment=recipe.data.auto_augment,
        color_jitter=recipe.data.color_jitter,
    )


def load_pixels(
    images: ImageSet, size: int, advance: Callable[[], Any] = lambda: None, crop_pct: float = 1.0
) -> ImageBatches:
    """Decode a set once and keep it as uint8, if it fits into `CACHE_BYTES`; ``advance`` is called after each image.

    Raises:
        ImageError: for an image that cannot be decoded; the caller has checked them all before.
    """
    if len(images) * size * size * 3 > CACHE_BYTES:
        return ImageBatches(images, size, crop_pct=crop_pct)
    pixels = np.empty((len(images), size, size, 3), np.uint8)

    def read(index: int) -> None:
        pixels[index] = resize_crop(images.image(index), size, crop_pct)
        advance()

    with ThreadPoolExecutor(default_workers()) as pool:
        for _ in pool.map(read, range(len(images))):
            pass
    return ImageBatches(images, size, pixels, crop_pct)


def num_batches(num_images: int, batch_size: int) -> int:
    """Number of batches per epoch: of equal size up to one image, at most ``batch_size``, with every image."""
    return -(-num_images // batch_size)


def epoch_order(data: BatchDataset, seed: int, epoch: int, repeats: int = 1) -> np.ndarray:
    """(N,) indices of an epoch in order, a function of the seed and the epoch.

    With repeats an epoch still has N: the first N / repeats images of the order, each ``repeats`` times in a row,
    so that the repeats of an image are in one batch (Hoffer et al. 2020).
    """
    rng = np.random.default_rng((seed, epoch, 0))
    num_images = len(data)
    order = rng.permutation(num_images) if data.groups is None else shuffled(data.groups, rng)
    if repeats > 1:
        order = (order[:, None] + num_images * np.arange(repeats)).reshape(-1)[:num_images]
    return order


def _steps(
    data: BatchDataset, batch_size: int, seed: int, repeats: int, rank: int, world_size: int, num_parts: int, start: int
) -> Iterator[BatchIndices]:
    """The micro-batches of a process, step by step, endlessly; see `training_loader`."""
    steps_per_epoch = num_batches(len(data), batch_size)
    first_epoch, first_step = divmod(start, steps_per_epoch)
    for epoch in count(first_epoch):
        order = epoch_order(data, seed, epoch, repeats)
        for step in np.array_split(order, steps_per_epoch)[first_step if epoch == first_epoch else 0 :]:
            for part in range(rank, num_parts, world_size):
                indices = step[part::num_parts]  # in turn, so repeats of an image go to different devices
                yield BatchIndices(epoch, indices, len(indices) * num_parts / len(step))


def training_loader(
    data: BatchDataset,
    batch_size: int,
    seed: int,
    num_workers: int | None = None,
    *,
    repeats: int = 1,
    rank: int = 0,
    world_size: int = 1,
    grad_accum_steps: int = 1,
    start: int = 0,
) -> DataLoader[Batch]:
    """Endless batches in an order that depends only on (seed, epoch); iterated once.

    Args:
        data: what to read.
        batch_size: images of a step at most, over all processes.
        seed: of the order.
        num_workers: data-loading workers; by default one per processor, where images are decoded.
        repeats: see `epoch_order`.
        rank: of this process.
        world_size: processes; each reads its part of a step.
        grad_accum_steps: batches that a process reads of a step, one after the other.
        start: steps to skip, done before a resume.

    Raises:
        GlocalError: if a step has fewer images than parts.
    """
    smallest = len(data) // num_batches(len(data), batch_size)
    if smallest < world_size * grad_accum_steps:
        raise GlocalError(
            f"batch_size: expected an image for each of {world_size} devices x {grad_accum_steps} micro-batches, "
            f"got steps of {smallest} images; raise batch_size, or lower --devices or grad_accum_steps"
        )
    num_parts = world_size * grad_accum_steps
    return _loader(data, _steps(data, batch_size, seed, repeats, rank, world_size, num_parts, start), num_workers)


def evaluation_loader(
    data: BatchDataset, num_workers: int | None = None, *, rank: int = 0, world_size: int = 1
) -> DataLoader[Batch]:
    """All images once, in order; each of several processes reads every ``world_size``-th batch.

    All processes get equally many batches, the last one possibly empty: sharded parameters are gathered by all of them.
    """
    indices = np.array_split(np.arange(len(data)), num_batches(len(data), data.evaluation_batch))
    indices += [np.arange(0)] * (-len(indices) % world_size)
    return _loader(data, [BatchIndices(0, part) for part in indices[rank::world_size]], num_workers)


def _loader(data: BatchDataset, sampler: Any, num_workers: int | None) -> DataLoader[Batch]:
    if num_workers is None:
        num_workers = default_workers() if data.reads_files else 0
    return read_in_order(data, sampler, num_workers)


def _batch(pixels: np.ndarray, labels: np.ndarray, skipped: tuple[Skipped, ...] = ()) -> Batch:
    labels_ = torch.from_numpy(labels)
    return Batch(_to_tensor(pixels), labels_, torch.zeros_like(labels_), 1.0, skipped)


def _to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """(B, S, S, 3) -> (B, 3, S, S), channels-last in memory."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
