"""One run: a model made from its seed, trained, tested, and its record."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from glocal.comparison.settings import Run, Settings
from glocal.comparison.store import Store
from glocal.data import DataSource
from glocal.errors import GlocalError
from glocal.training import (
    Classification,
    Engine,
    FeatureBatches,
    ImageBatches,
    Normalize,
    Progress,
    TrainingBatches,
    TrainResult,
    create,
    freeze,
    model_args,
    normalisation,
    predict,
    save_model,
    train,
)

SPLIT_SEED = 0
"""Which images are in a fraction of the training set is the same for every model and seed."""


class Runner:
    """Executes the runs of one comparison; images, and a probe's features, are read once for all of them.

    Args:
        settings: of the comparison.
        data: training and validation images.
        train_images: the training images at their size.
        val_images: the validation images at their size.
        macs: by model, of a forward pass for one image.
    """

    def __init__(
        self,
        settings: Settings,
        data: DataSource,
        train_images: ImageBatches,
        val_images: ImageBatches,
        macs: dict[str, int],
    ) -> None:
        self.settings, self.data, self.macs = settings, data, macs
        self.train_images, self.val_images = train_images, val_images
        self.position = {path: i for i, path in enumerate(data.train.paths)}
        self.features: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def execute(self, run: Run, store: Store, progress: Callable[[Progress], None]) -> dict[str, Any]:
        """Train and test a model and write its record; a run that fails has a record too, which says why.

        Returns:
            The run's entry in the results, without what its model costs.
        """
        try:
            result = self._train(run, progress)
        except Exception as error:  # whatever goes wrong in one run, the others go on
            entry = failed_entry(run, _reason(error))
            store.write(run.id, entry, lambda folder: None)
        else:
            entry = _identity(run) | self._entry(run, result)
            store.write(run.id, entry, lambda folder: self._write_files(folder, run.model, result))
        return entry

    def _train(self, run: Run, progress: Callable[[Progress], None]) -> TrainResult:
        settings = self.settings
        model = create_for(run.model, settings, len(self.data.classes), run.seed)
        prepare = Normalize(*normalisation(model))
        fraction = self.data.train.fraction(run.fraction, SPLIT_SEED)
        positions = np.array([self.position[path] for path in fraction.paths])
        settings_of_run: dict[str, Any] = {
            "recipe": settings.recipe,
            "budget": settings.budget,
            "seed": run.seed,
            "engine": Engine(settings.device),
            "on_error": settings.on_error,
            "progress": progress,
        }
        if settings.mode == "probe":
            return self._probe(run, model, prepare, positions, settings_of_run)
        images = TrainingBatches(self.train_images.subset(positions), settings.recipe, run.seed)
        macs = self.macs[run.model]
        freeze(model, settings.recipe.freeze)
        objective = Classification(prepare, settings.recipe, images, keep_logits=True)
        return train(model, images, self.val_images, objective=objective, macs=macs, **settings_of_run)

    def _probe(
        self, run: Run, model: Any, prepare: Normalize, positions: np.ndarray, settings_of_run: dict[str, Any]
    ) -> TrainResult:
        """Train the classifier on the frozen backbone's features; computing these, once, is not in the budget."""
        head = model.get_classifier()
        if not isinstance(head, nn.Linear):
            raise GlocalError(f"probe: {run.model} has no single linear classifier to train")
        if run.model not in self.features:
            backbone = _Backbone(model)
            computed = [predict(backbone, prepare, images, self.settings.device) for images in self._sets()]
            self.features[run.model] = computed[0], computed[1]
            _check_head(run.model, model, head, prepare, self.val_images, computed[1])
        learned, tested = self.features[run.model]
        features = FeatureBatches(learned[positions], self.data.train.labels[positions], head.out_features)
        result = train(
            head,
            features,
            FeatureBatches(tested, self.data.val.labels, head.out_features),
            objective=Classification(nn.Identity(), self.settings.recipe, features, keep_logits=True),
            macs=head.in_features * head.out_features,
            **settings_of_run,
        )
        return dataclasses.replace(result, model=model.cpu().eval())

    def _sets(self) -> tuple[ImageBatches, ImageBatches]:
        return self.train_images, self.val_images

    def _entry(self, run: Run, result: TrainResult) -> dict[str, Any]:
        labels, paths = self.data.val.labels, self.data.val.paths
        metrics = result.outcomes.score(len(self.data.classes))
        return {
            "status": "ok",
            "error": None,
            **metrics.to_dict(),
            "train_images_per_s": result.images_per_s,
            "budget": {
                "asked": str(self.settings.budget),
                "epochs": result.epochs,
                "steps": result.steps,
                "seconds": result.seconds,
                "flop": result.flop,
                "seconds_to_budget": result.seconds_to_budget,
            },
            "curve": [dataclasses.asdict(point) for point in result.curve],
            "mistakes": [
                {
                    "path": paths[i],
                    "picture": paths[i],
                    "true": int(labels[i]),
                    "predicted": predicted,
                    "confidence": confidence,
                }
                for i, predicted, confidence in result.outcomes.mistakes()
            ],
            "skipped": [dataclasses.asdict(skipped) for skipped in result.skipped],
            "weights": f"runs/{run.id}/model.safetensors",
        }

    def _write_files(self, folder: Path, name: str, result: TrainResult) -> None:
        size, logits = self.settings.image_size, result.outcomes.logits
        assert logits is not None  # asked for
        save_model(
            result.model,
            folder,
            classes=self.data.classes,
            image_size=size,
            crop_pct=self.settings.recipe.crop_pct,
            model_args=model_args(name, size),
        )
        save_file(
            {"logits": logits, "labels": self.data.val.labels},
            folder / "predictions.safetensors",
            metadata={"paths_sha256": digest_of_paths(self.data.val.paths)},
        )


def create_for(name: str, settings: Settings, num_classes: int, seed: int) -> Any:
    """A model of a comparison; see `glocal.training.create`."""
    return create(
        name,
        num_classes=num_classes,
        image_size=settings.image_size,
        seed=seed,
        weights=None if settings.mode == "scratch" else settings.weights.get(name, "pretrained"),
        drop_path=settings.recipe.drop_path,
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


def failed_entry(run: Run, reason: str) -> dict[str, Any]:
    """The entry of a run that has no result."""
    numbers = ("top1", "top5", "ece", "nll", "train_images_per_s", "budget", "weights")
    lists = ("per_class", "confusion", "curve", "mistakes", "skipped")
    empty = dict.fromkeys(numbers) | {name: [] for name in lists}
    return _identity(run) | {"status": "failed", "error": reason} | empty


def _identity(run: Run) -> dict[str, Any]:
    return {"id": run.id, "model": run.model, "seed": run.seed, "fraction": run.fraction}


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory; a smaller batch_size in the recipe or a smaller --image-size needs less"
    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, GlocalError) else f"{type(error).__name__}: {first}"


def digest_of_paths(paths: tuple[str, ...]) -> str:
    """SHA-256 over paths in their order: which images predictions belong to."""
    return hashlib.sha256(json.dumps(paths).encode()).hexdigest()
