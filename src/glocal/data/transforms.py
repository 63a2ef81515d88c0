"""Resize, crop, normalise and augment: used by training, prediction and export alike.

A random transform is a function of (seed, epoch, index of the image), independent of workers, batches and history.
Unlike torchvision's v2 transforms, ours get their random parameters from `draws`.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from glocal.data.label_maps import IGNORE
from glocal.errors import GlocalError

DETECTION_SCALES = (0.8, 1.25)
"""Scales of ``augment: light`` for detection: the standard jitter of Ghiasi et al. 2021 (Copy-Paste), §3."""
SEGMENTATION_SCALES = (0.5, 2.0)
"""Scales of ``augment: light`` for segmentation, as in mmsegmentation's recipes of the papers."""
MAX_ASPECT_RATIO = 16
"""Larger aspect ratios are squashed to it when resizing: 1 x 2000 pixels would become 512 x 1,024,000."""
FILL = (124, 116, 104)
"""Padding: ImageNet's mean, about 0 after normalisation."""
LIGHT_SHIFT = 8
"""`light` shifts an image by up to 1/8 of its side: 4 pixels of 32, as in He et al. 2016, §4.2, for CIFAR."""


# Resize, crop, normalise


def resize_crop(
    image: Image.Image, size: int | tuple[int, int], crop_pct: float = 1.0, interpolation: str = "bicubic"
) -> np.ndarray:
    """Resize to cover ``size / crop_pct`` and crop the centre, as timm's evaluation transform does.

    Args:
        image: RGB.
        size: side in pixels, or height and width.
        crop_pct: fraction of each side that the centre crop keeps.
        interpolation: Pillow's name, lower case.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = (size, size) if isinstance(size, int) else size
    method = Image.Resampling[interpolation.upper()]
    return np.asarray(ImageOps.fit(image, (width, height), method, bleed=(1 - crop_pct) / 2))


def resize_shorter_side(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 with its shorter side at ``size``, its longer one at most `MAX_ASPECT_RATIO` times that."""
    height, width = image.shape[:2]
    return resize_image(image, *shorter_side_size(height, width, size))


def shorter_side_size(height: int, width: int, size: float) -> tuple[int, int]:
    """(height, width) of an image after its shorter side is resized to ``size``."""
    factor = size / min(height, width)
    most = max(1, round(MAX_ASPECT_RATIO * size))
    return min(most, max(1, round(height * factor))), min(most, max(1, round(width * factor)))


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (height, width, 3), bilinear, with antialiasing."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(..., H, W) -> (..., height, width), nearest, by pixel centres."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for new, old in ((height, labels.shape[-2]), (width, labels.shape[-1]))
    )
    return labels[..., rows[:, None], columns]


class Normalize(nn.Module):
    """uint8 pixels -> (x / 255 - mean) / std, by channel."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(-1, 1, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) uint8 -> float32."""
        return (x - self.mean) * self.scale


# Random numbers per image


def draws(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """Random numbers of images: a hash of (seed, epoch, index), so that no draw depends on another one.

    Args:
        seed: of the run.
        epoch: counted from 0.
        indices: (B,) of the images in their set; repeats of an image in an epoch have indices of their own.

    Returns:
        (B, 4) uint32.
    """
    key = _mix(_mix(np.array([seed], np.uint64)) + np.uint64(epoch))
    numbers = indices.astype(np.uint64)[:, None] * np.uint64(4) + np.arange(4, dtype=np.uint64)
    return (_mix(key + _mix(numbers)) >> np.uint64(32)).astype(np.uint32)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014, Fig. 17): one step of its generator from each state."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that timm's and torchvision's transforms use, and restore them afterwards."""
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


# Augmentation for classification


def shift_and_flip(pixels: np.ndarray, drawn: np.ndarray, *, max_shift: int, flip: bool) -> np.ndarray:
    """Shift each image with reflected borders, and flip half of them.

    Args:
        pixels: (B, S, S, 3) images.
        drawn: (B, 4) of `draws`.
        max_shift: in pixels, along each axis and in both directions.
        flip: whether to flip.
    """
    size = pixels.shape[1]
    shift = drawn[:, :2] % (2 * max_shift + 1)  # (B, 2), 0 .. 2 max_shift
    index = np.arange(size) - max_shift + shift[..., None].astype(np.int64)  # (B, 2, S)
    index = np.abs(index)
    index = np.minimum(index, 2 * (size - 1) - index)  # reflected at both borders
    rows, cols = index[:, 0], index[:, 1]
    if flip:
        cols = np.where(drawn[:, 2:3] % 2 == 1, cols[:, ::-1], cols)
    return pixels[np.arange(len(pixels))[:, None, None], rows[:, :, None], cols[:, None, :]]


class RandAugment:
    """Random resized crop, flip and timm's automatic augmentation or colour jitter.

    Args:
        size: side of the result in pixels.
        flip: flip half of the images.
        crop_scale: smallest fraction of the area that a crop has.
        auto_augment: a policy string of timm; empty for none.
        color_jitter: strength of brightness, contrast and saturation, without ``auto_augment``.

    Raises:
        GlocalError: if timm has no such policy.
    """

    def __init__(self, size: int, *, flip: bool, crop_scale: float, auto_augment: str, color_jitter: float) -> None:
        from timm.data import create_transform

        try:
            self.transform: Callable[[Image.Image], np.ndarray] = create_transform(
                size,
                is_training=True,
                scale=(crop_scale, 1.0),
                hflip=0.5 if flip else 0.0,
                color_jitter=color_jitter or 0.0,
                auto_augment=auto_augment or None,
                interpolation="bicubic",
                use_prefetcher=True,  # gives (3, S, S) uint8, not yet normalised
            )
        except (AssertionError, ValueError, KeyError) as error:
            raise GlocalError(
                f"recipe: auto_augment must be a policy of timm, such as rand-m9-mstd0.5-inc1; got {auto_augment!r}"
            ) from error

    def __call__(self, image: Image.Image, drawn: np.ndarray) -> np.ndarray:
        """RGB image -> (S, S, 3) uint8, by its (4,) `draws`."""
        with seeded(int(drawn[0])):
            return np.asarray(self.transform(image)).transpose(1, 2, 0)


class RandomErasing:
    """Random erasing with noise (Zhong et al. 2020, Alg. 1), timm's, with one seed per image."""

    def __init__(self, probability: float) -> None:
        from timm.data.random_erasing import RandomErasing as Erasing

        # the noise is drawn on the CPU: the same for every device
        self.erase = Erasing(probability, mode="pixel", max_count=1, device="cpu")

    def __call__(self, inputs: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) normalised images, changed in place, by (B,) seeds."""
        for image, seed in zip(inputs, seeds.tolist(), strict=True):
            with seeded(seed):
                self.erase(image)
        return inputs


# Scale jitter of images with their targets


class JitterParams(NamedTuple):
    """Parameters of a scale jitter, for an image and its targets together.

    Attributes:
        flip: horizontal, applied first.
        scale: factor on both sides, before the crop or padding.
        x: position of the crop, or of the image in its padding: 0 left to 1 right.
        y: 0 top to 1 bottom.
    """

    flip: bool
    scale: float
    x: float
    y: float


def jitter_params(drawn: np.ndarray, *, flip: bool, scale_range: tuple[float, float] | None) -> JitterParams:
    """Parameters from the (4,) numbers of `draws`; the scale is uniform in its logarithm."""
    y, x, side, size = (int(number) / 2**32 for number in drawn)
    scale = 1.0 if scale_range is None else scale_range[0] * (scale_range[1] / scale_range[0]) ** size
    return JitterParams(flip and side >= 0.5, scale, x, y)


def jitter_detection(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, masks: np.ndarray | None, params: JitterParams
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Flip and rescale an image with its objects, then crop or pad it to its own size; objects outside are removed.

    Args:
        image: (H, W, 3) uint8.
        boxes: (N, 4) float32, x1 y1 x2 y2 in pixels.
        labels: (N,).
        masks: (N, H, W) bool, or None.
        params: of the jitter.

    Returns:
        The same four.
    """
    height, width = image.shape[:2]
    if params.flip:
        image = image[:, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
        masks = None if masks is None else masks[:, :, ::-1]
    if params.scale == 1:
        return image, boxes, labels, masks
    inner = max(1, round(height * params.scale)), max(1, round(width * params.scale))
    offset = offset_of(params, inner, (height, width))
    image = crop_or_pad(resize_image(image, *inner), offset, height, width, FILL)
    factors = np.array([inner[1] / width, inner[0] / height] * 2, np.float32)
    boxes = boxes * factors + np.array([offset.left, offset.top] * 2, np.float32)
    boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
    left = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(axis=1)
    if masks is not None:
        moved = crop_or_pad(resize_labels(masks, *inner).transpose(1, 2, 0), offset, height, width, False)
        masks = moved.transpose(2, 0, 1)
        left &= masks.any(axis=(1, 2))
        masks = masks[left]
    return image, boxes[left], labels[left], masks


def jitter_segmentation(
    image: np.ndarray, label_map: np.ndarray, params: JitterParams, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Flip an image with its label map, resize the shorter side to ``size`` times the scale, crop or pad to a square.

    Args:
        image: (H, W, 3) uint8.
        label_map: (H, W).
        params: of the jitter.
        size: side of the square, pixels.

    Returns:
        (size, size, 3) and (size, size), padded with `IGNORE`.
    """
    if params.flip:
        image, label_map = image[:, ::-1], label_map[:, ::-1]
    height, width = label_map.shape
    inner = shorter_side_size(height, width, params.scale * size)
    offset = offset_of(params, inner, (size, size))
    return (
        crop_or_pad(resize_image(np.ascontiguousarray(image), *inner), offset, size, size, FILL),
        crop_or_pad(resize_labels(label_map, *inner), offset, size, size, IGNORE),
    )


class Offset(NamedTuple):
    """Of an image in its crop or padding; negative if cropped."""

    top: int
    left: int


def offset_of(params: JitterParams, inner: tuple[int, int], outer: tuple[int, int]) -> Offset:
    """The offset of ``inner`` (H, W) in ``outer``."""
    return Offset(
        *(
            int(position * (space + 1)) if space >= 0 else -int(position * (1 - space))
            for position, space in (
                (params.y, outer[0] - inner[0]),
                (params.x, outer[1] - inner[1]),
            )
        )
    )


def crop_or_pad(array: np.ndarray, offset: Offset, height: int, width: int, fill: object) -> np.ndarray:
    """(H, W, ...) -> (height, width, ...), at its offset, with ``fill`` around it."""
    out = np.empty((height, width, *array.shape[2:]), array.dtype)
    out[:] = fill
    top, left = max(offset.top, 0), max(offset.left, 0)
    bottom = min(offset.top + array.shape[0], height)
    right = min(offset.left + array.shape[1], width)
    inside = array[top - offset.top : bottom - offset.top, left - offset.left : right - offset.left]
    out[top:bottom, left:right] = inside
    return out
