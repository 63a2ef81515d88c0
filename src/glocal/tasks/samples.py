"""Batches of a detection or segmentation set, in the form that the training loop reads them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from glocal.data import DetectionSet, ImageError, SegmentationSet, Skipped
from glocal.data.pasted import Pasted
from glocal.data.transforms import draws
from glocal.training.config import TrainConfig
from glocal.training.loader import Batch, BatchDataset, BatchIndices


class SampleBatches(BatchDataset, Dataset[Batch]):
    """Samples of a detection or segmentation set, a batch at a time.

    Args:
        images: the image set.
        recipe: says how to augment; None for evaluation, without augmentation.
        seed: of all draws.
        labels: what each label of the set is to a model; None for the same.
    """

    evaluation_batch = 4

    def __init__(
        self,
        images: DetectionSet | SegmentationSet,
        *,
        recipe: TrainConfig | None = None,
        seed: int = 0,
        labels: Sequence[int] | None = None,
    ) -> None:
        self.images, self.recipe, self.seed = images, recipe, seed
        self.labels, self.num_classes = np.zeros(len(images), np.int64), len(images.classes)
        self.relabel = np.arange(self.num_classes) if labels is None else np.asarray(labels, np.int64)

    @property
    def reads_files(self) -> bool:
        """Whether reading is worth processes of its own: samples that are drawn take less time than their way here."""
        return not isinstance(self.images.store, Pasted)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, key: BatchIndices) -> tuple[list[Any], torch.Tensor, tuple[Skipped, ...]]:
        """What `prepare` gives of each image, and their seeds; images that became unreadable are left out."""
        drawn = draws(self.seed, key.epoch, key.indices)
        prepared, kept, skipped = [], [], []
        for place, position in enumerate((key.indices % len(self)).tolist()):
            try:
                prepared.append(self.prepare(self.images[position], drawn[place]))
                kept.append(place)
            except ImageError as error:
                skipped.append(Skipped(error.path, f"became unreadable: {error.reason}"))
        return prepared, torch.from_numpy(drawn[kept, 3].astype(np.int64)), tuple(skipped)

    def prepare(self, sample: Any, drawn: np.ndarray) -> Any:
        """A sample as it goes into a batch, augmented by its (4,) draws."""
        raise NotImplementedError
