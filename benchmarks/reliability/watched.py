"""``glocal`` with a record of what is trained on, in the file GLOCAL_WATCHED.

    python -m benchmarks.reliability.watched train ...

A line of JSON for each part of a step: number of the process that trains, its rank, step, and of each image a number
that is drawn for it alone in its epoch (`glocal.data.transforms.draws`), and a sum over its pixels.
"""

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from glocal.data.transforms import draws
from glocal.training import run
from glocal.training.loader import ImageBatches
from glocal.training.trainer import Trainer

LOG = "GLOCAL_WATCHED"
CARELESS = "GLOCAL_CARELESS"
"""A planted fault: a process does not look whether the one that started it is there."""


def watch(log: Path) -> None:
    """Record the batches that this process trains on, as they are when the step begins."""
    next_batch = Trainer._next_batch

    def watched(running: Any, batches: Any, part: int) -> Any:
        batch = next_batch(running, batches, part)
        line = {
            "pid": os.getpid(),
            "rank": running.rank,
            "step": running.state.step,
            "seeds": batch.seeds.tolist(),
            "pixels": sums(image.permute(1, 2, 0).numpy() for image in batch.inputs),
        }
        with open(log, "a") as file:  # one write each, so lines of several processes do not mix
            file.write(json.dumps(line) + "\n")
        return batch

    Trainer._next_batch = watched  # type: ignore[method-assign]


def sums(pixels: Iterable[np.ndarray]) -> list[int]:
    """A sum over each image, (H, W, 3)."""
    return [zlib.crc32(np.ascontiguousarray(image)) for image in pixels]


def read(log: Path) -> list[dict[str, Any]]:
    """The lines; one that a kill has torn is left out."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("}\n")]


def drawn(seed: int, epoch: int, num_images: int) -> dict[int, int]:
    """By the number that is drawn for it in an epoch: the position of an image."""
    numbers = draws(seed, epoch, np.arange(num_images))[:, 3].astype(np.int64)
    assert len(set(numbers.tolist())) == num_images
    return {number: position for position, number in enumerate(numbers.tolist())}


def by_pixels(images: ImageBatches) -> dict[int, int]:
    """By its pixels: the position of an image that is not augmented."""
    assert images.pixels is not None
    found = {number: position for position, number in enumerate(sums(images.pixels))}
    assert len(found) == len(images)
    return found


if __name__ == "__main__":
    watch(Path(os.environ[LOG]))
    if CARELESS in os.environ:
        run.end_with_parent = lambda: None
    from glocal.cli import main

    main()
