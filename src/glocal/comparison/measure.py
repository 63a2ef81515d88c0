"""What runs of a task are ranked by, and what else is said of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glocal.comparison.statistics import Answers, Evidence, Resampled


@dataclass(frozen=True)
class Measure:
    """The score that decides, and the numbers beside it.

    Attributes:
        key: of the score in a run's entry, such as ``top1``.
        name: what sentences call it.
        others: keys of further numbers of a run whose means over seeds stand in the summary.
        batch: images that are inferred at a time where throughput is measured.
        gather: joins what single runs, seeds of one model, say of the test images.
    """

    key: str
    name: str
    others: tuple[str, ...]
    batch: int
    gather: Callable[[Sequence[Any]], Evidence]

    @property
    def costs(self) -> tuple[str, ...]:
        """Keys of what a model costs."""
        return ("params", "macs", "latency_ms_b1", f"images_per_s_b{self.batch}", "peak_memory_mib")


def gather_answers(rights: Sequence[np.ndarray]) -> Answers:
    """(images,) booleans of each run: whether its prediction of each test image is right."""
    return Answers(np.stack(rights))


@dataclass(frozen=True, eq=False)
class Examined:
    """What a run says of the test images, where a score is no mean over images.

    Attributes:
        score: on all test images.
        drawn: (resamples,) on images drawn with replacement.
        of_image: (images,) a score of each alone, to choose by what is shown; NaN where there is nothing to score.
    """

    score: float
    drawn: np.ndarray
    of_image: np.ndarray


def gather_examined(runs: Sequence[Examined]) -> Resampled:
    """Of each run."""
    return Resampled(np.array([run.score for run in runs]), np.stack([run.drawn for run in runs], axis=1))


TOP1 = Measure("top1", "top-1", ("top5", "ece"), 32, gather_answers)
MEASURES = {
    "classification": TOP1,
    "detection": Measure("map", "box AP", ("map50", "map75", "mask_map"), 8, gather_examined),
    "segmentation": Measure("miou", "mIoU", ("pixel_accuracy",), 8, gather_examined),
}
"""By task."""
