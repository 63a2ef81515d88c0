"""The trained models of an experiment, their predictions and folders."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from glocal.claims.claim import Claim
from glocal.comparison import Run, Settings
from glocal.comparison.store import Store
from glocal.data import DataSource
from glocal.training import ImageBatches, load_pixels


@dataclass
class Trials:
    """The runs of a folder, and their test images.

    Attributes:
        data: images.
        settings: of all runs.
        store: of the runs.
        entries: of all runs ever started.
    """

    data: DataSource
    settings: Settings
    store: Store
    entries: Mapping[Run, Mapping[str, Any]]

    @property
    def image_size(self) -> int:
        """Side in pixels."""
        return self.settings.image_size

    @property
    def device(self) -> str:
        """Device of the models."""
        return self.settings.device

    @cached_property
    def val_images(self) -> ImageBatches:
        """The test images."""
        return load_pixels(self.data.val, self.image_size, crop_pct=self.settings.recipe.data.crop_pct)

    def seeds(self, claim: Claim) -> tuple[int, ...]:
        """Seeds for which all runs of the claim are finished."""
        return tuple(
            seed
            for seed in self.settings.seeds
            if all(self.entry(model, fraction, seed)["status"] == "ok" for model, fraction in claim.trained())
        )

    def entry(self, model: str, fraction: float, seed: int) -> Mapping[str, Any]:
        """Record of a run."""
        return self.entries[Run(model, fraction, seed)]

    def folder(self, model: str, fraction: float, seed: int) -> Path:
        """Folder of a run."""
        return self.store.runs / Run(model, fraction, seed).id

    def right(self, model: str, fraction: float, seed: int) -> np.ndarray:
        """(images,) booleans, whether each prediction is correct."""
        correct: np.ndarray = self.settings.metric.load(self.folder(model, fraction, seed))
        return correct

    def failures(self, claim: Claim) -> list[str]:
        """Failed runs of the claim, with reasons."""
        runs = [Run(model, fraction, seed) for model, fraction in claim.trained() for seed in self.settings.seeds]
        return [f"{run.id} failed: {self.entries[run]['error']}" for run in runs if self.entries[run]["status"] != "ok"]
