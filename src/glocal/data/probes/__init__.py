"""Probes: synthetic images with a known distance over which a model must integrate to classify them.

Images are generated on access from (seed, part, row). Classes and distances alternate, so every class has each distance
equally often. Single parts, their number and their positions have the same distribution in all classes by construction;
each file defines its classes and gives the reasons.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from glocal.data.probes import arrangement, mix, pathfinder, texture
from glocal.data.sets import DataSource, ImageSet
from glocal.errors import GlocalError

ROOT = 1  # of all generators
COUNTS = {"train": 6000, "val": 1500}


@dataclass(frozen=True)
class Probe:
    """A probe task.

    Attributes:
        name: for `glocal.data.load_data`.
        classes: names.
        distances: over which a model must integrate, in pixels of the image.
        option: meaning of a distance, for messages.
        draw: generator, label and distance -> (H, W) uint8.
        version: raise it when the same seed gives other images; part of the fingerprint.
    """

    name: str
    classes: tuple[str, ...]
    distances: tuple[int, ...]
    option: str
    draw: Callable[[np.random.Generator, int, int], np.ndarray]
    version: int = 1


PROBES = {
    probe.name: probe
    for probe in (
        Probe("texture", texture.CLASSES, texture.DISTANCES, "side of a block of 2x2 cells", texture.draw),
        Probe(
            "pathfinder", pathfinder.CLASSES, pathfinder.DISTANCES, "length of a contour", pathfinder.draw, version=2
        ),
        Probe("arrangement", arrangement.CLASSES, arrangement.DISTANCES, "from part to part", arrangement.draw),
        Probe("mix", mix.CLASSES, mix.DISTANCES, "from part to part", mix.draw),
    )
}


@dataclass(frozen=True)
class Drawn:
    """Images of a probe: a `glocal.data.sets.Store`.

    Attributes:
        name: of the probe.
        distances: of the images in turn, pixels.
        part: train or val.
        seed: of all images.
    """

    name: str
    distances: tuple[int, ...]
    part: str
    seed: int

    def image(self, path: str, row: int) -> Image.Image:
        """The image of this row as RGB."""
        probe = PROBES[self.name]
        rng = np.random.default_rng((ROOT, self.seed, list(COUNTS).index(self.part), row))
        label, distance = self.answer(row)
        return Image.fromarray(probe.draw(rng, label, distance)).convert("RGB")

    def answer(self, row: int) -> tuple[int, int]:
        """Label of this row, and its distance in pixels."""
        turn, label = divmod(row, len(PROBES[self.name].classes))
        return label, self.distances[turn % len(self.distances)]


def is_probe(name: str) -> bool:
    """Whether DATA is one of these sets."""
    return name.partition(":")[0] in PROBES


def load_probe(source: str, *, seed: int = 0, train: int = COUNTS["train"], val: int = COUNTS["val"]) -> DataSource:
    """A probe by its name.

    Args:
        source: ``texture``, ``pathfinder``, ``arrangement`` or ``mix``; ``NAME:DISTANCE`` for a single distance.
        seed: of all images.
        train: images in train.
        val: images in val.

    Raises:
        GlocalError: for a distance that the probe does not have, or a number out of range.
    """
    name, colon, text = source.partition(":")
    probe = PROBES[name]
    distances = probe.distances
    if colon:
        if text not in map(str, distances):
            known = ", ".join(map(str, distances))
            raise GlocalError(
                f"data: expected {name} or {name}:DISTANCE with a distance ({probe.option}) of {known} pixels, "
                f"got {source}"
            )
        distances = (int(text),)
    counts = {"train": train, "val": val}
    least = len(probe.classes) * len(distances)
    if seed < 0 or min(counts.values()) < least:
        raise GlocalError(
            f"{name}: expected a seed from 0 and at least {least} images per part, got {seed} and {counts}"
        )
    known_by = (name, probe.version, distances, seed, counts)
    sets = {part: _image_set(Drawn(name, distances, part, seed), count) for part, count in counts.items()}
    return DataSource(
        name=source,
        train=sets["train"],
        val=sets["val"],
        classes=probe.classes,
        skipped=(),
        warnings=_warnings(name),
        split="generated, each image from its index",
        fingerprint=hashlib.sha256(repr(known_by).encode()).hexdigest(),
    )


def _image_set(store: Drawn, count: int) -> ImageSet:
    answers = np.array([store.answer(row) for row in range(count)], dtype=np.int64)
    paths = tuple(f"{store.name}/{store.part}/{row:05d}" for row in range(count))
    classes = PROBES[store.name].classes
    labels, distances = np.ascontiguousarray(answers.T)
    return ImageSet(store.part, classes, labels, paths, store, np.arange(count), distances=distances)


def _warnings(name: str) -> tuple[str, ...]:
    if not os.path.exists(name):
        return ()
    return (f"{name} is the built-in probe; for the folder or file of that name here, use ./{name}",)
