"""Classifiers compared: fine-tuned or from scratch, or a linear head on a frozen backbone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from glocal.bench import count_macs, peak_training_memory
from glocal.comparison.distance import accuracy_by_distance
from glocal.comparison.measure import TOP1
from glocal.comparison.settings import Run, Settings
from glocal.comparison.task import PREDICTIONS, SPLIT_SEED, Setup, digest_of_paths
from glocal.data import DataSource
from glocal.data.transforms import Normalize
from glocal.errors import GlocalError
from glocal.models.creation import create, freeze, heads, model_args, normalisation
from glocal.models.io import ModelConfig, save_model
from glocal.training import (
    CACHE_BYTES,
    Classification,
    FeatureBatches,
    ImageBatches,
    TrainingBatches,
    load_pixels,
    predict,
)
from glocal.training.trainer import TrainResult


class Classifiers:
    """A `ComparedTask`; images, and a probe's features, are read once for all runs.

    Args:
        settings: of the comparison.
        source: training and validation images.
    """

    measure = TOP1
    unscored: Mapping[str, Any] = {
        **dict.fromkeys(("top1", "top5", "ece", "nll", "train_images_per_s", "budget", "weights")),
        **{name: [] for name in ("per_class", "confusion", "curve", "mistakes")},
    }

    def __init__(self, settings: Settings, source: DataSource) -> None:
        self.settings, self.source = settings, source
        self.position = {path: i for i, path in enumerate(source.train.paths)}
        self.features: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def kept_bytes(self) -> int:
        """Pixels, where they fit."""
        pixels = (len(self.source.train) + len(self.source.val)) * 3 * self.settings.image_size**2
        return min(pixels, 2 * CACHE_BYTES)

    def create(self, name: str) -> Any:
        """With the weights and the head of the first seed."""
        return self._create(name, seed=0)

    def count_macs(self, name: str, model: Any) -> int:
        """At the size of the comparison."""
        return count_macs(model, self.settings.image_size)

    def training_memory(self, model: Any) -> float:
        """Of the recipe's batch; in a linear probe only the head is trained."""
        size = self.settings.image_size
        if self.settings.mode == "probe":
            model.requires_grad_(False)
            for head in heads(model):
                head.requires_grad_(True)
        return peak_training_memory(model, (self.settings.recipe.data.batch_size, 3, size, size), self.settings.device)

    def load(self) -> None:
        """Images at their size."""
        size, crop_pct = self.settings.image_size, self.settings.recipe.data.crop_pct
        self.train_images: ImageBatches = load_pixels(self.source.train, size, crop_pct=crop_pct)
        self.val_images: ImageBatches = load_pixels(self.source.val, size, crop_pct=crop_pct)

    def setup(self, run: Run, macs: int) -> Setup:
        """Images of the fraction as the recipe augments them, or the features of a frozen backbone."""
        settings = self.settings
        model = self._create(run.model, run.seed)
        prepare = Normalize(*normalisation(model))
        fraction = self.source.train.fraction(run.fraction, SPLIT_SEED)
        positions = np.array([self.position[path] for path in fraction.paths])
        if settings.mode == "probe":
            return self._probe(run, model, prepare, positions)
        images = TrainingBatches(self.train_images.subset(positions), settings.recipe, run.seed)
        freeze(model, settings.recipe.model.freeze)
        objective = Classification(prepare, settings.recipe, images, keep_logits=True)
        return Setup(model, images, self.val_images, objective, macs)

    def _probe(self, run: Run, model: Any, prepare: Normalize, positions: np.ndarray) -> Setup:
        """The classifier on the frozen backbone's features; computing these, once, is not in the budget."""
        head = model.get_classifier()
        if not isinstance(head, nn.Linear):
            raise GlocalError(f"probe: {run.model} has no single linear classifier to train")
        if run.model not in self.features:
            backbone = _Backbone(model)
            sets = self.train_images, self.val_images
            computed = [predict(backbone, prepare, images, self.settings.device) for images in sets]
            self.features[run.model] = computed[0], computed[1]
            _check_head(run.model, model, head, prepare, self.val_images, computed[1])
        learned, tested = self.features[run.model]
        features = FeatureBatches(learned[positions], self.source.train.labels[positions], head.out_features)
        objective = Classification(nn.Identity(), self.settings.recipe, features, keep_logits=True)
        return Setup(
            model=head,
            learned=features,
            tested=FeatureBatches(tested, self.source.val.labels, head.out_features),
            objective=objective,
            macs=head.in_features * head.out_features,
            whole=model,
        )

    def entry(self, run: Run, result: TrainResult) -> dict[str, Any]:
        """Scores, and the most confident mistakes."""
        labels, paths = self.source.val.labels, self.source.val.paths
        mistakes = [
            {
                "path": paths[i],
                "picture": paths[i],
                "true": int(labels[i]),
                "predicted": predicted,
                "confidence": confidence,
            }
            for i, predicted, confidence in result.outcomes.mistakes()
        ]
        return {**result.outcomes.score(len(self.source.classes)).to_dict(), "mistakes": mistakes}

    def write_files(self, run: Run, result: TrainResult, folder: Path) -> None:
        """The model, and logits and labels of the test images."""
        size, logits = self.settings.image_size, result.outcomes.logits
        assert logits is not None  # asked for
        config = ModelConfig.of_classifier(
            result.model,
            classes=self.source.classes,
            image_size=size,
            crop_pct=self.settings.recipe.data.crop_pct,
            keywords=model_args(run.model, size),
        )
        save_model(result.model, folder, config)
        arrays = {"logits": logits, "labels": self.source.val.labels}
        save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()},  # others it would write wrongly
            folder / PREDICTIONS,
            metadata={"paths_sha256": digest_of_paths(self.source.val.paths)},
        )

    def evidence(self, folder: Path) -> np.ndarray:
        """(images,) booleans: whether the prediction of each test image is right."""
        predictions = load_file(folder / PREDICTIONS)
        right: np.ndarray = predictions["logits"].argmax(1) == predictions["labels"]
        return right

    def data(self) -> dict[str, Any]:
        """Images of each class."""
        source, num_classes = self.source, len(self.source.classes)
        return {
            "train_per_class": np.bincount(source.train.labels, minlength=num_classes).tolist(),
            "val_per_class": np.bincount(source.val.labels, minlength=num_classes).tolist(),
        }

    def about(self, runs: list[dict[str, Any]], evidence: Mapping[str, Any]) -> dict[str, Any]:
        """Accuracy by the distance needed, where the test images have one."""
        distances = self.source.val.distances
        return {} if distances is None else {"by_distance": accuracy_by_distance(runs, evidence, distances)}

    def _create(self, name: str, seed: int) -> Any:
        settings = self.settings
        return create(
            name,
            num_classes=len(self.source.classes),
            image_size=settings.image_size,
            seed=seed,
            weights=settings.weights_of(name),
            drop_path=settings.recipe.model.drop_path,
        )


class _Backbone(nn.Module):
    """All of a model but its classifier: (B, 3, S, S) -> (B, head_hidden_size)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features as the classifier gets them."""
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)


def _check_head(
    name: str, model: nn.Module, head: nn.Module, prepare: nn.Module, images: ImageBatches, features: torch.Tensor
) -> None:
    """The classifier on the features must be the model; a few have more between the two."""
    first = images.subset(np.arange(min(2, len(images))))
    expected = predict(model, prepare, first)
    if not torch.allclose(head.cpu()(features[: len(first)]), expected, rtol=1e-3, atol=1e-4):
        raise GlocalError(f"probe: {name} is more than its features and a linear classifier; use --mode finetune")
