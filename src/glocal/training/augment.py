"""Augmentation as a function of (seed, epoch, position of the image): no worker, batch or history can change it."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from glocal.errors import GlocalError
from glocal.training.recipe import Recipe

LIGHT_SHIFT = 8
"""`light` moves an image by up to 1/8 of its side: 4 pixels of 32, as He et al. 2016, §4.2, do for CIFAR."""


def draws(seed: int, epoch: int, slots: np.ndarray) -> np.ndarray:
    """Random numbers of images: a hash of (seed, epoch, slot), so that no draw depends on another one.

    Args:
        seed: of the run.
        epoch: counted from 0.
        slots: (B,) the position of each image in its set; repeats of an image in an epoch have slots of their own.

    Returns:
        (B, 4) uint32.
    """
    key = _mix(_mix(np.array([seed], np.uint64)) + np.uint64(epoch))
    numbers = slots.astype(np.uint64)[:, None] * np.uint64(4) + np.arange(4, dtype=np.uint64)
    return (_mix(key + _mix(numbers)) >> np.uint64(32)).astype(np.uint32)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014, Fig. 17): one step of its generator from each state."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def shift_and_flip(pixels: np.ndarray, drawn: np.ndarray, *, reach: int, flip: bool) -> np.ndarray:
    """Shift each image, its borders reflected, and mirror half of them.

    Args:
        pixels: (B, S, S, 3) images.
        drawn: (B, 4) of `draws`.
        reach: by how many pixels to shift at most, down or up and right or left.
        flip: whether to mirror.
    """
    size = pixels.shape[1]
    shift = drawn[:, :2] % (2 * reach + 1)  # (B, 2), 0 .. 2 reach
    index = np.arange(size) - reach + shift[..., None].astype(np.int64)  # (B, 2, S)
    index = np.abs(index)
    index = np.minimum(index, 2 * (size - 1) - index)  # reflected at both borders
    rows, cols = index[:, 0], index[:, 1]
    if flip:
        cols = np.where(drawn[:, 2:3] % 2 == 1, cols[:, ::-1], cols)
    return pixels[np.arange(len(pixels))[:, None, None], rows[:, :, None], cols[:, None, :]]


class RandAugment:
    """Random resized crop, flip and timm's automatic augmentation or colour jitter; an image's draws are its own."""

    def __init__(self, size: int, recipe: Recipe) -> None:
        from timm.data import create_transform

        try:
            self.transform: Callable[[Image.Image], np.ndarray] = create_transform(
                size,
                is_training=True,
                scale=(recipe.crop_scale, 1.0),
                hflip=0.5 if recipe.flip else 0.0,
                color_jitter=recipe.color_jitter or 0.0,
                auto_augment=recipe.auto_augment or None,
                interpolation="bicubic",
                use_prefetcher=True,  # gives (3, S, S) uint8, not yet normalised
            )
        except (AssertionError, ValueError, KeyError) as error:
            raise GlocalError(
                f"recipe: auto_augment must be a policy of timm, such as rand-m9-mstd0.5-inc1; got "
                f"{recipe.auto_augment!r}"
            ) from error

    def __call__(self, image: Image.Image, drawn: np.ndarray) -> np.ndarray:
        """RGB image -> (S, S, 3) uint8, by its (4,) `draws`."""
        with seeded(int(drawn[0])):
            return np.asarray(self.transform(image)).transpose(1, 2, 0)


class Erasing:
    """Random erasing with noise (Zhong et al. 2020, Alg. 1), timm's; an image's draws are its own."""

    def __init__(self, probability: float) -> None:
        from timm.data.random_erasing import RandomErasing

        # the noise is drawn on the CPU: the same for every device
        self.erase = RandomErasing(probability, mode="pixel", max_count=1, device="cpu")

    def __call__(self, inputs: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) normalised images, changed in place, by (B,) seeds."""
        for image, seed in zip(inputs, seeds.tolist(), strict=True):
            with seeded(seed):
                self.erase(image)
        return inputs


@contextmanager
def seeded(seed: int) -> Iterator[None]:
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
