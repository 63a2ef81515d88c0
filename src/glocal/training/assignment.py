"""A task on a data set, as a run carries it out; `ClassifyImages` is one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from glocal.bench import count_macs
from glocal.data import DataSource, Skipped
from glocal.data.transforms import Normalize
from glocal.metrics.classification import Outcomes
from glocal.models.creation import create, freeze, model_args, normalisation
from glocal.models.io import ModelConfig, save_model
from glocal.training.classification import Classification
from glocal.training.loader import Batched, TrainingBatches, load_pixels
from glocal.training.objective import Objective
from glocal.training.request import Request


class Assignment(Protocol):
    """What a run asks of its task and data."""

    @property
    def classes(self) -> Sequence[str]:
        """Names, in the order of labels."""
        ...

    @property
    def skipped(self) -> Sequence[Skipped]:
        """What could not be used from the start."""
        ...

    def plan(self, request: Request) -> dict[str, Any]:
        """What must be the same for a run to be resumed, as JSON, beside what the request says."""
        ...

    def create(self, request: Request) -> nn.Module:
        """The model, its weights drawn or loaded, and frozen as the recipe says."""
        ...

    def count_macs(self, model: nn.Module, request: Request) -> int:
        """Multiply-accumulates of a forward pass for one image."""
        ...

    def batches(self, request: Request) -> tuple[Batched, Batched]:
        """What is learned from, and what is tested on."""
        ...

    def objective(self, model: nn.Module, learned: Batched, request: Request) -> Objective:
        """Loss and scores."""
        ...

    def save(self, model: nn.Module, folder: Path, request: Request) -> None:
        """Write the model so that it can be used on its own."""
        ...

    def results(self, found: Any) -> dict[str, Any]:
        """Scores for results.json, of what the objective kept of the validation set."""
        ...


class ClassifyImages:
    """Train a classifier on a `DataSource`."""

    def __init__(self, source: DataSource) -> None:
        self.source = source
        self.classes, self.skipped = source.classes, source.skipped

    def plan(self, request: Request) -> dict[str, Any]:
        """Fingerprint, classes and number of images."""
        source = self.source
        return {
            "data": {"fingerprint": source.fingerprint, "classes": list(source.classes), "images": len(source.train)}
        }

    def create(self, request: Request) -> nn.Module:
        """A model of timm's factory."""
        model = create(
            request.model,
            num_classes=len(self.classes),
            image_size=request.image_size,
            seed=request.seed,
            weights=request.weights,
            drop_path=request.recipe.model.drop_path,
        )
        freeze(model, request.recipe.model.freeze)
        return model

    def count_macs(self, model: nn.Module, request: Request) -> int:
        """At the size of the recipe."""
        return count_macs(model, request.image_size)

    def batches(self, request: Request) -> tuple[Batched, Batched]:
        """Augmented and plain images of one size."""
        recipe = request.recipe
        learned, tested = (
            load_pixels(part, request.image_size, crop_pct=recipe.data.crop_pct)
            for part in (self.source.train, self.source.val)
        )
        return TrainingBatches(learned, recipe, request.seed), tested

    def objective(self, model: nn.Module, learned: Batched, request: Request) -> Objective:
        """Cross-entropy."""
        return Classification(Normalize(*normalisation(model)), request.recipe, learned)

    def save(self, model: nn.Module, folder: Path, request: Request) -> None:
        """As `glocal.models.io.load_model` reads it."""
        config = ModelConfig.of_classifier(
            model,
            classes=self.classes,
            image_size=request.image_size,
            crop_pct=request.recipe.data.crop_pct,
            keywords=model_args(request.model, request.image_size),
        )
        save_model(model, folder, config)

    def results(self, found: Outcomes) -> dict[str, Any]:
        """Scores, and how many images there were."""
        source = self.source
        counts = {"train": len(source.train), "val": len(source.val), "skipped": len(source.skipped)}
        return {
            "classes": list(self.classes), "images": counts, **found.score(len(self.classes)).to_dict(),
        }  # fmt: skip
