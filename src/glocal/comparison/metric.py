"""What the runs of a comparison are ranked by: a metric for each task, and what is kept of each validation image."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors.numpy import load_file, save_file

from glocal.comparison.statistics import Evidence
from glocal.schema import ClassCounts, CompareExtras, RunScores
from glocal.tasks import Task

PREDICTIONS = "predictions.safetensors"


class Metric:
    """The score that decides, the numbers beside it, and the evidence for an interval.

    Attributes:
        key: of the score in a run's entry, such as ``top1``.
        name: what sentences call it.
        others: keys of further numbers of a run whose means over seeds stand in the summary.
        batch: images that are inferred at a time where throughput is measured.
        unscored: what a run that failed has in the place of its scores.
    """

    key: ClassVar[str]
    name: ClassVar[str]
    others: ClassVar[tuple[str, ...]]
    batch: ClassVar[int]
    unscored: Mapping[str, Any]

    @property
    def costs(self) -> tuple[str, ...]:
        """Keys of what a model costs."""
        return ("params", "macs", "latency_ms_b1", f"images_per_s_b{self.batch}", "peak_memory_mib")

    def entry(self, task: Task, outcomes: Any) -> RunScores:
        """Scores of a run, for its entry in the results."""
        raise NotImplementedError

    def predictions(self, task: Task, outcomes: Any) -> dict[str, np.ndarray]:
        """What `evidence` needs of the outcomes, to be saved."""
        raise NotImplementedError

    def evidence(self, predictions: Mapping[str, np.ndarray]) -> Any:
        """What a run says of the validation images, as `gather` takes it."""
        raise NotImplementedError

    def gather(self, runs: Sequence[Any]) -> Evidence:
        """Join the evidence of single runs, seeds of one model."""
        raise NotImplementedError

    def data(self, source: Any) -> ClassCounts:
        """Counts by class, for the results."""
        raise NotImplementedError

    def about(self, runs: Sequence[Mapping[str, Any]], evidence: Mapping[str, Any], source: Any) -> CompareExtras:
        """What else the results say; ``evidence`` by the id of a run that has finished."""
        raise NotImplementedError

    def save(self, task: Task, outcomes: Any, folder: Path) -> None:
        """Write predictions.safetensors."""
        arrays = self.predictions(task, outcomes)
        paths = json.dumps(task.data.val.paths)  # which images the predictions belong to
        save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()},  # others it would write wrongly
            folder / PREDICTIONS,
            metadata={"paths_sha256": hashlib.sha256(paths.encode()).hexdigest()},
        )

    def load(self, folder: Path) -> Any:
        """The evidence of the run in a folder."""
        return self.evidence(load_file(folder / PREDICTIONS))
