"""Classifiers compared by top-1: fine-tuned or from scratch, or a linear head on a frozen backbone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from glocal.comparison.distance import accuracy_by_distance
from glocal.comparison.metric import Metric
from glocal.comparison.statistics import Answers
from glocal.data import DataSource
from glocal.errors import GlocalError
from glocal.metrics.classification import Outcomes
from glocal.schema import ClassCounts, CompareExtras, Mistake, RunScores
from glocal.tasks import ClassificationTask, Task
from glocal.training import FeatureBatches, ImageBatches, predict
from glocal.training.loader import BatchDataset


class Top1(Metric):
    """Accuracy."""

    key = ClassificationTask.metric
    lists = ("per_class", "confusion", "curve", "mistakes")

    def entry(self, task: Task, outcomes: Outcomes) -> RunScores:
        """Scores, and the most confident mistakes."""
        labels, paths = task.data.val.labels, task.data.val.paths
        mistakes: list[Mistake] = [
            {
                "path": paths[i],
                "picture": paths[i],
                "true": int(labels[i]),
                "predicted": predicted,
                "confidence": confidence,
            }
            for i, predicted, confidence in outcomes.mistakes()
        ]
        return cast(RunScores, {**task.results(outcomes), "mistakes": mistakes})

    def predictions(self, task: Task, outcomes: Outcomes) -> dict[str, np.ndarray]:
        """Logits and labels of the validation images."""
        assert outcomes.logits is not None  # asked for
        return {"logits": outcomes.logits, "labels": task.data.val.labels}

    def evidence(self, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
        """(images,) booleans: whether the prediction of each validation image is correct."""
        correct: np.ndarray = predictions["logits"].argmax(1) == predictions["labels"]
        return correct

    def gather(self, runs: Sequence[np.ndarray]) -> Answers:
        """Join runs."""
        return Answers(np.stack(runs))

    def data(self, source: DataSource) -> ClassCounts:
        """Images of each class."""
        num_classes = len(source.classes)
        return {
            "train_per_class": np.bincount(source.train.labels, minlength=num_classes).tolist(),
            "val_per_class": np.bincount(source.val.labels, minlength=num_classes).tolist(),
        }

    def about(
        self, runs: Sequence[Mapping[str, Any]], evidence: Mapping[str, Any], source: DataSource
    ) -> CompareExtras:
        """Accuracy by distance, if the validation images have distances."""
        distances = source.val.distances
        return {} if distances is None else {"by_distance": accuracy_by_distance(runs, evidence, distances)}


Features = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Features of the training and validation images, by model."""


class ProbeTask(ClassificationTask):
    """A linear classifier on the features of a frozen backbone; the features are computed once, outside the budget.

    Args:
        args: those of `ClassificationTask`.
        features: cache by model, filled by the first task of a model.
        rows: indices of the used training images of ``pixels``.
        options: those of `ClassificationTask`.
    """

    whole: nn.Module

    def __init__(self, *args: Any, features: Features, rows: np.ndarray, **options: Any) -> None:
        super().__init__(*args, **options)
        self.features, self.rows = features, rows
        self.normalize, self.prepare = self.prepare, nn.Identity()

    def create_model(self) -> nn.Module:
        """The classifier; `save` writes it with its backbone."""
        whole: Any = super().create_model()
        self.whole = whole
        name = self.config.model.name
        head = whole.get_classifier()
        if not isinstance(head, nn.Linear):
            raise GlocalError(f"probe: {name} has no single linear classifier to train")
        if name not in self.features:
            assert self.pixels is not None
            device, backbone = self.config.hardware.device, _Backbone(whole)
            train, val = (predict(backbone, self.normalize, images, device) for images in self.pixels)
            self.features[name] = train, val
            _check_head(name, whole, head, self.normalize, self.pixels[1], val)
        return head

    def datasets(self) -> tuple[BatchDataset, BatchDataset]:
        """Features."""
        train, val = self.features[self.config.model.name]
        of_train, of_val = self.data.train.labels, self.data.val.labels
        num_classes = len(self.classes)
        return FeatureBatches(train[self.rows], of_train, num_classes), FeatureBatches(val, of_val, num_classes)

    def count_macs(self, model: nn.Module) -> int:
        """MACs of the classifier only."""
        assert isinstance(model, nn.Linear)
        return model.in_features * model.out_features

    def save(self, model: nn.Module, folder: Path) -> None:
        """Save classifier and backbone."""
        super().save(self.whole.cpu().eval(), folder)


class _Backbone(nn.Module):
    """A model without its classifier: (B, 3, S, S) -> (B, head_hidden_size)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input of the classifier."""
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)


def _check_head(
    name: str, model: nn.Module, head: nn.Module, prepare: nn.Module, images: ImageBatches, features: torch.Tensor
) -> None:
    """Check that the classifier on the features equals the model; a few models have layers in between."""
    first = images.subset(np.arange(min(2, len(images))))
    expected = predict(model, prepare, first)
    if not torch.allclose(head.cpu()(features[: len(first)]), expected, rtol=1e-3, atol=1e-4):
        raise GlocalError(f"probe: {name} is more than its features and a linear classifier; use --mode finetune")
