"""Backbones compared under one head: common code of the metrics of detectors and segmenters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np

from glocal.comparison.examples import choose
from glocal.comparison.metric import Metric
from glocal.comparison.statistics import Resampled
from glocal.schema import ClassCounts, CompareExtras, RunScores
from glocal.tasks import Task

RESAMPLES = 2_000


@dataclass(frozen=True, eq=False)
class Examined:
    """Scores of a run on the validation images, for metrics other than means over images.

    Attributes:
        score: on all validation images.
        drawn: (resamples,) on images drawn with replacement.
        of_image: (images,) score of each image alone, to choose the shown ones; NaN for images without a score.
    """

    score: float
    drawn: np.ndarray
    of_image: np.ndarray


class HeadMetric(Metric):
    """A score over all images together, with an interval from `RESAMPLES` bootstrap resamples."""

    def entry(self, task: Task, outcomes: Any) -> RunScores:
        """Scores, and the source of the backbone's weights."""
        about, scores = task.about(), task.results(outcomes)
        transfer = {"transfer": about["transfer"]} if "transfer" in about else {}
        return cast(RunScores, {**transfer, **scores})

    def gather(self, runs: Sequence[Examined]) -> Resampled:
        """Join runs."""
        return Resampled(np.array([run.score for run in runs]), np.stack([run.drawn for run in runs], axis=1))

    def data(self, source: Any) -> ClassCounts:
        """Counts by class, or None if unknown."""
        train, val = (source.counts.get(part) for part in ("train", "val"))
        return {
            "train_per_class": None if train is None else np.asarray(train).tolist(),
            "val_per_class": None if val is None else np.asarray(val).tolist(),
        }

    def about(self, runs: Sequence[Mapping[str, Any]], evidence: Mapping[str, Examined], source: Any) -> CompareExtras:
        """The metric, and images to show."""
        of_image = {run["id"]: evidence[run["id"]].of_image for run in runs if run["id"] in evidence}
        return {"metric": self.key, "examples": choose(runs, of_image, source.val.paths)}


@lru_cache(maxsize=1)
def draws(num_images: int) -> np.ndarray:
    """(`RESAMPLES`, N) counts of each image in each bootstrap resample; the same for all runs."""
    even = np.full(num_images, 1 / num_images)
    return np.random.default_rng(0).multinomial(num_images, even, size=RESAMPLES)
