"""The metric of a comparison, one per task: scores, saved predictions, and evidence for intervals."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors.numpy import load_file, save_file

from glocal.comparison.statistics import Evidence
from glocal.report.words import WORDS, Words
from glocal.schema import ClassCounts, CompareExtras, RunScores
from glocal.tasks import Task

PREDICTIONS = "predictions.safetensors"


class Metric(ABC):
    """The ranking score, further scores, and the evidence for an interval.

    Attributes:
        key: of the score in a run's entry, such as ``top1``.
        lists: keys of a run's entry that hold lists, empty for a failed run.
    """

    key: ClassVar[str]
    lists: ClassVar[tuple[str, ...]]

    @property
    def words(self) -> Words:
        """Its names, its further scores, and the batch size for throughput."""
        return WORDS[self.key]

    @property
    def unscored(self) -> dict[str, Any]:
        """Values of a failed run instead of scores."""
        missing = (self.key, *self.words.scores, "train_images_per_s", "budget", "weights")
        return {**dict.fromkeys(missing), **{name: [] for name in self.lists}}

    @property
    def costs(self) -> tuple[str, ...]:
        """Keys of the costs of a model."""
        return ("params", "macs", "latency_ms_b1", f"images_per_s_b{self.words.batch}", "peak_memory_mib")

    @abstractmethod
    def entry(self, task: Task, outcomes: Any) -> RunScores:
        """Scores of a run, for its entry in the results."""

    @abstractmethod
    def predictions(self, task: Task, outcomes: Any) -> dict[str, np.ndarray]:
        """The saved predictions: the input of `evidence`."""

    @abstractmethod
    def evidence(self, predictions: Mapping[str, np.ndarray]) -> Any:
        """Evidence of a run on the validation images: input of `gather`."""

    @abstractmethod
    def gather(self, runs: Sequence[Any]) -> Evidence:
        """Join the evidence of single runs, seeds of one model."""

    @abstractmethod
    def data(self, source: Any) -> ClassCounts:
        """Counts by class, for the results."""

    def guess(self, source: Any) -> float | None:
        """The score of a model that has learned nothing, where it is known."""
        return None

    @abstractmethod
    def about(self, runs: Sequence[Mapping[str, Any]], evidence: Mapping[str, Any], source: Any) -> CompareExtras:
        """Further entries of the results; ``evidence`` by the id of a finished run."""

    def save(self, task: Task, outcomes: Any, folder: Path) -> None:
        """Write predictions.safetensors."""
        arrays = self.predictions(task, outcomes)
        paths = json.dumps(task.data.val.paths)  # which images the predictions belong to
        # safetensors 0.8.0 writes arrays that are not C-contiguous wrongly: findings/safetensors-numpy-order.sh
        save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()},
            folder / PREDICTIONS,
            metadata={"paths_sha256": hashlib.sha256(paths.encode()).hexdigest()},
        )

    def load(self, folder: Path) -> Any:
        """The evidence of the run in a folder."""
        return self.evidence(load_file(folder / PREDICTIONS))
