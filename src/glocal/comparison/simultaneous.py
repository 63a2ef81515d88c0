"""Many models at once: which of them may be the best, and how good the chosen one is.

The best of many models looks better than it is, and among many equal models some look worse than they are. An interval
for each pair alone is wrong more often the more models there are. Here one threshold holds for all pairs together: with
`CONFIDENCE` no true difference lies outside its interval, so that none of the best models is called worse.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
from scipy import stats

from glocal.comparison.statistics import CONFIDENCE, Answers, Evidence, Interval

FOLDS = 10
"""Of cross-fitting."""
PRIOR_FREEDOM = 4.0
"""Degrees of freedom that the median spread of seeds stands for: two seeds more than the three of the default."""
EFFICIENCY_OF_MEDIAN = 0.64
"""Of a median, relative to a mean."""


@dataclass(frozen=True, eq=False)
class Deviations:
    """Scores of models and how they vary.

    Attributes:
        means: (models,) mean score over the seeds.
        drawn: (resamples, models) deviations from the true score as resampling finds them: over the validation images,
            the same for all models, and over seeds.
        of_images: (resamples, models) the part of it that is the sampling of the images.
    """

    means: np.ndarray
    drawn: np.ndarray
    of_images: np.ndarray


def deviations(models: Sequence[Evidence]) -> Deviations:
    """Resample the validation images and the seeds of several models.

    The images are drawn with replacement, the same for all models and seeds. A few seeds tell little about their
    spread, so that of each model is drawn towards the median of all (a moderated variance, Smyth 2004, with
    `PRIOR_FREEDOM`): a model whose training sometimes fails is uncertain itself, and does not hide the differences
    between the others, as a pooled variance would. A model with one seed has the median spread; if no model has two,
    the variation over seeds is not in the result.

    Args:
        models: evidence of each model's seeds, on the same images in the same order.
    """
    rng = np.random.default_rng(0)
    counts = [len(model.scores) for model in models]
    of_runs = reduce(lambda some, more: some.beside(more), models).resampled(rng)
    columns = np.split(of_runs, np.cumsum(counts)[:-1], axis=1)
    means = np.array([model.mean for model in models])
    drawn = np.stack([column.mean(axis=1) for column in columns], axis=1)
    of_images = drawn = drawn - drawn.mean(axis=0)
    spread = _Seeds.of([model.scores for model in models], columns)
    if spread is not None:
        chi2 = rng.chisquare(spread.freedom, drawn.shape)
        variance = spread.of_scores * spread.freedom / chi2 - spread.of_images
        scale = np.sqrt(variance.clip(min=0)) / np.sqrt(counts)
        drawn = drawn + scale * rng.standard_normal(drawn.shape)
    return Deviations(means, drawn, of_images)


def differences_to_best(models: Deviations, confidence: float = CONFIDENCE) -> list[Interval]:
    """By model, its score minus that of the best one, in simultaneous intervals; the best one's own is 0 to 0.

    The threshold is the quantile of the largest of all differences between two models, each divided by its standard
    deviation (Tukey's range, from the resamples): the best of the models is not known in advance, so the differences to
    it are differences to whichever came out on top. Models whose interval holds 0 are a set that contains the best
    with `confidence`.

    Args:
        models: from `deviations`.
        confidence: that all intervals hold at once.
    """
    best = int(np.argmax(models.means))
    quantile = range_quantile(models.drawn, confidence)
    margins = quantile * (models.drawn - models.drawn[:, [best]]).std(axis=0)
    method = f"simultaneous over {len(models.means)} models, by resampling"
    return [
        Interval(float(mean), float(mean - margin), float(mean + margin), method)
        for mean, margin in zip(models.means - models.means[best], margins, strict=True)
    ]


def stepwise_differences(
    models: Sequence[Evidence], confidence: float = CONFIDENCE
) -> tuple[list[Interval], list[int], Deviations]:
    """`differences_to_best`, repeated without the models that are worse, until none is: a step-down.

    Models that are far behind often differ most between seeds, too; without them the others can be told apart. Only
    the first mistake of the steps counts (the model confidence set, Hansen et al. 2011, §2), so the confidence holds
    for all steps together.

    Args:
        models: evidence of each model's seeds, on the same images in the same order.
        confidence: that all intervals hold at once.

    Returns:
        By model, the interval of the last step it was in; the indices of the models that are left, and their
        `deviations`.
    """
    still = list(range(len(models)))
    found: dict[int, Interval] = {}
    while True:
        drawn = deviations([models[i] for i in still])
        found |= dict(zip(still, differences_to_best(drawn, confidence), strict=True))
        kept = [i for i in still if found[i].high >= 0]
        if len(kept) == len(still):
            return [found[i] for i in range(len(models))], still, drawn
        still = kept


def chance_of_being_best(models: Deviations) -> np.ndarray:
    """(models,) the fraction of resamples in which each has the highest score."""
    winners = np.argmax(models.means + models.drawn, axis=1)
    return np.bincount(winners, minlength=len(models.means)) / len(winners)


def accuracy_of_choice(models: Sequence[Answers], of_all: Deviations, groups: np.ndarray | None = None) -> Interval:
    """The accuracy of the most accurate of several models, corrected for its having been chosen: the winner's curse.

    The mean is cross-fitted: the images are divided into `FOLDS`; for each fold, and each seed if all models have
    several, the model is chosen on the other images and seeds and scored on these. The interval allows for any of the
    models that may be the best having come out on top: its lower end is that of all of them at once.

    Args:
        models: answers of each model's seeds.
        of_all: their `deviations`.
        groups: (images,) images of a group are in one fold; by default each image is a group.
    """
    seeds = min(len(model.right) for model in models)
    right = np.stack([model.right[:seeds] for model in models]).astype(np.float64)  # (models, seeds, images)
    groups = np.arange(right.shape[2]) if groups is None else np.unique(groups, return_inverse=True)[1]
    fold = (np.random.default_rng(0).permutation(groups.max() + 1) % FOLDS)[groups]
    values = np.empty(right.shape[1:])
    for part in np.unique(fold) if groups.any() else ():
        inside = fold == part
        scores = right[:, :, ~inside].mean(axis=2)
        for seed in range(seeds):
            others = scores if seeds == 1 else np.delete(scores, seed, axis=1)
            values[seed, inside] = right[np.argmax(others.mean(axis=1)), seed, inside]
    candidates = np.array([difference.high >= 0 for difference in differences_to_best(of_all)])
    best = int(np.argmax(of_all.means))
    spread = of_all.drawn.std(axis=0)
    largest = (of_all.drawn[:, candidates] / np.where(spread > 0, spread, 1)[candidates]).max(axis=1)
    top = float(of_all.means[best])
    mean = float(values.mean()) if groups.any() else top  # a single group cannot choose and be scored
    low = top - float(np.quantile(largest, (1 + CONFIDENCE) / 2)) * float(spread[best])
    high = top - float(np.quantile(of_all.drawn[:, best], (1 - CONFIDENCE) / 2))
    method = f"chosen on {FOLDS - 1} of {FOLDS} parts of the images, scored on the other; interval for all candidates"
    return Interval(mean, max(0.0, min(low, mean)), min(1.0, max(high, mean)), method)


class _Seeds(NamedTuple):
    """Variances of a seed's score about the mean of its model's seeds; one of each per model.

    Attributes:
        of_scores: on these validation images.
        of_images: the part of it that is the sampling of the images, which resampling them has already.
        freedom: degrees of freedom.
    """

    of_scores: np.ndarray
    of_images: np.ndarray
    freedom: np.ndarray

    @classmethod
    def of(cls, scores: Sequence[np.ndarray], columns: Sequence[np.ndarray]) -> "_Seeds | None":
        """From (seeds,) scores and their (resamples, seeds) resamples by model; None if no model has two seeds."""
        freedom = np.array([len(of_model) - 1 for of_model in scores])
        several = freedom > 0
        if not several.any():
            return None
        own = np.array([of_model.var(ddof=1) if len(of_model) > 1 else 0.0 for of_model in scores])
        apart = [column - column.mean(axis=1, keepdims=True) for column in columns]
        of_images = np.array([column.var(axis=0).sum() for column in apart]) / freedom.clip(min=1)
        typical = float(np.median(own[several] / stats.chi2.median(freedom[several]) * freedom[several]))
        prior = min(PRIOR_FREEDOM, EFFICIENCY_OF_MEDIAN * freedom.sum())
        of_images[~several] = of_images[several].mean()
        return cls((prior * typical + freedom * own) / (prior + freedom), of_images, prior + freedom)


def range_quantile(drawn: np.ndarray, confidence: float) -> float:
    """The quantile over resamples of the largest studentised difference between two models."""
    largest = np.zeros(len(drawn))
    for model in range(drawn.shape[1] - 1):
        differences = drawn[:, model + 1 :] - drawn[:, [model]]
        spread = differences.std(axis=0)
        spread[spread == 0] = np.inf  # models with the same answers never differ
        np.maximum(largest, np.abs(differences / spread).max(axis=1), out=largest)
    return float(np.quantile(largest, confidence))
