"""Needs of images: the accuracy that a small reference model loses without their layout, or their detail.

The reference is trained from scratch on a mix of clean, shuffled and blurred images, and evaluated under each
condition. The fraction of its above-chance accuracy that is lost with shuffled patches of a quarter of the side is the
need for layout (*global*); with a blur of an eighth of the side, the need for detail (*local*). Both depend on the
reference and its training.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from glocal.bench import count_macs
from glocal.data import DataSource, ImageSet
from glocal.models.creation import create
from glocal.models.io import ModelConfig
from glocal.recommend.disturb import CLEAN, CONDITIONS, Condition, DisturbedTrainSet, DisturbedValSet
from glocal.tasks import ClassificationTask
from glocal.training import (
    Budget,
    TrainConfig,
    TrainingBatches,
    TrainingProgress,
    load_pixels,
    predict,
)
from glocal.training.trainer import Trainer

REFERENCE = "botnet_micro"
"""Convolution followed by global attention, so that it can use both detail and layout."""
MOST_IMAGES = {"train": 6000, "val": 2000}
"""Larger sets are subsampled by class."""
SHUFFLED, BLURRED = Condition("shuffle", 4), Condition("blur", 1 / 8)
"""The conditions that define the two needs."""
NEEDED = 0.25
"""Smallest loss that counts as a need, chosen arbitrarily (docs/recommend.md has values for probes and photographs)."""
CONFIDENCE = 0.95
RESAMPLES = 2000
TRAINING_PROGRESS = 0.85
"""Fraction of the time of a seed for training; the rest is for evaluation."""

ProgressCallback = Callable[[float, str], None]
"""Called with the fraction done and the current activity."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Predictions of the references.

    Attributes:
        right: (seeds, conditions, images) whether each prediction is correct, conditions as `CONDITIONS`.
        chance: accuracy of always predicting the most frequent class.
        images: numbers of training and validation images.
        epochs: of each reference.
    """

    right: np.ndarray
    chance: float
    images: tuple[int, int]
    epochs: float


@dataclass(frozen=True)
class Estimate:
    """A fraction with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """Accuracy under one condition.

    Attributes:
        condition: the condition.
        accuracy: top-1.
        kept: fraction of the above-chance accuracy that remains; None if the clean accuracy is not above chance.
    """

    condition: Condition
    accuracy: Estimate
    kept: Estimate | None


@dataclass(frozen=True)
class Needs:
    """Needs of a data set.

    Attributes:
        curves: as `CONDITIONS`.
        chance: see `Answers`.
        detail: fraction lost under `BLURRED`, the local need; None if the reference is not significantly above chance.
        layout: fraction lost under `SHUFFLED`, the global need; likewise.
    """

    curves: tuple[Curve, ...]
    chance: float
    detail: Estimate | None
    layout: Estimate | None


def train_references(
    data: DataSource,
    *,
    image_size: int,
    recipe: TrainConfig,
    budget: Budget,
    seeds: int,
    device: str = "cpu",
    progress: ProgressCallback = lambda done, what: None,
) -> Answers:
    """Train a reference for each seed and evaluate it under each condition.

    Args:
        data: training and validation images.
        image_size: side in pixels.
        recipe: of the training.
        budget: of each reference.
        seeds: number of references.
        device: of torch.
        progress: called with the fraction done and the current activity.
    """
    progress(0.0, "reading images")
    train_set, val_set = (
        load_pixels(_at_most(images, MOST_IMAGES[images.name]), image_size, crop_pct=recipe.data.crop_pct)
        for images in (data.train, data.val)
    )
    right, epochs = [], 0.0
    for seed in range(seeds):

        def update(part: float, what: str, seed: int = seed) -> None:
            progress((seed + part) / seeds, f"reference {seed + 1} of {seeds}: {what}")

        model = create(REFERENCE, num_classes=len(data.classes), image_size=image_size, seed=seed)
        config = recipe.replace(seed=seed, device=device)
        of = ModelConfig.of_classifier(model, classes=data.classes, image_size=image_size)
        task = ClassificationTask(of, config, labels=train_set.labels)
        batches = DisturbedTrainSet(TrainingBatches(train_set, config, seed))

        def on_step(step: TrainingProgress, update: ProgressCallback = update) -> None:
            update(TRAINING_PROGRESS * step.done, f"training, loss {step.loss:.2f}")

        macs = count_macs(model, image_size)
        trainer = Trainer(task, config, budget, macs=macs, curve_points=1, progress=on_step)
        result = trainer.fit(model, batches, val_set)
        epochs = result.epochs
        correct = []
        for i, condition in enumerate(CONDITIONS):
            update(TRAINING_PROGRESS + (1 - TRAINING_PROGRESS) * i / len(CONDITIONS), condition.name)
            logits = predict(result.model, task.prepare, DisturbedValSet(val_set, condition), device)
            correct.append(logits.argmax(1).numpy() == val_set.labels)
        right.append(correct)
    progress(1.0, "references trained and evaluated")
    chance = float(np.bincount(val_set.labels).max() / len(val_set))
    return Answers(np.array(right), chance, (len(train_set), len(val_set)), epochs)


def needs(answers: Answers) -> Needs:
    """Needs with their intervals.

    Percentile bootstrap with 2,000 resamples of validation images (the same for all conditions) and references. The
    variance of the mean of S resampled seeds is too small by (S - 1) / S (Davison & Hinkley 1997, §3.8), so its std is
    widened accordingly, as in `glocal.comparison`. With one seed only the images are resampled.
    """
    right, chance = answers.right.astype(np.float64), answers.chance
    drawn = _resampled(right, np.random.default_rng(0))  # (resamples, conditions)
    found = right.mean((0, 2))
    clean = CONDITIONS.index(CLEAN)
    above_chance = bool(_estimate(found[clean], drawn[:, clean]).low > chance)
    above, above_drawn = found - chance, drawn - chance
    above_drawn = above_drawn[above_drawn[:, clean] > 0]  # the fraction is undefined there; few resamples
    curves = tuple(
        Curve(
            condition,
            _estimate(found[i], drawn[:, i]),
            _estimate(above[i] / above[clean], above_drawn[:, i] / above_drawn[:, clean]) if above_chance else None,
        )
        for i, condition in enumerate(CONDITIONS)
    )
    lost = {curve.condition: _rest(curve.kept) for curve in curves}
    return Needs(curves, chance, detail=lost[BLURRED], layout=lost[SHUFFLED])


def _resampled(right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(resamples, conditions) mean accuracies over images and seeds drawn with replacement."""
    seeds, _, images = right.shape
    counts = rng.multinomial(images, np.full(images, 1 / images), RESAMPLES)  # (resamples, images)
    scores = np.einsum("bn,scn->bsc", counts.astype(np.float64), right, optimize=True) / images
    mean = scores.mean(1)
    if seeds == 1:
        return mean
    chosen = rng.integers(seeds, size=(RESAMPLES, seeds))
    of_chosen = np.take_along_axis(scores, chosen[..., None], axis=1).mean(1)
    widened: np.ndarray = mean + np.sqrt(seeds / (seeds - 1)) * (of_chosen - mean)
    return widened


def _estimate(value: float, drawn: np.ndarray) -> Estimate:
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(value), float(low), float(high))


def _rest(kept: Estimate | None) -> Estimate | None:
    return None if kept is None else Estimate(1 - kept.mean, 1 - kept.high, 1 - kept.low)


def _at_most(images: ImageSet, most: int) -> ImageSet:
    return images.fraction(min(1.0, most / len(images)), seed=0)
