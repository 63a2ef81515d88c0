"""Races replayed on the bank of complete training runs: the processor time they take, and whether the verdict is equal.

    python benchmarks/replay.py                   into docs/results/replay.json and replay.md
    python benchmarks/replay.py --resamples 1     a quick look

A case is a set of the bank, the test images as they are or drawn with replacement, two seeds for the early rungs and a
third. The race of glocal and the exhaustive grid get the same models, images and seeds, and are judged by the same
rule. The verdicts are equal if they take the same model, or if the race takes another one of the exhaustive best set at
no higher cost. Beside it stands how often two exhaustive grids of other seeds are equal by this definition.
"""

import argparse
import itertools
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from glocal.bench import count_macs, describe_environment, measure_together
from glocal.comparison.cheapest import RANGE, CostName, cheapest_of, cost_bounds, cost_key
from glocal.comparison.race import Race, Racer, Rung, rungs, verdict_confidence
from glocal.comparison.simultaneous import stepwise_differences
from glocal.comparison.statistics import CONFIDENCE, RESAMPLES, Answers, Evidence, Resampled
from glocal.files import atomic_write_text
from glocal.models import create_model
from glocal.models.micro import MICRO_MODELS

RESULT = Path(__file__).parents[1] / "docs" / "results" / "replay"
BANK = RESULT.parent / "bank"
EVALUATIONS, SIZE, NUM_SEEDS, EARLY = 10, 32, 3, 2
COST: CostName = "latency"
BATCH = 1
TIMING_SECONDS, TIMINGS = 2.0, 8
"""Per model, and how often: the quietest is kept."""
SHARE, EQUAL = 0.40, 0.95
"""What is asked: at most this share of the processor time, an equal verdict in at least this fraction of the cases."""


def _ladder(*dones: float) -> tuple[Rung, ...]:
    return (*(Rung(EARLY, done) for done in dones), Rung(NUM_SEEDS, 1.0))


TODAY = rungs(NUM_SEEDS, EVALUATIONS)
LADDERS: dict[str, tuple[Rung, ...]] = {
    "a first look at .1": _ladder(0.1, 0.2, 0.4, 0.7, 1.0),
    "a first look at .1, none at .2": _ladder(0.1, 0.4, 0.7, 1.0),
    "at every tenth": _ladder(*(k / 10 for k in range(1, 11))),
    ".2, .3, .5, .7, 1": _ladder(0.2, 0.3, 0.5, 0.7, 1.0),
    ".2, .5, 1": _ladder(0.2, 0.5, 1.0),
    ".3, .6, 1": _ladder(0.3, 0.6, 1.0),
    ".4, .7, 1": _ladder(0.4, 0.7, 1.0),
    ".5, 1": _ladder(0.5, 1.0),
    "three seeds from the start": tuple(Rung(NUM_SEEDS, done) for done in (0.2, 0.4, 0.7, 1.0)),
    "the third seed from .4 on": (Rung(2, 0.2), Rung(2, 0.4), Rung(3, 0.4), Rung(3, 0.7), Rung(3, 1.0)),
    "the third seed from .7 on": (Rung(2, 0.2), Rung(2, 0.4), Rung(2, 0.7), Rung(3, 0.7), Rung(3, 1.0)),
    "no look at two whole seeds": (Rung(2, 0.2), Rung(2, 0.4), Rung(2, 0.7), Rung(3, 1.0)),
}
"""Alternatives to `rungs`. One early seed is none of them: the spread of seeds must be seen."""

AS_IT_IS, EXACT = "as it is", "as it is, without noise of the times"

Costs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Bank:
    """Complete training runs on a set.

    Attributes:
        name: of the set.
        models: names.
        right: (models, seeds, evaluations, images) booleans, whether a prediction is correct.
        seconds: (models, seeds, evaluations) processor time of training and evaluation so far.
        cpu: that recorded it.
    """

    name: str
    models: tuple[str, ...]
    right: np.ndarray
    seconds: np.ndarray
    cpu: str = ""

    @classmethod
    def load(cls, path: Path) -> "Bank | None":
        """The seeds that all models have; None if they are not enough yet."""
        with np.load(path) as stored:
            entries = dict(stored)
        runs = [key.split("/") for key in entries if key.endswith("/right")]
        models = tuple(dict.fromkeys(model for model, _, _ in runs))
        seeds_of = [{seed for of_model, seed, _ in runs if of_model == model} for model in models]
        seeds = sorted(set.intersection(*seeds_of), key=int)
        if len(seeds) < NUM_SEEDS:
            return None
        images = int(entries["images"])
        right = [[np.unpackbits(entries[f"{m}/{s}/right"], axis=1, count=images) for s in seeds] for m in models]
        seconds = [[entries[f"{m}/{s}/seconds"].sum(axis=1) for s in seeds] for m in models]
        return cls(path.stem, models, np.array(right, dtype=bool), np.array(seconds, np.float64), str(entries["cpu"]))

    @property
    def num_seeds(self) -> int:
        """Of each model."""
        return self.right.shape[1]

    @property
    def num_images(self) -> int:
        """Of the test set."""
        return self.right.shape[3]

    @cached_property
    def steady(self) -> np.ndarray:
        """(models, seeds, evaluations) seconds, of each model the median over its seeds.

        All seeds of a model do the same work. The machine that recorded them was shared, and at times half as fast.
        """
        return np.broadcast_to(np.median(self.seconds, axis=1, keepdims=True), self.seconds.shape)


class Sample:
    """A bank on test images drawn with replacement: another data set of the same kind.

    Args:
        bank: of complete runs.
        images: (images,) indices of its images.
        weights: (images, resamples) how often each of them is in each resample, for the intervals.
    """

    def __init__(self, bank: Bank, images: np.ndarray, weights: np.ndarray) -> None:
        self.bank, self.images = bank, images
        right = bank.right[..., images]
        self.scores = right.mean(axis=-1)
        flat = right.reshape(-1, len(images)).astype(np.float32)
        self.drawn = (flat @ weights).astype(np.float64).reshape(*self.scores.shape, -1) / len(images)

    def evidence(self, model: str, seeds: Sequence[int], done: float) -> Evidence:
        """Of some seeds of a model; all that a race or a grid sees of them."""
        i, at = self.bank.models.index(model), _at(done)
        return Resampled(self.scores[i, list(seeds), at], self.drawn[i, list(seeds), at].T)

    def racer(self, model: str, seeds: Sequence[int], done: float) -> Racer:
        """A model at a rung."""
        curve = self.scores[self.bank.models.index(model), list(seeds)].mean(axis=0)[: _at(done) + 1]
        points = [((k + 1) / EVALUATIONS, float(score)) for k, score in enumerate(curve)]
        return Racer(self.evidence(model, seeds, done), points)


class Slow(Sample):
    """As glocal does it, by `Answers`: each interval draws its own resamples of the images."""

    def evidence(self, model: str, seeds: Sequence[int], done: float) -> Evidence:
        """Of some seeds of a model."""
        return Answers(self.bank.right[self.bank.models.index(model), list(seeds), _at(done)][:, self.images])


def samples(bank: Bank, resamples: int) -> Iterable[Sample]:
    """The bank's images as they are, and so many times drawn with replacement."""
    rng, images = np.random.default_rng(0), bank.num_images
    weights = rng.multinomial(images, np.full(images, 1 / images), size=RESAMPLES).T.astype(np.float32)
    for number in range(1 + resamples):
        yield Sample(bank, np.arange(images) if not number else rng.integers(images, size=images), weights)


class Verdict(NamedTuple):
    """The model to take, and those within the noise of the most accurate one."""

    take: str
    best_set: tuple[str, ...]

    def accepts(self, model: str, costs: Costs) -> bool:
        """Whether taking this model is equal: the same, or one of the best set at no higher cost."""
        key = cost_key(COST, BATCH)
        return model == self.take or (model in self.best_set and costs[model][key] <= costs[self.take][key])


def verdict(evidence: Mapping[str, Evidence], costs: Costs, confidence: float) -> Verdict:
    """The verdict on finished runs, as `glocal.comparison.verdict` finds it."""
    order = sorted(evidence, key=lambda model: (-evidence[model].mean, costs[model]["macs"], model))
    differences, _, _ = stepwise_differences([evidence[model] for model in order], confidence)
    tied = [model for model, difference in zip(order, differences, strict=True) if difference.holds_zero]
    take = cheapest_of([{"model": model, **costs[model]} for model in tied], COST, BATCH)["model"]
    return Verdict(take, tuple(tied))


def exhaustive(sample: Sample, seeds: Sequence[int], costs: Costs, confidence: float = CONFIDENCE) -> Verdict:
    """The verdict of all runs of these seeds."""
    evidence = {model: sample.evidence(model, seeds, 1.0) for model in sample.bank.models}
    return verdict(evidence, costs, confidence)


@dataclass
class Replay:
    """A race on a sample.

    Attributes:
        sample: of a bank.
        costs: measured, by model.
        race: as glocal runs it.
        until: by (model, index of the seed in the race), the fraction that was trained.
    """

    sample: Sample
    costs: Costs
    race: Race
    until: dict[tuple[str, int], float] = field(default_factory=dict)

    @classmethod
    def of(cls, sample: Sample, costs: Costs, ladder: Sequence[Rung]) -> "Replay":
        """At the start."""
        bounds = {model: cost_bounds(costs[model], COST, BATCH) for model in sample.bank.models}
        return cls(sample, costs, Race(bounds, ladder))

    def go_on(self, seeds: Sequence[int]) -> "Replay":
        """The race further on, as far as it needs no more than these seeds."""
        race = Race(self.race.costs, self.race.ladder, list(self.race.looks))
        until = dict(self.until)
        while (rung := race.rung) is not None and rung.seeds <= len(seeds):
            for leg in race.legs():
                until[leg.model, leg.seed] = max(leg.until, until.get((leg.model, leg.seed), 0.0))
            race.look({model: self.sample.racer(model, seeds[: rung.seeds], rung.done) for model in race.still})
        return Replay(self.sample, self.costs, race, until)

    def verdict(self, seeds: Sequence[int]) -> Verdict:
        """Of the models that are left, on the runs that they finished."""
        finished = {
            model: [seed for k, seed in enumerate(seeds) if self.until.get((model, k)) == 1]
            for model in self.race.still
        }
        evidence = {model: self.sample.evidence(model, of_model, 1.0) for model, of_model in finished.items()}
        return verdict(evidence, self.costs, verdict_confidence())

    def share(self, seeds: Sequence[int], seconds: np.ndarray) -> float:
        """Of the processor time of all runs of these seeds."""
        models = self.sample.bank.models
        spent = sum(seconds[models.index(model), seeds[k], _at(done)] for (model, k), done in self.until.items())
        return float(spent / seconds[:, list(seeds), -1].sum())


@dataclass(frozen=True)
class Case:
    """A race beside the exhaustive grid of the same seeds.

    Attributes:
        share: of the grid's processor time, a model's seconds being the median over its seeds.
        share_recorded: by the seconds as recorded.
        takes: the model of the race.
        grid_takes: the model of the grid.
        equal: whether the verdicts are.
        in_best_set: whether the race's model is in the grid's best set.
        loss: accuracy of the grid's model minus that of the race's, over the three seeds.
        fate: of the grid's model in the race: "behind" or "dearer" where it left, else "still".
        others: whether the race's model is equal to the verdict of each grid that shares one seed.
    """

    share: float
    share_recorded: float
    takes: str
    grid_takes: str
    equal: bool
    in_best_set: bool
    loss: float
    fate: str
    others: tuple[bool, ...]


Grids = Mapping[tuple[int, ...], Verdict]


def grids(sample: Sample, costs: Costs, num_seeds: int) -> Grids:
    """Verdicts of the exhaustive grids of all choices of so many seeds."""
    choices = itertools.combinations(range(sample.bank.num_seeds), num_seeds)
    return {seeds: exhaustive(sample, seeds, costs) for seeds in choices}


def agreements(found: Grids, costs: Costs, shared: int) -> list[bool]:
    """Of all ordered pairs of grids with so many seeds in common, whether the first accepts the second's model."""
    pairs = itertools.permutations(found, 2)
    return [found[a].accepts(found[b].take, costs) for a, b in pairs if len(set(a) & set(b)) == shared]


def cases(sample: Sample, costs: Costs, ladder: Sequence[Rung], found: Grids) -> list[Case]:
    """Races of all choices of two early seeds, whose order does not matter, and a third."""
    bank, result = sample.bank, []
    for early in itertools.combinations(range(bank.num_seeds), EARLY):
        begun = Replay.of(sample, costs, ladder).go_on(early)
        for last in set(range(bank.num_seeds)) - set(early):
            seeds = (*early, last)
            done, key = begun.go_on(seeds), tuple(sorted(seeds))
            grid, takes = found[key], done.verdict(seeds).take
            means = sample.scores[:, list(seeds), -1].mean(axis=1)
            left = done.race.left.get(grid.take)
            result.append(
                Case(
                    done.share(seeds, bank.steady),
                    done.share(seeds, bank.seconds),
                    takes,
                    grid.take,
                    grid.accepts(takes, costs),
                    takes in grid.best_set,
                    float(means[bank.models.index(grid.take)] - means[bank.models.index(takes)]),
                    "still" if left is None else str(left.left),
                    tuple(found[o].accepts(takes, costs) for o in found if len(set(o) & set(key)) == 1),
                )
            )
    return result


def looking(bank: Bank, costs: Costs) -> dict[str, Any]:
    """One race whose looks draw their own resamples, as in glocal: processor time of the looks, and the model taken."""
    seeds = tuple(range(NUM_SEEDS))
    plain = Slow(bank, np.arange(bank.num_images), np.zeros((bank.num_images, 1), np.float32))
    start = time.process_time()
    done = Replay.of(plain, costs, TODAY).go_on(seeds)
    seconds = time.process_time() - start
    return {
        "seconds": seconds,
        "share": float(seconds / bank.steady[:, :NUM_SEEDS, -1].sum()),
        "takes": done.verdict(seeds).take,
    }


def row_of(found: Sequence[Case]) -> dict[str, Any]:
    """What is reported of some cases."""
    shares = [case.share for case in found]
    differing = Counter((case.grid_takes, case.takes, case.fate) for case in found if not case.equal)
    return {
        "cases": len(found),
        "share": float(np.mean(shares)),
        "share_p90": float(np.quantile(shares, 0.9)),
        "share_recorded": float(np.mean([case.share_recorded for case in found])),
        "equal": _mean(case.equal for case in found),
        "same_model": _mean(case.takes == case.grid_takes for case in found),
        "in_best_set": _mean(case.in_best_set for case in found),
        "loss": float(np.mean([case.loss for case in found])),
        "equal_to_other_grids": _mean(itertools.chain.from_iterable(case.others for case in found)),
        "differing": [
            {"grid": grid, "race": race, "fate": fate, "cases": count}
            for (grid, race, fate), count in differing.most_common()
        ],
    }


def measure_costs() -> dict[str, dict[str, Any]]:
    """MACs and latency of the bank's models on one thread; of several timings the one that varies least."""
    torch.set_num_threads(1)
    models = {name: create_model(name, num_classes=10).eval() for name in MICRO_MODELS}
    timings = [measure_together(models, SIZE, BATCH, seconds=TIMING_SECONDS) for _ in range(TIMINGS)]
    quietest = min(timings, key=lambda times: sum((t.high_ms - t.low_ms) / t.median_ms for t in times.values()))
    return {
        name: {
            "macs": count_macs(models[name], SIZE),
            "latency_ms_b1": timing.median_ms,
            "latency_ms_b1_range": [timing.low_ms, timing.high_ms],
        }
        for name, timing in quietest.items()
    }


def replay_set(bank: Bank, costs: Costs, resamples: int, few: int) -> dict[str, Any]:
    """All cases of a set; of the alternative ladders on fewer resamples of its images."""
    main: list[list[Case]] = []
    ladders: dict[str, list[Case]] = defaultdict(list)
    disjoint, sharing, stricter = [], [], []
    exact = {m: {key: value for key, value in row.items() if not key.endswith(RANGE)} for m, row in costs.items()}
    for number, sample in enumerate(samples(bank, resamples)):
        found = grids(sample, costs, NUM_SEEDS)
        sharing.append(agreements(found, costs, shared=1))
        disjoint.append(agreements(grids(sample, costs, EARLY), costs, shared=0))
        at_end = {seeds: exhaustive(sample, seeds, costs, verdict_confidence()) for seeds in found}
        stricter.append([grid.accepts(at_end[seeds].take, costs) for seeds, grid in found.items()])
        main.append(cases(sample, costs, TODAY, found))
        if number <= few:
            for name, ladder in LADDERS.items():
                ladders[name] += cases(sample, costs, ladder, found)
            ladders[EXACT] += cases(sample, exact, TODAY, grids(sample, exact, NUM_SEEDS))
    every = list(itertools.chain.from_iterable(main))
    slow = looking(bank, costs)
    return {
        "set": bank.name,
        "images": bank.num_images,
        "seeds": bank.num_seeds,
        "cpu": bank.cpu,
        "samples": 1 + resamples,
        **row_of(every),
        "agree_one_seed_shared": _mean(itertools.chain.from_iterable(sharing)),
        "agree_disjoint_pairs": _mean(itertools.chain.from_iterable(disjoint)),
        "agree_at_confidence_of_race": _mean(itertools.chain.from_iterable(stricter)),
        "share_by_sample": [float(np.mean([case.share for case in of_sample])) for of_sample in main],
        "equal_by_sample": [_mean(case.equal for case in of_sample) for of_sample in main],
        "as_recorded": row_of(main[0])
        | {"agree_one_seed_shared": _mean(sharing[0]), "agree_disjoint_pairs": _mean(disjoint[0])},
        "looks": slow | {"same_model": slow["takes"] == main[0][0].takes},
        "ladders": {AS_IT_IS: row_of(list(itertools.chain.from_iterable(main[: few + 1])))}
        | {name: row_of(of_ladder) for name, of_ladder in ladders.items()},
    }


MEANS = (
    "share", "share_p90", "share_recorded", "equal", "same_model", "in_best_set", "loss", "equal_to_other_grids",
)  # fmt: skip
AGREE = "agree_one_seed_shared", "agree_disjoint_pairs", "agree_at_confidence_of_race"


def total_of(rows: Sequence[Mapping[str, Any]], keys: Sequence[str] = MEANS) -> dict[str, float]:
    """Means over sets, each counting as much as the others."""
    of_keys = {key: float(np.mean([row[key] for row in rows])) for key in keys}
    return {"cases": sum(row["cases"] for row in rows)} | of_keys


def page(result: Mapping[str, Any]) -> str:
    """Markdown."""
    sets, total, machine = result["sets"], result["total"], result["environment"]
    lines = [
        "# Races replayed on complete runs",
        "",
        f"`{result['command']}`, {result['seconds']:,} s, {result['date']}, {machine['cpu']}. The runs were recorded "
        "by `python benchmarks/bank.py` ([bank](bank)): seven micro models, five seeds, five epochs, ten evaluations. "
        "Both sides have the same models, images and three seeds, and one rule judges both; learning-rate trials are "
        "outside both. *Cases*: two seeds for the early rungs (their order does not matter), a third, and the test "
        f"images as they are or one of {result['resamples']} resamples of them. Cases of a set share runs: they are "
        "not independent.",
        "",
        "*Equal*: the same model, or one of the exhaustive best set at no higher cost. *Share*: processor seconds of "
        "the race over those of the exhaustive grid, training and evaluation, for each model the median over its "
        f"seeds. Asked: a share of at most {SHARE:.2f}, equal in at least {100 * EQUAL:.0f} %.",
        "",
        "Two exhaustive grids of other seeds are equal by the same definition in "
        f"{_percent(total['agree_one_seed_shared'])} of the pairs of three-seed grids that share one seed (of five "
        f"seeds all share at least one), and in {_percent(total['agree_disjoint_pairs'])} of the pairs of disjoint "
        f"two-seed grids. The race is equal to the grid of its own seeds in {_percent(total['equal'])}, and to grids "
        f"that share one seed in {_percent(total['equal_to_other_grids'])}. The race's verdict is judged at "
        f"{100 * verdict_confidence():.0f} % for {100 * CONFIDENCE:.0f} %, since its looks take their part of the "
        "errors; that alone leaves a grid equal to itself in "
        f"{_percent(total['agree_at_confidence_of_race'])}.",
        "",
        "| set | images | seeds | cases | share | 90th percentile | equal | in the best set | points lost | two grids, "
        "one seed shared | two grids of two seeds, disjoint | race and a grid, one seed shared |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in [*sets, {"set": "**mean of the sets**", "images": "", "seeds": "", **total}]:
        cells = (
            row["set"], f"{row['images']:,}" if row["images"] else "", row["seeds"], f"{row['cases']:,}",
            f"{row['share']:.2f}", f"{row['share_p90']:.2f}", _percent(row["equal"]), _percent(row["in_best_set"]),
            f"{100 * row['loss']:+.2f}", _percent(row[AGREE[0]]), _percent(row[AGREE[1]]),
            _percent(row["equal_to_other_grids"]),
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    looks = [row["looks"] for row in sets]
    lines += [
        "",
        "*Points lost*: mean accuracy of the grid's model minus that of the race's, over the three seeds. By the "
        f"seconds as recorded the mean share is {total['share_recorded']:.2f}. The looks themselves take "
        f"{100 * min(look['share'] for look in looks):.2f} to {100 * max(look['share'] for look in looks):.2f} % of "
        "the grid's time, which is not in the share. Intervals of all races on a sample use one bootstrap; with one "
        f"for each interval, as in glocal, {sum(look['same_model'] for look in looks)} of {len(looks)} races take the "
        "same model.",
        "",
        "## Verdicts that are not equal",
        "",
        "*In the race*: what became of the grid's model.",
        "",
        "| set | grid | race | in the race | cases |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in sets:
        for one in row["differing"]:
            part = f"{one['cases']} of {row['cases']}"
            lines.append(f"| {row['set']} | {one['grid']} | {one['race']} | {one['fate']} | {part} |")
    lines += [
        "",
        "## Other ladders",
        "",
        f"On the images as they are and the first {result['few']} resamples, means of the sets. "
        "*Without noise of the times*: costs are the median latencies, their order is known exactly.",
        "",
        "| ladder | looks at (seeds, part of the training) | share | 90th percentile | equal | in the best set |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in result["ladders"].items():
        looks_at = ", ".join(f"{seeds}: {done:g}" for seeds, done in row["rungs"])
        numbers = (
            name, looks_at, f"{row['share']:.3f}", f"{row['share_p90']:.2f}", _percent(row["equal"]),
            _percent(row["in_best_set"]),
        )  # fmt: skip
        lines.append(f"| {' | '.join(numbers)} |")
    lines += ["", "## Costs", "", "Latency at batch 1 in ms, one thread, median and quartiles.", ""]
    lines += ["| model | median | quartiles |", "| --- | --- | --- |"]
    for name, row in sorted(result["costs"].items(), key=lambda item: item[1]["latency_ms_b1"]):
        low, high = row["latency_ms_b1_range"]
        lines.append(f"| {name} | {row['latency_ms_b1']:.2f} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Replay all sets of the bank that are far enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resamples", type=int, default=5, help="of the images of each set")
    parser.add_argument("--few", type=int, default=1, help="of these, for the other ladders")
    options = parser.parse_args(arguments)
    costs_at = RESULT.with_suffix(".json")
    costs = json.loads(costs_at.read_text())["costs"] if costs_at.exists() else measure_costs()
    start, sets = time.process_time(), []
    for path in sorted(BANK.glob("*.npz")):
        bank = Bank.load(path)
        if bank is not None:
            sets.append(replay_set(bank, costs, options.resamples, options.few))
            print({key: value for key, value in sets[-1].items() if key not in ("ladders", "as_recorded")}, flush=True)
    ladders = {
        name: total_of([row["ladders"][name] for row in sets]) | {"rungs": [list(rung) for rung in ladder]}
        for name, ladder in {AS_IT_IS: TODAY, EXACT: TODAY, **LADDERS}.items()
    }
    result = {
        "command": " ".join(["python benchmarks/replay.py", *arguments]),
        "date": date.today().isoformat(),
        "seconds": round(time.process_time() - start),
        "resamples": options.resamples,
        "few": min(options.few, options.resamples),
        "environment": describe_environment(),
        "costs": costs,
        "total": total_of(sets, (*MEANS, *AGREE)),
        "ladders": ladders,
        "sets": sets,
    }
    atomic_write_text(RESULT.with_suffix(".json"), json.dumps(result, indent=1))
    atomic_write_text(RESULT.with_suffix(".md"), page(result))


def _at(done: float) -> int:
    """The evaluation at a rung."""
    return round(done * EVALUATIONS) - 1


def _mean(flags: Iterable[bool]) -> float:
    return float(np.mean(list(flags)))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


if __name__ == "__main__":
    main(sys.argv[1:])
