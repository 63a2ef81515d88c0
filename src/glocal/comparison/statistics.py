"""Which differences between models exceed the noise: intervals over seeds and validation images.

All functions are deterministic. Scores are fractions from 0 to 1.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval and its method."""

    mean: float
    low: float
    high: float
    method: str

    @property
    def holds_zero(self) -> bool:
        """Whether the sign is undecided."""
        return self.low <= 0 <= self.high


class Evidence(Protocol):
    """Scores of some runs on the validation images, and their variation over the images."""

    @property
    def scores(self) -> np.ndarray:
        """(runs,) on all validation images."""
        ...

    @property
    def mean(self) -> float:
        """Mean of the scores."""
        ...

    def resampled(self, rng: np.random.Generator) -> np.ndarray:
        """(resamples, runs) scores on validation images drawn with replacement, the same for all runs."""
        ...

    def beside(self, other: Self) -> Self:
        """These runs followed by the others, on the same images in the same order."""
        ...


@dataclass(frozen=True, eq=False)
class Answers:
    """Accuracy: the score is the mean over images.

    Attributes:
        right: (runs, images) booleans, whether a run's prediction on an image is correct.
    """

    right: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """(runs,) accuracies."""
        return self.right.mean(axis=1)

    @property
    def mean(self) -> float:
        """Mean over all runs."""
        return float(self.right.mean())

    def resampled(self, rng: np.random.Generator) -> np.ndarray:
        """(resamples, runs), 10,000 resamples.

        Images with the same results in all runs contribute equally, so it is enough to draw the number of images of
        each kind.
        """
        kinds, counts = np.unique(self.right, axis=1, return_counts=True)
        num_images = self.right.shape[1]
        drawn = rng.multinomial(num_images, counts / num_images, size=RESAMPLES)  # (resamples, kinds)
        return drawn @ kinds.T.astype(np.float64) / num_images

    def beside(self, other: "Answers") -> "Answers":
        """The runs of both."""
        return Answers(np.concatenate([self.right, other.right]))


@dataclass(frozen=True, eq=False)
class Resampled:
    """Any score, computed on resamples of the validation images, the same for all runs of a comparison.

    Attributes:
        scores: (runs,) on all validation images.
        drawn: (resamples, runs) on images drawn with replacement.
    """

    scores: np.ndarray
    drawn: np.ndarray

    @property
    def mean(self) -> float:
        """Of the scores."""
        return float(self.scores.mean())

    def resampled(self, _: np.random.Generator) -> np.ndarray:
        """The given resamples."""
        return self.drawn

    def beside(self, other: "Resampled") -> "Resampled":
        """The runs of both."""
        both = np.concatenate([self.scores, other.scores])
        return Resampled(both, np.concatenate([self.drawn, other.drawn], axis=1))


def score_interval(evidence: Evidence, bounds: tuple[float, float] = (0.0, 1.0)) -> Interval:
    """Mean score of a model.

    With two or more seeds, two independent errors are added in quadrature: Student's t-interval of the mean over seeds
    on these validation images, and the sampling of the images: 1.96 standard deviations of the mean of all seeds in a
    bootstrap over them. Seeds alone would give two lucky seeds of equal accuracy an interval of no width.
    With one seed: percentile bootstrap over the validation images; the variation over seeds is then not in the
    interval.

    Args:
        evidence: of the model's seeds.
        bounds: lowest and highest possible score.
    """
    scores = evidence.scores
    mean = float(scores.mean())
    num_seeds = len(scores)
    resampled = evidence.resampled(np.random.default_rng(0))
    if num_seeds > 1:
        quantile = (1 + CONFIDENCE) / 2
        of_seeds = stats.t.ppf(quantile, num_seeds - 1) * scores.std(ddof=1) / np.sqrt(num_seeds)
        of_images = stats.norm.ppf(quantile) * resampled.mean(axis=1).std()
        margin = float(np.hypot(of_seeds, of_images))
        method = f"t-interval over {num_seeds} seeds, with the sampling of the validation images"
        return Interval(mean, max(bounds[0], mean - margin), min(bounds[1], mean + margin), method)
    low, high = _percentiles(resampled[:, 0])
    return Interval(mean, low, high, "bootstrap over validation images, one seed")


def score_difference(evidence: Evidence, best: Evidence, confidence: float = CONFIDENCE) -> Interval:
    """Mean score of a model minus that of the best one.

    Two-level paired bootstrap with percentiles: each resample draws validation images with replacement, the same for
    both models, and within each model its seeds with replacement. The mean of S drawn seeds spreads too little by the
    factor (S - 1) / S in variance (Davison & Hinkley 1997, §3.8), so its deviation from the mean of all is widened by
    sqrt(S / (S - 1)). With one seed only the images are resampled.

    In simulations of equal models on 1,000 images the interval of accuracy holds zero in 96 % of cases with one seed;
    with two or three in 95 % (accuracies of seeds spread by 2 points) to 99 % (by half a point): it is conservative.

    Args:
        evidence: of the model's seeds.
        best: of the best model's, on the same images in the same order.
        confidence: of the interval.
    """
    rng = np.random.default_rng(0)
    num_seeds = len(evidence.scores)
    scores = evidence.beside(best).resampled(rng)
    difference = _resampled_seeds(scores[:, :num_seeds], rng) - _resampled_seeds(scores[:, num_seeds:], rng)
    low, high = _percentiles(difference, confidence)
    mean = evidence.mean - best.mean
    seeds = "and seeds" if len(scores[0]) > 2 else "only, one seed"
    return Interval(mean, low, high, f"paired bootstrap over validation images {seeds}")


def accuracy_interval(right: np.ndarray) -> Interval:
    """`score_interval` of (seeds, images) booleans: whether each prediction is right."""
    return score_interval(Answers(right))


def paired_difference(right: np.ndarray, best: np.ndarray) -> Interval:
    """`score_difference` of (seeds, images) booleans: whether each prediction is right."""
    return score_difference(Answers(right), Answers(best))


def _resampled_seeds(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(resamples, seeds) scores -> (resamples,) means over seeds drawn with replacement."""
    mean = scores.mean(axis=1)
    num_seeds = scores.shape[1]
    if num_seeds == 1:
        return mean
    drawn = np.take_along_axis(scores, rng.integers(num_seeds, size=scores.shape), axis=1).mean(axis=1)
    return mean + np.sqrt(num_seeds / (num_seeds - 1)) * (drawn - mean)


def _percentiles(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
