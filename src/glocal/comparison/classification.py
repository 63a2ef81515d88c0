"""Classifiers compared by top-1."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from glocal.comparison.distance import accuracy_by_distance
from glocal.comparison.metric import Metric
from glocal.comparison.statistics import Answers
from glocal.data import DataSource
from glocal.metrics.classification import Outcomes
from glocal.schema import ClassCounts, CompareExtras, Mistake, RunScores
from glocal.tasks import ClassificationTask, Task


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

    def guess(self, source: DataSource) -> float:
        """Of always answering the most frequent class of the training set."""
        most = np.bincount(source.train.labels, minlength=len(source.classes)).argmax()
        return float((source.val.labels == most).mean())

    def about(
        self, runs: Sequence[Mapping[str, Any]], evidence: Mapping[str, Any], source: DataSource
    ) -> CompareExtras:
        """Accuracy by distance, if the validation images have distances."""
        distances = source.val.distances
        return {} if distances is None else {"by_distance": accuracy_by_distance(runs, evidence, distances)}
