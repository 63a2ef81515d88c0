"""A race: models are trained a part of the way, those that can no longer be the answer leave, the others go on.

A rung is a part of each model's training: so many of its seeds, so far. A run that reaches a rung pauses; it goes on
where it was, on the schedule of its full length, so that a model that stays to the end has the same runs as in an
exhaustive comparison. After each rung there is a look. A model leaves for one of two reasons:

``behind``: it is less accurate than the leader by more than noise. The simultaneous interval of the difference
(`stepwise_differences`) is below 0, now and, if the model goes on catching up as fast as since half of what has been
trained, at the end. A model that starts slowly and rises stays.

``dearer``: there is a model in the race that costs less, and it is not so far ahead of it, now or as it goes on, that
these images could tell the two apart at the end. The verdict takes the cheapest of the models within the noise, so it
would take the other one. It is not called less accurate, and it comes back if the cheaper one falls behind.

The errors of all looks and of the verdict add up to 5 % (Bonferroni, a simple alpha spending): `LOOKS` of it for the
looks, in equal parts, the rest for the verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from glocal.comparison.simultaneous import Deviations, range_quantile, stepwise_differences
from glocal.comparison.statistics import CONFIDENCE, Evidence

LOOKS = 0.01
"""Probability that some look calls a model behind that is not."""
SURE = 0.9
"""Probability that the lead of a dearer model is not underestimated."""

EARLY_SEEDS, DONE = 2, (0.2, 0.4, 0.7, 1.0)
"""The rungs before the last seeds: two, for the spread of seeds, up to these fractions."""

Reason = Literal["behind", "dearer"]


class Rung(NamedTuple):
    """How far each model in the race is trained before a look: its first ``seeds`` seeds, the fraction ``done``."""

    seeds: int
    done: float


class Leg(NamedTuple):
    """A seed of a model, to be trained up to a fraction of its budget."""

    model: str
    seed: int
    until: float


@dataclass(frozen=True)
class Standing:
    """A model at a look.

    Attributes:
        model: its name.
        score: mean over its seeds.
        difference: to the leader.
        low: of the simultaneous interval of the difference.
        high: likewise.
        expected: difference at the end of training, if it goes on as it did.
        left: why it leaves the race, if it does.
        to: the cheaper model that it leaves the race to.
    """

    model: str
    score: float
    difference: float
    low: float
    high: float
    expected: float
    left: Reason | None = None
    to: str | None = None


@dataclass(frozen=True)
class Look:
    """What was seen at a rung: the standings, the leader first."""

    seeds: int
    done: float
    confidence: float
    standings: tuple[Standing, ...]


class Racer(NamedTuple):
    """A model at a rung: evidence of its seeds, and the mean curve of their scores as (fraction done, score)."""

    evidence: Evidence
    curve: Sequence[tuple[float, float]]


def rungs(num_seeds: int, num_evaluations: int) -> tuple[Rung, ...]:
    """The rungs of a race.

    Args:
        num_seeds: of each model.
        num_evaluations: of each run, evenly over its budget; a rung is one of them.
    """
    early = min(EARLY_SEEDS, num_seeds)
    parts = [max(1, round(done * num_evaluations)) / num_evaluations for done in DONE]
    ladder = [Rung(early, done) for done in dict.fromkeys(parts)]
    return (*ladder, Rung(num_seeds, 1.0)) if num_seeds > early else tuple(ladder)


def look_confidence(num_looks: int) -> float:
    """Confidence of the intervals at each look."""
    return 1 - LOOKS / max(1, num_looks)


def verdict_confidence() -> float:
    """Confidence of the intervals at the end."""
    return CONFIDENCE + LOOKS


@dataclass
class Race:
    """Who is still in the race, and what is to be trained next.

    Attributes:
        costs: (lowest, highest) measured cost of each model, in the order of the comparison.
        ladder: the rungs; the last one is the whole training.
        looks: so far.
        failed: models with a failed run; they are out, without being compared.
    """

    costs: Mapping[str, tuple[float, float]]
    ladder: Sequence[Rung]
    looks: list[Look] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)

    @property
    def left(self) -> dict[str, Standing]:
        """The models that are out of the race, as they stood when they left."""
        out: dict[str, Standing] = {}
        for look in self.looks:
            out |= {one.model: one for one in look.standings if one.left}
            gone = self.failed | {name for name, one in out.items() if one.left == "behind"}
            out = {name: one for name, one in out.items() if one.to not in gone}  # who left to them comes back
        return out

    @property
    def still(self) -> tuple[str, ...]:
        """The models in the race, in the order of the comparison."""
        out = self.failed.union(self.left)
        return tuple(model for model in self.costs if model not in out)

    @property
    def rung(self) -> Rung | None:
        """The next one; None after the last. Who is alone goes to the end of the seeds that it has."""
        if len(self.looks) == len(self.ladder) or not self.still:
            return None
        following = self.ladder[len(self.looks)]
        if len(self.still) > 1 or not self.looks:
            return following
        return None if self.looks[-1].done == 1 else Rung(self.looks[-1].seeds, 1.0)

    def legs(self) -> list[Leg]:
        """What is to be trained for the next look, whether it already is or not; all models of a seed first."""
        rung = self.rung
        if rung is None:
            return []
        return [Leg(model, seed, rung.done) for seed in range(rung.seeds) for model in self.still]

    def look(self, racers: Mapping[str, Racer]) -> Look:
        """Look at the models that reached the next rung, and let go who cannot be the answer.

        Args:
            racers: all models of `still`, by name.
        """
        rung = self.rung
        assert rung is not None
        names = self.still
        confidence = look_confidence(len(self.ladder) - 1)
        intervals, level, drawn = stepwise_differences([racers[name].evidence for name in names], confidence)
        gains = np.array([[_catching_up(racers[a].curve, racers[b].curve, rung.done) for b in names] for a in names])
        best = int(np.argmax([racers[name].evidence.mean for name in names]))
        standings = []
        for i, (name, interval) in enumerate(zip(names, intervals, strict=True)):
            expected = interval.mean + max(0.0, float(gains[i, best]))
            one = Standing(name, racers[name].evidence.mean, interval.mean, interval.low, interval.high, expected)
            if i not in level and expected + (interval.high - interval.mean) < 0:
                one = replace(one, left="behind")
            elif i in level:
                to = self._preferred(level.index(i), [names[k] for k in level], drawn, gains[i, level])
                one = replace(one, left=None if to is None else "dearer", to=to)
            standings.append(one)
        if len(self.looks) + 1 == len(self.ladder):  # the last look is the verdict's
            standings = [replace(one, left=None, to=None) for one in standings]
        standings.sort(key=lambda one: -one.score)
        found = Look(rung.seeds, rung.done, confidence, tuple(standings))
        self.looks.append(found)
        return found

    def _preferred(self, i: int, names: Sequence[str], drawn: Deviations, gains: np.ndarray) -> str | None:
        """The best cheaper model from which these images could not tell a model apart at the end, if there is one."""
        lead = drawn.means[i] - drawn.means + np.maximum(0.0, gains)
        lead += np.quantile(drawn.drawn[:, [i]] - drawn.drawn, SURE, axis=0)
        of_images = (drawn.of_images[:, [i]] - drawn.of_images).std(axis=0)  # seeds differ less at the end
        shown = range_quantile(drawn.of_images, verdict_confidence()) * of_images
        cheaper = np.array([self.costs[other][1] < self.costs[names[i]][0] for other in names])
        candidates = np.flatnonzero(cheaper & (lead < shown))
        return names[int(candidates[np.argmax(drawn.means[candidates])])] if len(candidates) else None


def _catching_up(curve: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]], done: float) -> float:
    """What a model gains on another until the end at the speed since half of what is done."""
    if done >= 1:
        return 0.0

    def gap(at: float) -> float:
        mine, its = (np.interp(at, np.array(points)[:, 0], np.array(points)[:, 1]) for points in (curve, other))
        return float(mine - its)

    return (gap(done) - gap(done / 2)) / (done / 2) * (1 - done)
