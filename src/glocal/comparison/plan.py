"""What fits into an amount of time: how many images, which size, how many learning rates and models to fine-tune.

Time is turned into a plan of steps once, from a short measurement, before anything is trained. All decisions depend on
those steps; the clock only cuts. What does not fit is given up in this order (`plan_for`): images per class, the side
of the images, learning rates tried, models that are fine-tuned; last the fine-tuning itself.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from glocal.errors import GlocalError
from glocal.formatting import clock
from glocal.training.budget import FORWARD_AND_BACKWARD

IMAGES = (None, 200, 100, 50)
"""Most training images per class, and as many validation images; None is all."""
SIDES = (None, 160, 128)
"""Most pixels of a side; None is the models' own."""
SURVIVORS = (4, 3, 2)
"""Models that are fine-tuned after the screen."""
EPOCHS, EVALUATIONS, SEEDS = 5.0, 10, 3
TRIAL_SHARE, TRIAL_TRAINS = 0.3, 0.8
"""Budget of a trial of a learning rate, and the part of the training images that it trains on."""
FITTING = 0.2
"""Of the time of computing features, for the probe and the neighbours on them."""
RACE = 0.7
"""Of the time of training every survivor to the end; in the recorded races it was less."""
FILLED = 0.85
"""Of the time, that a plan may expect to take; the rest is for what a short measurement does not see."""


@dataclass(frozen=True)
class Speed:
    """How fast a model is here, from a short measurement at its own image size.

    Attributes:
        size: side of its images in pixels.
        forward: seconds for an image, without gradients, with all cores.
        train: seconds for an image in a training step; by default three forward passes.
    """

    size: int
    forward: float
    train: float = 0.0

    def at(self, side: int | None) -> "Speed":
        """The expected speed at a smaller side: in proportion to the pixels."""
        if side is None or side >= self.size:
            return self
        share = (side / self.size) ** 2
        return Speed(side, self.forward * share, self.seconds_of_training * share)

    @property
    def seconds_of_training(self) -> float:
        """Seconds for an image in a training step."""
        return self.train or FORWARD_AND_BACKWARD * self.forward


@dataclass(frozen=True)
class Counts:
    """The images of each class.

    Attributes:
        train: per class.
        val: per class.
        decode: seconds to decode an image, with all cores.
    """

    train: tuple[int, ...]
    val: tuple[int, ...]
    decode: float = 0.0

    def capped(self, images: int | None) -> tuple[int, int]:
        """(training, validation) images with at most so many of a class."""
        if images is None:
            return sum(self.train), sum(self.val)
        return sum(min(images, n) for n in self.train), sum(min(images, n) for n in self.val)


@dataclass(frozen=True)
class Plan:
    """Steps of a comparison of pretrained models, and what was given up for time.

    Attributes:
        models: that are screened.
        sizes: side of their images in pixels, by model.
        images: most training images per class, and validation images; None is all.
        side: most pixels of a side; None is the models' own.
        rates: learning rates that each survivor tries.
        survivors: how many models are fine-tuned; 0 is a screen alone.
        epochs: of each fine-tuning.
        seeds: of each survivor.
        seconds: expected, by stage.
        given_up: in words, in the order in which it was.
    """

    models: tuple[str, ...]
    sizes: Mapping[str, int]
    images: int | None
    side: int | None
    rates: int
    survivors: int
    epochs: float
    seeds: int
    seconds: Mapping[str, float]
    given_up: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """Expected seconds of all stages."""
        return sum(self.seconds.values())

    def to_json(self) -> dict[str, Any]:
        """For plan.json."""
        return asdict(self) | {"models": list(self.models), "given_up": list(self.given_up)}

    @classmethod
    def from_json(cls, plan: Mapping[str, Any]) -> "Plan":
        """The inverse of `to_json`."""
        return cls(**{**plan, "models": tuple(plan["models"]), "given_up": tuple(plan["given_up"])})


def plan_for(
    seconds: float,
    speeds: Mapping[str, Speed],
    counts: Counts,
    *,
    rates: int = 3,
    epochs: float = EPOCHS,
    seeds: int = SEEDS,
    fixed_size: bool = False,
) -> Plan:
    """The first plan, in the order of what is given up, that fits into the time.

    Args:
        seconds: left.
        speeds: measured, by model.
        counts: images.
        rates: learning rates that each survivor tries, if there is time.
        epochs: of each fine-tuning.
        seeds: of each survivor.
        fixed_size: whether the image size was asked for, so that it is not given up.

    Raises:
        GlocalError: if not even the smallest screen fits.
    """
    least = None
    for images, side, tried, survivors in _ladder(rates, len(speeds), fixed_size):
        plan = _priced(
            Plan(
                models=tuple(speeds),
                sizes={name: speed.at(side).size for name, speed in speeds.items()},
                images=images,
                side=side,
                rates=tried if survivors else 0,
                survivors=survivors,
                epochs=epochs,
                seeds=seeds,
                seconds={},
            ),
            speeds,
            counts,
        )
        if plan.total <= FILLED * seconds:
            return replace(plan, given_up=tuple(_given_up(plan, speeds, counts, rates)))
        least = plan
    assert least is not None
    raise GlocalError(
        f"time: expected at least {clock(least.total / FILLED)} to look at {len(speeds)} models with "
        f"{least.images} images per class at {least.side or 'their own'} pixels, got {clock(seconds)}; "
        "allow more, or name fewer models with --models"
    )


def _ladder(rates: int, num_models: int, fixed_size: bool) -> Iterator[tuple[int | None, int | None, int, int]]:
    """(images, side, rates, survivors) in the order of what is given up."""
    sides: Sequence[int | None] = (None,) if fixed_size else SIDES
    most = [count for count in SURVIVORS if count < num_models] or [num_models]
    if num_models <= max(SURVIVORS) and num_models not in most:
        most.insert(0, num_models)
    for images in IMAGES:
        yield images, None, rates, most[0]
    for side in sides[1:]:
        yield IMAGES[-1], side, rates, most[0]
    if rates > 1:
        yield IMAGES[-1], sides[-1], 1, most[0]
    for survivors in most[1:]:
        yield IMAGES[-1], sides[-1], 1, survivors
    for side, images in itertools.product(sides, IMAGES):
        yield images, side, 0, 0


def _priced(plan: Plan, speeds: Mapping[str, Speed], counts: Counts) -> Plan:
    """The plan with the seconds that its stages are expected to take."""
    train, val = counts.capped(plan.images)
    at = {name: speeds[name].at(plan.side) for name in plan.models}
    decoding = counts.decode * (train + val) * len({speed.size for speed in at.values()})
    screen = decoding + (1 + FITTING) * sum((train + val) * speed.forward for speed in at.values())
    dearest = sorted(at.values(), key=lambda speed: -speed.seconds_of_training)[: plan.survivors]
    trials = race = 0.0
    for speed in dearest:  # which models survive is not known yet
        kept = round(TRIAL_TRAINS * train)
        if plan.rates > 1:
            trained = max(1.0, TRIAL_SHARE * plan.epochs) * kept * speed.seconds_of_training
            trials += plan.rates * (trained + (train - kept) * speed.forward)
        run = plan.epochs * train * speed.seconds_of_training + EVALUATIONS * val * speed.forward
        race += RACE * plan.seeds * run
    if plan.survivors:
        race += decoding
    seconds = {"screen": screen, "learning rates": trials, "race": race}
    return replace(plan, seconds={name: value for name, value in seconds.items() if value})


def _given_up(plan: Plan, speeds: Mapping[str, Speed], counts: Counts, rates: int) -> Iterator[str]:
    """What the plan does not do, in words."""
    if plan.images is not None and counts.capped(plan.images) != counts.capped(None):
        used, of = counts.capped(plan.images)[0], counts.capped(None)[0]
        yield f"{plan.images} images per class: {used:,} of {of:,} training images"
    smaller = [name for name, speed in speeds.items() if plan.sizes[name] < speed.size]
    if smaller:
        yield f"images of {plan.side} pixels for {len(smaller)} of {len(speeds)} models, below their own size"
    if plan.survivors and plan.rates < rates:
        yield "one learning rate for all models: none is tried"
    if 0 < plan.survivors < min(max(SURVIVORS), len(speeds)):
        yield f"{plan.survivors} models are fine-tuned"
    if not plan.survivors:
        yield "nothing is fine-tuned: the models are judged by their frozen features"
