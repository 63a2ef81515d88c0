"""Augmentation as a function of (seed, epoch, position of the image): no worker, batch or history can change it."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from glocal.training.recipe import Recipe

LIGHT_SHIFT = 8
"""`light` moves an image by up to 1/8 of its side: 4 pixels of 32, as He et al. 2016, §4.2, do for CIFAR."""
RANDAUGMENT = "rand-m9-mstd0.5-mmax9-inc1"
"""timm's form of RandAugment (Cubuk et al. 2020), as in the recipes of DeiT and ConvNeXt, but with magnitudes up to 9:
near 10 timm posterises to 0 bits, which Pillow 13 refuses."""


def shift_and_flip(
    pixels: np.ndarray, positions: np.ndarray, *, reach: int, flip: bool, count: int, seed: int, epoch: int
) -> np.ndarray:
    """Shift each image, its borders reflected, and mirror half of them.

    Args:
        pixels: (B, S, S, 3) images.
        positions: (B,) the place of each image in its set.
        reach: by how many pixels to shift at most, down or up and right or left.
        flip: whether to mirror.
        count: images of the set.
        seed: of all draws.
        epoch: counted from 0.
    """
    size = pixels.shape[1]
    draws = _draws(count, seed, epoch)[positions]  # (B, 3) uint32
    shift = draws[:, :2] % (2 * reach + 1)  # (B, 2), 0 .. 2 reach
    index = np.arange(size) - reach + shift[..., None].astype(np.int64)  # (B, 2, S)
    index = np.abs(index)
    index = np.minimum(index, 2 * (size - 1) - index)  # reflected at both borders
    rows, cols = index[:, 0], index[:, 1]
    if flip:
        cols = np.where(draws[:, 2:] % 2 == 1, cols[:, ::-1], cols)
    return pixels[np.arange(len(pixels))[:, None, None], rows[:, :, None], cols[:, None, :]]


class RandAugment:
    """Random resized crop, flip and timm's RandAugment; each image's draws depend on (seed, epoch, position) alone."""

    def __init__(self, size: int, recipe: Recipe) -> None:
        from timm.data import create_transform

        self.transform: Callable[[Image.Image], np.ndarray] = create_transform(
            size,
            is_training=True,
            hflip=0.5 if recipe.flip else 0.0,
            auto_augment=RANDAUGMENT,
            interpolation="bicubic",
            use_prefetcher=True,  # gives (3, S, S) uint8, not yet normalised
        )

    def __call__(self, image: Image.Image, position: int, *, count: int, seed: int, epoch: int) -> np.ndarray:
        """RGB image -> (S, S, 3) uint8."""
        with _seeded(int(_draws(count, seed, epoch)[position, 0])):
            return np.asarray(self.transform(image)).transpose(1, 2, 0)


@lru_cache(maxsize=2)
def _draws(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count, 3) uint32 random numbers of one epoch, a row for each image."""
    return np.random.default_rng((seed, epoch, 1)).integers(2**32, size=(count, 3), dtype=np.uint32)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that timm's and torchvision's transforms draw from, and put them back after."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
