"""Backbones compared under one head: what the metrics of detectors and segmenters have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, cast

import numpy as np

from glocal.comparison.examples import choose
from glocal.comparison.metric import Metric
from glocal.comparison.statistics import Resampled
from glocal.schema import ClassCounts, CompareExtras, RunScores
from glocal.tasks import Task

RESAMPLES = 2_000


@dataclass(frozen=True, eq=False)
class Examined:
    """What a run says of the validation images, where a score is no mean over images.

    Attributes:
        score: on all validation images.
        drawn: (resamples,) on images drawn with replacement.
        of_image: (images,) a score of each alone, to choose by what is shown; NaN where there is nothing to score.
    """

    score: float
    drawn: np.ndarray
    of_image: np.ndarray


class HeadMetric(Metric):
    """A score of all images together, whose interval comes from `RESAMPLES` draws of them."""

    batch = 8
    numbers: ClassVar[tuple[str, ...]]
    lists: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        self.unscored = {
            **dict.fromkeys((*self.numbers, "train_images_per_s", "budget", "weights")),
            **{name: [] for name in (*self.lists, "curve")},
        }

    def entry(self, task: Task, outcomes: Any) -> RunScores:
        """Scores, and whose weights the backbone has."""
        about, scores = task.about(), task.results(outcomes)
        transfer = {"transfer": about["transfer"]} if "transfer" in about else {}
        return cast(RunScores, {**transfer, **scores})

    def gather(self, runs: Sequence[Examined]) -> Resampled:
        """Of each run."""
        return Resampled(np.array([run.score for run in runs]), np.stack([run.drawn for run in runs], axis=1))

    def data(self, source: Any) -> ClassCounts:
        """How often each class is there, where that is known."""
        train, val = (source.counts.get(part) for part in ("train", "val"))
        return {
            "train_per_class": None if train is None else np.asarray(train).tolist(),
            "val_per_class": None if val is None else np.asarray(val).tolist(),
        }

    def about(self, runs: Sequence[Mapping[str, Any]], evidence: Mapping[str, Examined], source: Any) -> CompareExtras:
        """What runs are ranked by, and images to show."""
        of_image = {run["id"]: evidence[run["id"]].of_image for run in runs if run["id"] in evidence}
        return {"metric": self.key, "examples": choose(runs, of_image, source.val.paths)}


@lru_cache(maxsize=1)
def draws(num_images: int) -> np.ndarray:
    """(`RESAMPLES`, N) how often each image is in each draw with replacement; the same for all runs."""
    even = np.full(num_images, 1 / num_images)
    return np.random.default_rng(0).multinomial(num_images, even, size=RESAMPLES)
