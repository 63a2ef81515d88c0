"""Classification: cross-entropy with what a recipe asks for, and the outcomes of a validation set."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import nn

from glocal.bench import copy_on_meta, count_macs
from glocal.data import DataSource, ImageSet
from glocal.data.transforms import Normalize, RandomErasing
from glocal.metrics.classification import Outcomes
from glocal.models.creation import create, freeze, model_args, starting_normalisation
from glocal.models.io import ModelConfig, TaskName, save_model
from glocal.models.names import parse_model
from glocal.schema import Scores
from glocal.tasks.base import Task, labels_in_model
from glocal.training.config import TrainConfig
from glocal.training.loader import Batch, BatchDataset, ImageBatches, TrainingBatches, load_pixels
from glocal.training.trainable import Score, training_loss


class ClassificationTask(Task):
    """One of K classes for each image.

    Args:
        model_config: see `Task`.
        config: mixing, erasing, label smoothing, class balance and the like.
        data: a `DataSource`.
        labels: of the training images, for the weights of classes; by default those of ``data``.
        pixels: training and validation images at their size, where they have been decoded before.
        options: those of `Task`.
    """

    name: ClassVar[TaskName] = "classification"
    metric: ClassVar[str] = "top1"
    columns: ClassVar[tuple[str, ...]] = ("val_loss", "val_top1", "val_top5")
    class_weights: torch.Tensor | None

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainConfig = TrainConfig(),  # noqa: B008 - immutable
        data: DataSource | None = None,
        *,
        labels: np.ndarray | None = None,
        pixels: tuple[ImageBatches, ImageBatches] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model_config, config, data, **options)
        self.pixels = pixels
        loss, num_classes = config.loss, len(model_config.classes)
        self.prepare: nn.Module = Normalize(model_config.mean, model_config.std)
        self.mixes = bool(loss.mixup or loss.cutmix)
        self.mixup = Mixup(loss.mixup, loss.cutmix, label_smoothing=loss.label_smoothing, num_classes=num_classes)
        self.erasing = RandomErasing(config.data.random_erasing) if config.data.random_erasing else None
        if labels is None and data is not None:
            labels = data.train.labels
        weights = None if labels is None else class_weights(labels, num_classes, loss.class_balance)
        self.register_buffer("class_weights", weights)

    @classmethod
    def for_data(cls, data: DataSource, config: TrainConfig, **options: Any) -> Self:
        """For a model of timm's factory."""
        name, weights, size = config.model.name, config.model.weights, config.image_size
        mean, std = starting_normalisation(name, weights)
        model_config = ModelConfig(
            task="classification",
            architecture=parse_model(name)[0].partition(".")[0],
            classes=tuple(data.classes),
            image_size=size,
            mean=mean,
            std=std,
            crop_pct=config.data.crop_pct,
        )
        return cls(model_config, config, data, **options)

    def datasets(self) -> tuple[BatchDataset, BatchDataset]:
        """Images of one size, augmented and as they are."""
        if self.pixels is None:
            size, crop_pct = self.model_config.image_size, self.config.data.crop_pct
            self.pixels = (
                load_pixels(self.data.train, size, crop_pct=crop_pct),
                load_pixels(self.data.val, size, crop_pct=crop_pct),
            )
        return TrainingBatches(self.pixels[0], self.config, self.config.seed), self.pixels[1]

    def eval_set(self, images: ImageSet) -> ImageBatches:
        """At the size and crop of the model."""
        labels = np.array(labels_in_model(self.classes, images.classes))[images.labels]
        relabelled = dataclasses.replace(images, classes=self.classes, labels=labels)
        return ImageBatches(relabelled, self.model_config.image_size, crop_pct=self.model_config.crop_pct)

    def create_model(self) -> nn.Module:
        """A model of timm's factory with a new head."""
        start = self.config.model
        model: nn.Module = create(
            start.name,
            num_classes=len(self.classes),
            image_size=self.model_config.image_size,
            seed=self.config.seed,
            weights=start.weights,
            drop_path=start.drop_path,
        )
        freeze(model, start.freeze)
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        """With the keywords that timm's factory does not remember."""
        keywords = model_args(self.config.model.name, self.model_config.image_size)
        save_model(model, folder, dataclasses.replace(self.model_config, keywords=keywords))

    def count_macs(self, model: nn.Module) -> int:
        """At the size of the recipe."""
        return count_macs(model, self.model_config.image_size)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Cross-entropy; a model of several heads has a loss of its own."""
        inputs, labels = self.prepare(batch.inputs), batch.labels
        if self.erasing is not None:
            inputs = self.erasing(inputs, batch.seeds)
        if not self.mixes:
            return self.loss_of(model, inputs, labels, self.config.loss.label_smoothing)
        even = max(2, len(inputs) // 2 * 2)  # timm's Mixup pairs images
        inputs, targets = self.mixup(inputs[:even], labels[:even])
        return self.loss_of(model, inputs, targets, 0.0)

    def loss_of(
        self, model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, label_smoothing: float
    ) -> torch.Tensor:
        """Of (B, ...) inputs and their (B,) labels or (B, K) mixed targets."""
        criterion = partial(_cross_entropy, label_smoothing=label_smoothing, weights=self.class_weights)
        return training_loss(model, inputs, targets, criterion)

    @torch.no_grad()
    def predict(self, model: nn.Module, images: torch.Tensor, device: str | torch.device) -> np.ndarray:
        """(B, 3, S, S) uint8 -> (B, K) float32 logits."""
        logits: torch.Tensor = model(self.prepare(images.to(device)))
        return logits.float().cpu().numpy()

    def evaluate_batch(self, model: nn.Module, batch: Batch, device: torch.device) -> Outcomes:
        """Of the labelled images, the first of the batch; without one the model runs on a black image."""
        inputs = batch.inputs if len(batch.inputs) else batch.inputs.new_zeros(1, *batch.inputs.shape[1:])
        logits = self.predict(model, inputs, device)[: len(batch.labels)]
        return Outcomes.of(logits, batch.labels.numpy(), keep=self.keep_outputs)

    def join(self, parts: Sequence[Outcomes]) -> Outcomes:
        """Outcomes of all parts."""
        return Outcomes.join(parts)

    def score(self, outcomes: Outcomes) -> Score:
        """Top-1, and the mean negative log-likelihood as the loss."""
        scores = outcomes.score(len(self.classes))
        return Score(
            scores.top1, scores.nll, {"val_loss": scores.nll, "val_top1": scores.top1, "val_top5": scores.top5}
        )

    def results(self, outcomes: Outcomes) -> Scores:
        """Accuracy, calibration, confusions."""
        return outcomes.score(len(self.classes)).to_dict()

    def has_unused_parameters(self, model: nn.Module, batch: Batch) -> bool:
        """Found by a step without storage."""
        try:
            shell: Any = copy_on_meta(model).train()
            image = torch.empty((2, *batch.inputs.shape[1:]), device="meta")
            target = torch.zeros(2, dtype=torch.long, device="meta")
            training_loss(shell, image, target, F.cross_entropy).backward()
            return any(p.requires_grad and p.grad is None for p in shell.parameters())
        except (RuntimeError, NotImplementedError):  # an operator that asks for values
            return True


def class_weights(labels: np.ndarray, num_classes: int, balance: float) -> torch.Tensor | None:
    """(K,) weights of classes in the loss, share of the images ** -balance, whose mean over images is 1."""
    if balance == 0:
        return None
    shares = np.bincount(labels, minlength=num_classes) / len(labels)
    weights = np.where(shares > 0, np.maximum(shares, 1e-12) ** -balance, 0)
    return torch.from_numpy(weights / (weights * shares).sum()).float()


def _cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, *, label_smoothing: float, weights: torch.Tensor | None
) -> torch.Tensor:
    """Mean over images; weights are those of their classes, of (B, K) mixed targets those of their parts."""
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if targets.ndim == 1:
        per_image = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
        return (per_image * weights[targets]).mean()
    return F.cross_entropy(logits, targets, weight=weights)
