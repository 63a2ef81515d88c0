"""Semantic segmentation: square crops for training, whole images for validation, mean IoU."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from glocal.data import IGNORE, SegmentationSample, SegmentationSet, SegmentationSource
from glocal.data.predictions import png
from glocal.data.transforms import (
    SEGMENTATION_SCALES,
    Normalize,
    jitter_params,
    jitter_segmentation,
    resize_shorter_side,
)
from glocal.metrics.segmentation import Confusion, Labelled, class_pixels, confusion_matrix
from glocal.models.io import ModelConfig, TaskName
from glocal.schema import Scores
from glocal.tasks.base import labels_in_model
from glocal.tasks.heads import HeadTask, model_config
from glocal.tasks.samples import SampleBatches
from glocal.training.config import TrainConfig
from glocal.training.loader import Batch, BatchDataset, BatchIndices
from glocal.training.trainable import Score

MOST_LOGITS = 2**28
"""Numbers at once, 1 GiB."""


class SegmentationBatches(SampleBatches):
    """A segmentation set, a batch at a time.

    Of a recipe: (B, 3, S, S) uint8 squares and (B, S, S) uint8 labels. Else lists: (3, h, w) images whose shorter side
    is S, and (H, W) labels of the size that the image has in its file.

    Args:
        images: the image set.
        size: S, pixels.
        options: those of `SampleBatches`.
    """

    def __init__(self, images: SegmentationSet, size: int, **options: Any) -> None:
        super().__init__(images, **options)
        self.size, self.table = size, np.full(IGNORE + 1, IGNORE, np.uint8)
        self.table[: self.num_classes] = self.relabel

    def __getitem__(self, key: BatchIndices) -> Batch:
        samples, seeds, skipped = self.read(key)
        images, maps = [image for image, _ in samples], [label_map for _, label_map in samples]
        if self.recipe is None:
            return Batch(images, maps, seeds, key.weight, skipped)
        none = torch.empty((0, self.size, self.size), dtype=torch.uint8)
        inputs = torch.stack(images) if images else none[:, None].expand(-1, 3, -1, -1)
        return Batch(inputs, torch.stack(maps) if maps else none, seeds, key.weight, skipped)

    def prepare(self, sample: SegmentationSample, drawn: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and label map: a square of the two, or the whole."""
        image, label_map = sample.image, self.table[sample.label_map]
        if self.recipe is not None:
            scale_range = SEGMENTATION_SCALES if self.recipe.data.augment == "light" else None
            params = jitter_params(drawn, flip=self.recipe.data.flip, scale_range=scale_range)
            image, label_map = jitter_segmentation(image, label_map, params, self.size)
        else:
            image = resize_shorter_side(image, self.size)
        image = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(image), torch.from_numpy(np.ascontiguousarray(label_map))


class SegmentationTask(HeadTask):
    """A class for each pixel.

    Args:
        model_config: see `Task`.
        config: how it is trained.
        data: a `SegmentationSource`.
        options: those of `Task`.
    """

    name: ClassVar[TaskName] = "segmentation"
    metric: ClassVar[str] = "miou"
    columns: ClassVar[tuple[str, ...]] = ("val_loss", "val_miou", "val_pixel_accuracy")

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainConfig = TrainConfig(),  # noqa: B008 - immutable
        data: SegmentationSource | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model_config, config, data, **options)
        self.prepare: nn.Module = Normalize(model_config.mean, model_config.std)

    @classmethod
    def for_data(cls, data: SegmentationSource, config: TrainConfig, **options: Any) -> Self:
        """For the backbone and head of a configuration."""
        return cls(model_config("segmentation", config, classes=data.classes), config, data, **options)

    def datasets(self) -> tuple[BatchDataset, BatchDataset]:
        """Square crops, and whole images."""
        size = self.model_config.image_size
        train_set = SegmentationBatches(self.data.train, size, recipe=self.config, seed=self.config.seed)
        return train_set, SegmentationBatches(self.data.val, size)

    def eval_set(self, images: SegmentationSet) -> BatchDataset:
        """Whole images."""
        labels = labels_in_model(self.classes, images.classes)
        return SegmentationBatches(images, self.model_config.image_size, labels=labels)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Cross-entropy, the mean over pixels that are labelled; 0 where none is."""
        logits = model(self.prepare(batch.inputs)).float()
        labels = batch.labels.long()
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        return total / (labels != IGNORE).sum().clamp(min=1)

    def evaluate_batch(self, model: nn.Module, batch: Batch, device: torch.device) -> Confusion:
        """Each image on its own, its logits brought to the size of its label map."""
        num_classes, loss, kept = len(self.classes), 0.0, []
        counts = np.zeros((num_classes, num_classes), np.int64)
        for image, target in zip(batch.inputs, batch.labels, strict=True):
            labels, parts = target.to(device).long()[None], []
            size = target.shape[-2], target.shape[-1]
            for strip, logits in logits_at(model, self.prepare, image.to(device), size):
                loss += F.cross_entropy(logits, labels[:, strip], ignore_index=IGNORE, reduction="sum").item()
                parts.append(logits[0].argmax(0).cpu().numpy())
            predicted = np.concatenate(parts)
            of_image = confusion_matrix(target.numpy(), predicted, num_classes)
            counts += of_image
            if self.keep_outputs:
                kept.append(Labelled(class_pixels(of_image), png(Image.fromarray(predicted.astype(np.uint8)))))
        return Confusion(counts, loss, len(batch.inputs), tuple(kept))

    def join(self, parts: Sequence[Confusion]) -> Confusion:
        """The sum."""
        none = np.zeros((len(self.classes), len(self.classes)), np.int64)
        counts = sum((part.counts for part in parts), none)
        kept = tuple(one for part in parts for one in part.kept)
        return Confusion(counts, sum(part.loss for part in parts), sum(len(part) for part in parts), kept)

    def score(self, outcomes: Confusion) -> Score:
        """Mean IoU, and the mean cross-entropy of pixels as the loss."""
        columns: dict[str, float | None] = {
            "val_loss": outcomes.mean_loss,
            "val_miou": outcomes.miou,
            "val_pixel_accuracy": outcomes.pixel_accuracy,
        }
        return Score(outcomes.miou, outcomes.mean_loss, columns)

    def results(self, outcomes: Confusion) -> Scores:
        """IoU, overall and of each class, and confusions."""
        return outcomes.to_dict()

    @torch.no_grad()
    def predict(self, model: nn.Module, images: Sequence[torch.Tensor], device: str | torch.device) -> list[np.ndarray]:
        """(H, W) labels of each image."""
        label_maps = []
        for image in images:
            small = resize_shorter_side(image.permute(1, 2, 0).numpy(), self.model_config.image_size)
            pixels = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1))).to(device)
            parts = logits_at(model, self.prepare, pixels, (image.shape[1], image.shape[2]))
            label_maps.append(np.concatenate([logits[0].argmax(0).cpu().numpy() for _, logits in parts]))
        return label_maps


def logits_at(
    model: nn.Module, prepare: nn.Module, image: torch.Tensor, size: tuple[int, int]
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Logits of an image at a size, bilinear; of a large one in strips, as 150 classes of 12 Mpx would take 7 GB.

    Args:
        model: of segmentation.
        prepare: uint8 images -> its inputs.
        image: (3, h, w) uint8.
        size: (H, W).

    Returns:
        Rows from the top on, and their (1, K, rows, W) float logits.
    """
    logits = model(prepare(image[None])).float()
    height, width = size
    rows = max(1, MOST_LOGITS // (logits.shape[1] * width))
    if tuple(logits.shape[-2:]) == size:
        yield slice(None), logits
    elif rows >= height:
        yield slice(None), F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    else:
        for top in range(0, height, rows):
            strip = slice(top, min(top + rows, height))
            yield strip, F.interpolate(_rows(logits, height, strip), size=(strip.stop - top, width), mode="bilinear")


def _rows(logits: torch.Tensor, height: int, strip: slice) -> torch.Tensor:
    """Some of the rows that (1, K, h, w) logits have when they are brought to a height, (1, K, rows, w)."""
    own = logits.shape[-2]
    place = (torch.arange(strip.start, strip.stop, device=logits.device) + 0.5) * own / height - 0.5
    above = place.clamp(min=0).floor().long()
    below = (above + 1).clamp(max=own - 1)
    weight = (place.clamp(min=0) - above)[:, None]
    return logits[:, :, above] * (1 - weight) + logits[:, :, below] * weight
