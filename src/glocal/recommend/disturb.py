"""Images with partial information: shuffled patches, or blurred details.

Shuffled patches keep the content of each patch and lose its position (Naseer et al. 2021, §3,
https://arxiv.org/abs/2105.10497); a blur keeps the layout and loses the details.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import gaussian_blur

from glocal.analysis.robustness import shuffle
from glocal.training import ImageBatches, TrainingBatches
from glocal.training.loader import Batch, BatchDataset, BatchIndices


@dataclass(frozen=True)
class Condition:
    """An image corruption.

    Attributes:
        kind: "shuffle", "blur", or "clean" for none.
        level: patches along a side; or the Gaussian's std as a fraction of the side.
    """

    kind: Literal["clean", "shuffle", "blur"]
    level: float = 0.0

    @property
    def name(self) -> str:
        """Such as "patches of 1/4 of the side shuffled"."""
        if self.kind == "clean":
            return "as they are"
        if self.kind == "shuffle":
            return f"patches of {self.size} shuffled"
        return f"blurred by {self.size}"

    @property
    def size(self) -> str:
        """Size of the patches, or width of the blur."""
        parts = self.level if self.kind == "shuffle" else 1 / self.level
        return f"1/{parts:g} of the side"


CLEAN = Condition("clean")
SHUFFLES = tuple(Condition("shuffle", level) for level in (2, 4, 8))
BLURS = tuple(Condition("blur", level) for level in (1 / 32, 1 / 16, 1 / 8))
CONDITIONS = (CLEAN, *SHUFFLES, *BLURS)
SHOWN = (CLEAN, *CONDITIONS)
"""Conditions of the training images, drawn uniformly: clean ones are twice as likely."""


def disturb(images: Tensor, condition: Condition, generator: torch.Generator) -> Tensor:
    """(B, 3, S, S) uint8 images under a condition, the orders of patches drawn from ``generator``."""
    if condition.kind == "shuffle":
        return shuffle(images, condition.level, generator=generator)
    if condition.kind == "blur":
        sigma = condition.level * images.shape[-1]
        reach = max(1, math.ceil(3 * sigma))
        width = 2 * reach + 1
        across = gaussian_blur(images.float(), [width, 1], [sigma, sigma])  # one axis at a time, for speed
        blurred = gaussian_blur(across, [1, width], [sigma, sigma])
        return blurred if images.is_floating_point() else blurred.round().to(images.dtype)
    return images


class DisturbedTrainSet(BatchDataset, Dataset[Batch]):
    """A training set with a random condition per image and epoch.

    A model trained on every disturbance loses only the removed information under it; any other would also suffer from
    artefacts such as patch borders.
    """

    def __init__(self, source: TrainingBatches) -> None:
        self.source, self.labels, self.num_classes = source, source.labels, source.num_classes

    @property
    def reads_files(self) -> bool:
        """See `ImageBatches`."""
        return self.source.reads_files

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: BatchIndices) -> Batch:
        batch = self.source[key]
        seeds = batch.seeds.numpy()
        images = batch.inputs.clone()
        for number, condition in enumerate(SHOWN):
            chosen = np.flatnonzero(seeds % len(SHOWN) == number)
            if len(chosen):
                generator = torch.Generator().manual_seed(int(seeds[chosen[0]]))
                images[chosen] = disturb(images[chosen], condition, generator)
        return batch._replace(inputs=images)


class DisturbedValSet(BatchDataset, Dataset[Batch]):
    """A validation set under one condition, with fixed orders of patches."""

    def __init__(self, source: ImageBatches, condition: Condition) -> None:
        self.source, self.condition = source, condition
        self.labels, self.num_classes = source.labels, source.num_classes

    @property
    def reads_files(self) -> bool:
        """See `ImageBatches`."""
        return self.source.reads_files

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: BatchIndices) -> Batch:
        batch = self.source[key]
        generator = torch.Generator().manual_seed(int(key.indices[0]))
        return batch._replace(inputs=disturb(batch.inputs, self.condition, generator))
