"""The runs of a folder of claims: records, correct predictions, folders, validation images."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from glocal.claims.claim import Claim
from glocal.comparison import ComparisonSettings, Run
from glocal.comparison.store import Store
from glocal.data import DataSource
from glocal.schema import RecordedRun
from glocal.training import ImageBatches, load_pixels


@dataclass
class Trials:
    """The runs of a folder and their validation images.

    Attributes:
        data: the data set.
        settings: of all runs.
        store: the folder.
        entries: records of all runs started so far.
    """

    data: DataSource
    settings: ComparisonSettings
    store: Store
    entries: Mapping[Run, RecordedRun]

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.settings.image_size

    @property
    def device(self) -> str:
        """The device of the models."""
        return self.settings.device

    @cached_property
    def val_images(self) -> ImageBatches:
        """The validation images."""
        return load_pixels(self.data.val, self.image_size, crop_pct=self.settings.recipe.data.crop_pct)

    def seeds(self, claim: Claim) -> tuple[int, ...]:
        """Seeds with which all runs of the claim have finished."""
        return tuple(
            seed
            for seed in self.settings.seeds
            if all(self.entry(model, fraction, seed)["status"] == "ok" for model, fraction in claim.trained())
        )

    def entry(self, model: str, fraction: float, seed: int) -> RecordedRun:
        """The record of a run."""
        return self.entries[Run(model, fraction, seed)]

    def folder(self, model: str, fraction: float, seed: int) -> Path:
        """The folder of a run."""
        return self.store.runs / Run(model, fraction, seed).id

    def right(self, model: str, fraction: float, seed: int) -> np.ndarray:
        """(images,) booleans: which predictions of a run are correct."""
        correct: np.ndarray = self.settings.metric.load(self.folder(model, fraction, seed))
        return correct

    def failures(self, claim: Claim) -> list[str]:
        """Failed runs of the claim, each with its reason."""
        runs = [Run(model, fraction, seed) for model, fraction in claim.trained() for seed in self.settings.seeds]
        return [f"{run.id} failed: {self.entries[run]['error']}" for run in runs if self.entries[run]["status"] != "ok"]
