"""A small image set that a small network learns in seconds: stripes across, stripes down, and rings."""

import numpy as np
from PIL import Image

from glocal.data import DataSource, ImageSet
from glocal.data.sets import Array
from glocal.models.io import ModelConfig
from glocal.tasks import ClassificationTask
from glocal.training import TrainConfig

CLASSES = ("across", "down", "rings")


def drawings(num_images: int, seed: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """(N, size, size) uint8 images of noisy patterns with random phase, and their labels in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_images) % len(CLASSES)
    y, x = np.mgrid[:size, :size]
    images = []
    for label in labels:
        phase = rng.uniform(0, 2 * np.pi)
        centre = size / 2 + rng.uniform(-4, 4, 2)
        distance = np.hypot(y - centre[0], x - centre[1])
        wave = np.sin(0.8 * (y, x, distance)[label] + phase)
        images.append(np.clip(128 + 90 * wave + rng.normal(0, 40, wave.shape), 0, 255).astype(np.uint8))
    return np.stack(images), labels.astype(np.int64)


def image_set(num_images: int, seed: int, name: str = "train") -> ImageSet:
    pixels, labels = drawings(num_images, seed)
    paths = tuple(f"{name}/{i:05d}" for i in range(num_images))
    return ImageSet(name, CLASSES, labels, paths, Array(pixels), np.arange(num_images))


def data_source(num_train: int = 60, num_val: int = 30) -> DataSource:
    train, val = image_set(num_train, seed=0), image_set(num_val, seed=1, name="val")
    return DataSource("shapes", train, val, CLASSES, (), (), "drawn", f"shapes-{num_train}-{num_val}")


def classification_task(config: TrainConfig, **options) -> ClassificationTask:
    """For any network on the drawings: (x - 0.5) / 0.25."""
    model_config = ModelConfig("classification", "", CLASSES, 32, (0.5,) * 3, (0.25,) * 3)
    return ClassificationTask(model_config, config, **options)


def write_folder(root, num_images: int = 60, seed: int = 0) -> None:
    """The drawings as PNG files, ROOT/CLASS/NUMBER.png."""
    pixels, labels = drawings(num_images, seed)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:03d}.png")
