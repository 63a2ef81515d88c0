"""Which differences between models are larger than the noise: intervals over seeds and test images.

All functions take right: (seeds, images) booleans, whether each run's prediction of each test image is right, and are
deterministic. Rates are shares, from 0 to 1.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval and the method that gave it."""

    mean: float
    low: float
    high: float
    method: str

    @property
    def holds_zero(self) -> bool:
        """Whether the data leave open which way it goes."""
        return self.low <= 0 <= self.high


def accuracy_interval(right: np.ndarray) -> Interval:
    """Mean accuracy of a model.

    With two or more seeds, two independent errors are added in quadrature: Student's t-interval of the mean over seeds
    on these test images, and what other test images would change, 1.96 standard deviations of the mean of all seeds in
    a bootstrap over the images. Seeds alone would give two lucky seeds of equal accuracy an interval of no width.
    With one seed: percentile bootstrap over the test images, 10,000 resamples; what another seed would change is then
    not in the interval.

    Args:
        right: (seeds, images) booleans.
    """
    accuracies = right.mean(axis=1)
    mean = float(accuracies.mean())
    num_seeds = len(right)
    resampled = _resampled_accuracies(right, np.random.default_rng(0))
    if num_seeds > 1:
        quantile = (1 + CONFIDENCE) / 2
        of_seeds = stats.t.ppf(quantile, num_seeds - 1) * accuracies.std(ddof=1) / np.sqrt(num_seeds)
        of_images = stats.norm.ppf(quantile) * resampled.mean(axis=1).std()
        margin = float(np.hypot(of_seeds, of_images))
        method = f"t-interval over {num_seeds} seeds, with the sampling of the test images"
        return Interval(mean, max(0.0, mean - margin), min(1.0, mean + margin), method)
    low, high = _percentiles(resampled[:, 0])
    return Interval(mean, low, high, "bootstrap over test images, one seed")


def paired_difference(right: np.ndarray, best: np.ndarray) -> Interval:
    """Mean accuracy of a model minus that of the best one.

    Two-level paired bootstrap with percentiles, 10,000 resamples: each draws test images with replacement, the same for
    both models, and within each model its seeds with replacement. The mean of S drawn seeds spreads too little by the
    factor (S - 1) / S in variance (Davison & Hinkley 1997, §3.8), so its deviation from the mean of all is widened by
    sqrt(S / (S - 1)). With one seed only the images are resampled.

    In simulations of equal models on 1,000 images the interval holds zero in 96 % of cases with one seed; with two or
    three in 95 % (accuracies of seeds spread by 2 points) to 99 % (by half a point): it is rarely too sure.

    Args:
        right: (seeds, images) booleans of the model.
        best: (seeds, images) booleans of the best model, on the same images in the same order.
    """
    rng = np.random.default_rng(0)
    accuracies = _resampled_accuracies(np.concatenate([right, best]), rng)
    difference = _resampled_seeds(accuracies[:, : len(right)], rng) - _resampled_seeds(accuracies[:, len(right) :], rng)
    low, high = _percentiles(difference)
    mean = float(right.mean() - best.mean())
    seeds = "and seeds" if len(accuracies[0]) > 2 else "only, one seed"
    return Interval(mean, low, high, f"paired bootstrap over test images {seeds}")


def _resampled_accuracies(right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(resamples, runs) accuracies of all runs on test images drawn with replacement, the same for all runs.

    Images on which all runs fare alike are alike to the mean, so it is enough to draw how many there are of each kind.
    """
    kinds, counts = np.unique(right, axis=1, return_counts=True)
    num_images = right.shape[1]
    drawn = rng.multinomial(num_images, counts / num_images, size=RESAMPLES)  # (resamples, kinds)
    return drawn @ kinds.T.astype(np.float64) / num_images


def _resampled_seeds(accuracies: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(resamples, seeds) accuracies -> (resamples,) means over seeds drawn with replacement."""
    mean = accuracies.mean(axis=1)
    num_seeds = accuracies.shape[1]
    if num_seeds == 1:
        return mean
    drawn = np.take_along_axis(accuracies, rng.integers(num_seeds, size=accuracies.shape), axis=1).mean(axis=1)
    return mean + np.sqrt(num_seeds / (num_seeds - 1)) * (drawn - mean)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
