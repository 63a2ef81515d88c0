"""What images need: how much of what a small reference model knows is gone without their layout, or their detail.

The reference is trained from scratch on the images as they are, with patches shuffled, and blurred, all mixed, and then
tested under each condition. Of its accuracy above guessing, the share that is lost when patches of a quarter of the
side are shuffled is the need for layout, the *global* one; when the image is blurred by an eighth of the side, the need
for detail, the *local* one. Both depend on the reference and on its training: they say what this model could make of
these images, no more.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from glocal.bench import count_macs
from glocal.data import DataSource, ImageSet
from glocal.models.creation import create
from glocal.models.io import ModelConfig
from glocal.recommend.disturb import CLEAN, CONDITIONS, Condition, LearnedFrom, TestedOn
from glocal.tasks import ClassificationTask
from glocal.training import (
    Budget,
    Progress,
    TrainConfig,
    TrainingBatches,
    load_pixels,
    predict,
)
from glocal.training.trainer import Trainer

REFERENCE = "botnet_micro"
"""Convolution, and after it attention over the whole image: it can make use of detail and of layout."""
MOST_IMAGES = {"train": 6000, "val": 2000}
"""Of larger sets a share of each class is taken."""
SHUFFLED, BLURRED = Condition("shuffle", 4), Condition("blur", 1 / 8)
"""The conditions by which the two needs are told."""
NEEDED = 0.25
"""A share lost that counts as a need; ours, and arbitrary: docs/recommend.md shows what probes and photographs have."""
CONFIDENCE = 0.95
RESAMPLES = 2000
TRAINING_SHARE = 0.85
"""Of the time of a seed; the rest is testing."""

Tell = Callable[[float, str], None]
"""Is told which share is done, and of what."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What the references said.

    Attributes:
        right: (seeds, conditions, images) whether each answer is right, conditions as `CONDITIONS`.
        chance: accuracy of naming the commonest class of the test images.
        images: how many were learned from and tested on.
        epochs: of each reference.
    """

    right: np.ndarray
    chance: float
    images: tuple[int, int]
    epochs: float


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """What is known under one condition.

    Attributes:
        condition: it.
        accuracy: top-1.
        kept: share of the accuracy above guessing that is left; None if there is none to begin with.
    """

    condition: Condition
    accuracy: Estimate
    kept: Estimate | None


@dataclass(frozen=True)
class Needs:
    """What was found.

    Attributes:
        curves: as `CONDITIONS`.
        chance: see `Answers`.
        detail: share lost under `BLURRED`, the local need; None if the reference is not better than guessing, beyond
            the noise.
        layout: share lost under `SHUFFLED`, the global need; likewise.
    """

    curves: tuple[Curve, ...]
    chance: float
    detail: Estimate | None
    layout: Estimate | None


def ask_references(
    data: DataSource,
    *,
    image_size: int,
    recipe: TrainConfig,
    budget: Budget,
    seeds: int,
    device: str = "cpu",
    tell: Tell = lambda share, what: None,
) -> Answers:
    """Train a reference for each seed and test it under each condition.

    Args:
        data: training and test images.
        image_size: side in pixels.
        recipe: of the training.
        budget: of each reference.
        seeds: how many references.
        device: where to run.
        tell: is told how far it is.
    """
    tell(0.0, "reading images")
    learned, tested = (
        load_pixels(_some(images, MOST_IMAGES[images.name]), image_size, crop_pct=recipe.data.crop_pct)
        for images in (data.train, data.val)
    )
    right, epochs = [], 0.0
    for seed in range(seeds):

        def share(part: float, what: str, seed: int = seed) -> None:
            tell((seed + part) / seeds, f"reference {seed + 1} of {seeds}: {what}")

        model = create(REFERENCE, num_classes=len(data.classes), image_size=image_size, seed=seed)
        config = recipe.replace(seed=seed, device=device)
        of = ModelConfig.of_classifier(model, classes=data.classes, image_size=image_size)
        task = ClassificationTask(of, config, labels=learned.labels)
        batches = LearnedFrom(TrainingBatches(learned, config, seed))

        def watch(progress: Progress, share: Tell = share) -> None:
            share(TRAINING_SHARE * progress.done, f"training, loss {progress.loss:.2f}")

        macs = count_macs(model, image_size)
        trainer = Trainer(task, config, budget, macs=macs, curve_points=1, progress=watch)
        result = trainer.fit(model, batches, tested)
        epochs = result.epochs
        answers = []
        for i, condition in enumerate(CONDITIONS):
            share(TRAINING_SHARE + (1 - TRAINING_SHARE) * i / len(CONDITIONS), condition.name)
            logits = predict(result.model, task.prepare, TestedOn(tested, condition), device)
            answers.append(logits.argmax(1).numpy() == tested.labels)
        right.append(answers)
    tell(1.0, "references trained and tested")
    chance = float(np.bincount(tested.labels).max() / len(tested))
    return Answers(np.array(right), chance, (len(learned), len(tested)), epochs)


def needs(answers: Answers) -> Needs:
    """Needs with their intervals.

    Bootstrap, percentiles of 2,000 resamples: each draws test images with replacement, the same for all conditions,
    and references with replacement; as the mean of S drawn seeds spreads too little by (S - 1) / S in variance
    (Davison & Hinkley 1997, §3.8), its deviation is widened accordingly, as in `glocal.comparison`. With one seed only
    the images are resampled.
    """
    right, chance = answers.right.astype(np.float64), answers.chance
    drawn = _resampled(right, np.random.default_rng(0))  # (resamples, conditions)
    found = right.mean((0, 2))
    clean = CONDITIONS.index(CLEAN)
    learned = bool(_estimate(found[clean], drawn[:, clean]).low > chance)
    above, above_drawn = found - chance, drawn - chance
    above_drawn = above_drawn[above_drawn[:, clean] > 0]  # a share of nothing is none; with `learned`, few resamples
    curves = tuple(
        Curve(
            condition,
            _estimate(found[i], drawn[:, i]),
            _estimate(above[i] / above[clean], above_drawn[:, i] / above_drawn[:, clean]) if learned else None,
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


def _some(images: ImageSet, most: int) -> ImageSet:
    return images.fraction(min(1.0, most / len(images)), seed=0)
