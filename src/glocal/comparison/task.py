"""What a comparison asks of its task; `Classifiers` is one, `Detectors` and `Segmenters` are others."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from glocal.comparison.measure import Measure
from glocal.comparison.settings import Run
from glocal.training.loader import Batched
from glocal.training.objective import Objective
from glocal.training.trainer import TrainResult

PREDICTIONS = "predictions.safetensors"
SPLIT_SEED = 0
"""Which images are in a fraction of the training set is the same for every model and seed."""


@dataclass(frozen=True)
class Setup:
    """What the engine is given for a run.

    Attributes:
        model: is trained.
        learned: what it learns from.
        tested: what it is tested on.
        objective: loss and scores.
        macs: of a forward pass for one image.
        whole: the model that is kept, where only a part of it is trained.
    """

    model: nn.Module
    learned: Batched
    tested: Batched
    objective: Objective
    macs: int
    whole: nn.Module | None = None


class ComparedTask(Protocol):
    """A task, its data and what is asked; it is sent to the processes of runs."""

    @property
    def measure(self) -> Measure:
        """What runs are ranked by."""
        ...

    @property
    def unscored(self) -> Mapping[str, Any]:
        """What a run that failed has in the place of its scores."""
        ...

    @property
    def kept_bytes(self) -> int:
        """Of the images that each process keeps in memory."""
        ...

    def create(self, name: str) -> Any:
        """A model as the first seed has it, to measure what it costs."""
        ...

    def count_macs(self, name: str, model: Any) -> int:
        """Multiply-accumulates of a forward pass for one image."""
        ...

    def training_memory(self, model: Any) -> float:
        """Peak of one training step, MiB."""
        ...

    def load(self) -> None:
        """Read once what all runs need."""
        ...

    def setup(self, run: Run, macs: int) -> Setup:
        """Model and data of a run; ``macs`` of its model."""
        ...

    def entry(self, run: Run, result: TrainResult) -> dict[str, Any]:
        """Scores of a run, for its entry in the results."""
        ...

    def write_files(self, run: Run, result: TrainResult, folder: Path) -> None:
        """The model, and predictions.safetensors with what `evidence` needs."""
        ...

    def evidence(self, folder: Path) -> Any:
        """What a run says of the test images, as `Measure.gather` takes it."""
        ...

    def data(self) -> dict[str, Any]:
        """Name, classes, counts and the like, for the results."""
        ...

    def about(self, runs: list[dict[str, Any]], evidence: Mapping[str, Any]) -> dict[str, Any]:
        """What else the results say; ``evidence`` by the id of a run that has finished."""
        ...


def digest_of_paths(paths: tuple[str, ...]) -> str:
    """SHA-256 over paths in their order: which images predictions belong to."""
    return hashlib.sha256(json.dumps(paths).encode()).hexdigest()
