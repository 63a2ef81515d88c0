"""Races replayed on a bank of complete runs: what they cost, and that both sides are judged as glocal judges."""

import itertools

import numpy as np
import pytest
from benchmarks.replay import (
    EVALUATIONS,
    TODAY,
    Bank,
    Replay,
    Verdict,
    agreements,
    cases,
    exhaustive,
    grids,
    row_of,
    samples,
)

from glocal.comparison import judge, statistics, summarise
from tests.comparison.test_verdict import entry

IMAGES, SEEDS = 600, 5
ENDS = {"strong": 0.9, "weak": 0.5, "weaker": 0.4}
COSTS = {name: {"latency_ms_b1": cost, "macs": 10} for name, cost in (("strong", 3.0), ("weak", 2.0), ("weaker", 2.5))}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    monkeypatch.setattr("benchmarks.replay.RESAMPLES", 1000)


def bank(ends=ENDS):
    """Models that rise by as much at each evaluation; all find the same images hard."""
    rng = np.random.default_rng(0)
    hard = rng.random(IMAGES) + 0.02 * rng.standard_normal((len(ends), SEEDS, 1, IMAGES))
    rise = np.linspace(0.8, 1, EVALUATIONS)[:, None] * np.array(list(ends.values()))[:, None, None, None]
    seconds = np.broadcast_to(np.arange(1.0, EVALUATIONS + 1), (len(ends), SEEDS, EVALUATIONS))
    return Bank("planted", tuple(ends), hard < rise, seconds)


def test_a_clearly_better_model_wins_both_and_the_race_takes_less_time():
    for sample in samples(bank(), 1):
        found = cases(sample, COSTS, TODAY, grids(sample, COSTS, 3))
        assert len(found) == 30  # two of five seeds, and one of the other three
        assert {(case.takes, case.grid_takes) for case in found} == {("strong", "strong")}
        row = row_of(found)
        assert row["equal"] == row["in_best_set"] == row["equal_to_other_grids"] == 1
        assert row["loss"] == 0
        assert 2 / 9 < row["share"] < 0.6, "the winner's two seeds at least, and not all of the others'"


def test_time_is_that_of_the_rungs_that_were_reached():
    sample = next(iter(samples(bank(), 0)))
    race = Replay.of(sample, COSTS, TODAY).go_on((3, 1, 0))
    assert {key for key, done in race.until.items() if done == 1} >= {("strong", 0), ("strong", 1)}
    spent = sum(EVALUATIONS * done for done in race.until.values())
    assert race.share((3, 1, 0), sample.bank.seconds) == pytest.approx(spent / (9 * EVALUATIONS))


def test_the_verdict_on_a_grid_is_that_of_compare():
    """`summarise` and `judge` on the same predictions, one point apart, where the cheaper of two ties is taken."""
    planted = bank({"strong": 0.9, "weak": 0.895, "weaker": 0.4})
    found = exhaustive(next(iter(samples(planted, 0))), (0, 1, 2), COSTS)
    runs = [entry(m, s, latency=COSTS[m]["latency_ms_b1"]) for m, s in itertools.product(planted.models, range(3))]
    right = {run["id"]: planted.right[planted.models.index(run["model"]), run["seed"], -1] for run in runs}
    verdict = judge(summarise(runs, right), runs, IMAGES, len(runs))
    assert found == Verdict(verdict["cheapest_tied"], tuple(verdict["best_set"])) == Verdict("weak", ("strong", "weak"))


def test_equal_is_the_same_model_or_a_tie_that_costs_no_more():
    grid = Verdict("weaker", ("weaker", "strong", "weak"))
    assert [grid.accepts(model, COSTS) for model in COSTS] == [False, True, True]
    assert not Verdict("weaker", ("weaker",)).accepts("weak", COSTS), "cheaper, but less accurate"


def test_grids_of_other_seeds_are_compared_both_ways():
    strong, weak = Verdict("strong", ("strong", "weak")), Verdict("weak", ("weak",))
    assert agreements({(0, 1): strong, (2, 3): weak, (0, 2): strong}, COSTS, shared=0) == [True, False]
    assert len(agreements({(0, 1): strong, (2, 3): weak, (0, 2): strong}, COSTS, shared=1)) == 4


def test_a_bank_is_read_as_far_as_all_models_have_the_seeds(tmp_path):
    planted, entries = bank(), {"images": np.array(IMAGES), "cpu": np.array("some CPU")}
    for (m, model), seed in itertools.product(enumerate(planted.models), range(SEEDS)):
        if (model, seed) != ("weak", 4):
            entries[f"{model}/{seed}/right"] = np.packbits(planted.right[m, seed], axis=1)
            entries[f"{model}/{seed}/seconds"] = np.ones((EVALUATIONS, 2), np.float32)
    np.savez_compressed(tmp_path / "some.npz", **entries)
    read = Bank.load(tmp_path / "some.npz")
    assert (read.name, read.models, read.num_seeds, read.cpu) == ("some", planted.models, 4, "some CPU")
    assert (read.right == planted.right[:, :4]).all()
    assert (read.seconds == 2).all()
    del entries["weak/0/right"], entries["weak/1/right"]
    np.savez_compressed(tmp_path / "some.npz", **entries)
    assert Bank.load(tmp_path / "some.npz") is None
