"""The race: who leaves and why, and that who stays has the runs of an exhaustive comparison."""

import json

import numpy as np
import pytest

from glocal.comparison import compare
from glocal.comparison.race import Look, Race, Racer, Rung, Standing, look_confidence, rungs, verdict_confidence
from glocal.comparison.statistics import Answers
from glocal.errors import GlocalError
from glocal.schema import CompareResults
from tests.comparison.asking import losses, model_files, scores, settings
from tests.comparison.test_job import Watcher
from tests.fields import faults
from tests.shapes import data_source

IMAGES = 1000


def racer(accuracies, curve=(), seed=0):
    """Answers of seeds on the same images, of which each model finds about the same ones hard."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).random(IMAGES)
    right = [hard + 0.05 * rng.standard_normal(IMAGES) < accuracy for accuracy in accuracies]
    return Racer(Answers(np.array(right)), list(curve) or [(0.1, accuracies[0]), (0.2, accuracies[0])])


LADDER = Rung(2, 0.2), Rung(2, 0.5), Rung(2, 1.0)


def race(costs, ladder=LADDER):
    return Race({model: (cost, cost) for model, cost in costs.items()}, ladder)


def test_rungs_are_evaluations_of_the_run_and_the_last_is_the_whole():
    assert rungs(3, 10) == (Rung(2, 0.2), Rung(2, 0.4), Rung(2, 0.7), Rung(2, 1.0), Rung(3, 1.0))
    assert rungs(1, 10) == (Rung(1, 0.2), Rung(1, 0.4), Rung(1, 0.7), Rung(1, 1.0))
    assert rungs(2, 2) == (Rung(2, 0.5), Rung(2, 1.0))
    assert rungs(5, 1) == (Rung(2, 1.0), Rung(5, 1.0))


def test_the_errors_of_all_looks_and_of_the_verdict_add_up_to_five_percent():
    spent = 4 * (1 - look_confidence(4)) + (1 - verdict_confidence())
    assert spent == pytest.approx(0.05)


def test_who_is_behind_by_more_than_noise_leaves_and_a_tie_stays():
    run = race({"weak": 1, "level": 1, "strong": 1})
    look = run.look({"strong": racer([0.9, 0.89]), "level": racer([0.89, 0.9], seed=1), "weak": racer([0.6, 0.61])})
    assert [one.model for one in look.standings] == ["strong", "level", "weak"]
    assert [one.left for one in look.standings] == [None, None, "behind"]
    assert run.still == ("level", "strong")
    assert {leg.model for leg in run.legs()} == {"level", "strong"}
    assert {leg.until for leg in run.legs()} == {0.5}


def test_a_slow_starter_stays_where_a_flat_curve_leaves():
    """Halving would lose it: at a fifth it is 25 points behind, and it would win."""
    leader = [(0.1, 0.84), (0.2, 0.85)]
    for curve, left in (([(0.1, 0.3), (0.2, 0.6)], None), ([(0.1, 0.6), (0.2, 0.6)], "behind")):
        run = race({"leader": 1, "slow": 1})
        look = run.look({"leader": racer([0.85, 0.85], leader), "slow": racer([0.6, 0.6], curve)})
        assert look.standings[1].left == left
    run.looks.clear()
    (_, slow) = run.look(
        {"leader": racer([0.85, 0.85], leader), "slow": racer([0.6, 0.6], [(0.1, 0.3), (0.2, 0.6)])}
    ).standings
    # it gained 0.3 - 0.01 in a tenth of the budget, and eight tenths are left
    assert slow.expected == pytest.approx(slow.difference + 8 * 0.29)


def test_a_dearer_model_leaves_to_a_cheaper_one_from_which_it_cannot_be_told_apart():
    run = race({"dear": 2, "cheap": 1})
    look = run.look({"dear": racer([0.895] * 5), "cheap": racer([0.9] * 5, seed=1)})
    (dear,) = (one for one in look.standings if one.model == "dear")
    assert (dear.left, dear.to) == ("dearer", "cheap")
    assert run.still == ("cheap",)
    assert run.rung == Rung(2, 1.0), "who is alone goes to the end"


def test_a_dearer_model_with_a_lead_stays_and_so_does_one_of_the_same_cost():
    run = race({"dear": 2, "cheap": 1})
    run.look({"dear": racer([0.9, 0.9]), "cheap": racer([0.87, 0.87], seed=1)})
    assert "dear" in run.still
    run = race({"one": 1, "other": 1})
    run.look({"one": racer([0.9, 0.9]), "other": racer([0.9, 0.9], seed=1)})
    assert run.still == ("one", "other")


def test_a_dearer_model_stays_while_seeds_of_the_cheaper_one_differ_widely():
    """What is far apart now may be equal in the end: noise is no reason to leave."""
    run = race({"dear": 2, "cheap": 1})
    run.look({"dear": racer([0.99, 0.99]), "cheap": racer([0.5, 0.9], seed=1)})
    assert run.still == ("dear", "cheap")


def standing(model, left=None, to=None):
    return Standing(model, 0.5, 0.0, -0.1, 0.1, 0.0, left, to)


def test_who_left_to_a_model_that_falls_behind_comes_back():
    run = race({"a": 1, "b": 2, "c": 3})
    run.looks.append(Look(2, 0.2, 0.99, (standing("c", "dearer", "b"), standing("b", "dearer", "a"), standing("a"))))
    assert run.still == ("a",)
    run.looks[0] = Look(2, 0.2, 0.99, (standing("c"), standing("b", "dearer", "a"), standing("a")))
    run.looks.append(Look(2, 0.5, 0.99, (standing("c"), standing("a", "behind"))))
    assert run.still == ("b", "c")


def test_who_left_to_a_model_that_failed_comes_back():
    run = race({"a": 1, "b": 2})
    run.looks.append(Look(2, 0.2, 0.99, (standing("b", "dearer", "a"), standing("a"))))
    run.failed.add("a")
    assert run.still == ("b",)


def test_the_last_look_sends_nobody_away():
    run = race({"weak": 1, "strong": 1}, (Rung(2, 1.0),))
    run.look({"strong": racer([0.9, 0.9]), "weak": racer([0.6, 0.6])})
    assert run.still == ("weak", "strong")
    assert run.rung is None
    assert run.legs() == []


# In a folder


MODELS = ("resnet_micro", "vit_micro", "cvt_micro")


class Racing(Watcher):
    def __init__(self, stop_at=None):
        super().__init__(stop_at)
        self.seen = []

    def after_look(self, look, race):
        self.seen.append((look.seeds, look.done, race.still))


@pytest.fixture(autouse=True, scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glocal.comparison.costs.TIMING_SECONDS", 0.02)
        yield patch


@pytest.fixture(scope="module")
def leaves(quick):
    """At the first look vit_micro leaves, at the second cvt_micro; all else is as it is."""
    whole = Race.look

    def look(self, racers):
        found = whole(self, racers)
        gone = {1: "vit_micro", 2: "cvt_micro"}.get(len(self.looks))
        standings = tuple(
            Standing(**{**vars(one), "left": "behind" if one.model == gone else None, "to": None})
            for one in found.standings
        )
        self.looks[-1] = Look(found.seeds, found.done, found.confidence, standings)
        return self.looks[-1]

    quick.setattr(Race, "look", look)


@pytest.fixture(scope="module")
def data():
    return data_source()


@pytest.fixture(scope="module")
def exhaustive(data, tmp_path_factory, quick):
    out = tmp_path_factory.mktemp("exhaustive")
    return compare(data, settings(MODELS, "3ep", seeds=2), out), out


@pytest.fixture(scope="module")
def raced(data, tmp_path_factory, leaves):
    out, watcher = tmp_path_factory.mktemp("raced"), Racing()
    return compare(data, settings(MODELS, "3ep", seeds=2, search="race"), out, observer=watcher), out, watcher


def test_who_stays_has_the_runs_of_the_exhaustive_comparison_bit_for_bit(raced, exhaustive):
    results, out, watcher = raced
    assert [(done, still) for _, done, still in watcher.seen] == [
        (1 / 6, ("resnet_micro", "cvt_micro")), (2 / 6, ("resnet_micro",)), (1.0, ("resnet_micro",)),
    ]  # fmt: skip
    assert [run["id"] for run in results["runs"]] == ["resnet_micro-f1-s0", "resnet_micro-f1-s1"]
    whole = {run: files for run, files in model_files(exhaustive[1]).items() if run.startswith("resnet")}
    assert model_files(out) == whole
    kept = [run for run in exhaustive[0]["runs"] if run["model"] == "resnet_micro"]
    assert scores(results) == scores({"runs": kept})
    assert losses(results) == losses({"runs": kept})


def test_results_of_a_race_have_their_schema_and_tell_who_left(raced):
    results, out, _ = raced
    assert faults(results, CompareResults) == []
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    race = results["race"]
    assert race["finished"]
    assert race["still"] == ["resnet_micro"]
    last = {one["model"]: (look["done"], one["left"]) for look in race["looks"] for one in look["standings"]}
    assert last["vit_micro"] == (1 / 6, "behind")
    assert last["cvt_micro"] == (2 / 6, "behind")
    assert [point[0] for point in race["curves"]["cvt_micro"]] == pytest.approx([2 / 9, 3 / 9]), "steps 2 and 3 of 9"
    costs = {run["model"]: run["macs"] for run in results["runs"]}
    assert set(costs) == {"resnet_micro"}
    assert 0 < race["share"] < 1
    sentence = results["verdict"]["sentence"]
    assert sentence.startswith("Take resnet_micro: it is the last in the race")
    assert "cvt_micro" in sentence
    assert "behind by more than the noise" in sentence
    assert [row["model"] for row in results["summary"]] == ["resnet_micro"]


@pytest.mark.parametrize(
    "stop_at", [("vit_micro-f1-s0", 1), ("cvt_micro-f1-s1", 3), ("resnet_micro-f1-s1", 6)], ids=lambda stop: stop[0]
)
def test_after_a_stop_in_any_leg_resume_ends_the_same(data, raced, tmp_path, stop_at):
    asked = settings(MODELS, "3ep", seeds=2, search="race")
    with pytest.raises(KeyboardInterrupt):
        compare(data, asked, tmp_path, observer=Racing(stop_at))
    results = compare(data, asked, tmp_path, resume=True)
    assert model_files(tmp_path) == model_files(raced[1])
    assert results["race"]["looks"] == raced[0]["race"]["looks"]
    assert results["verdict"]["most_accurate"] == raced[0]["verdict"]["most_accurate"]


def test_an_exhaustive_search_takes_on_who_left_and_ends_as_if_there_had_been_no_race(
    data, exhaustive, leaves, tmp_path
):
    compare(data, settings(MODELS, "3ep", seeds=2, search="race"), tmp_path)
    watcher = Racing()
    results = compare(data, settings(MODELS, "3ep", seeds=2), tmp_path, resume=True, observer=watcher)
    assert {name for name, _, _ in watcher.started} == {f"{m}-f1-s{s}" for m in MODELS[1:] for s in (0, 1)}
    assert model_files(tmp_path) == model_files(exhaustive[1])
    assert scores(results) == scores(exhaustive[0])
    assert "race" not in results
    again = compare(data, settings(MODELS, "3ep", seeds=2, search="race"), tmp_path, resume=True)
    assert "race" not in again, "all runs are there"


def test_a_folder_of_finished_runs_that_never_paused_goes_on_exhaustively(data, tmp_path):
    watcher = Racing(("cvt_micro-f1-s0", 1))
    with pytest.raises(KeyboardInterrupt):
        compare(data, settings(MODELS, "1ep", seeds=2), tmp_path, observer=watcher)
    watcher = Racing()
    results = compare(data, settings(MODELS, "1ep", seeds=2, search="race"), tmp_path, resume=True, observer=watcher)
    assert any("no race" in text for text in watcher.said)
    assert len(results["runs"]) == 6


@pytest.mark.parametrize("damage", ["checkpoint", "record", "predictions"])
def test_a_damaged_pause_is_trained_again(data, raced, tmp_path, damage):
    asked = settings(MODELS, "3ep", seeds=2, search="race")
    with pytest.raises(KeyboardInterrupt):
        compare(data, asked, tmp_path, observer=Racing(("resnet_micro-f1-s0", 6)))
    paused = tmp_path / "paused" / "resnet_micro-f1-s0"
    path = {
        "checkpoint": paused / "checkpoint" / "optim.safetensors",
        "record": next(paused.glob("0.16*")) / "record.json",
        "predictions": next(paused.glob("0.33*")) / "predictions.safetensors",
    }[damage]
    path.write_bytes(path.read_bytes()[:-5] + b"wrong")
    compare(data, asked, tmp_path, resume=True)
    assert model_files(tmp_path) == model_files(raced[1])


def test_a_failed_model_is_out_of_the_race_and_resume_tries_it_again(data, leaves, tmp_path, monkeypatch):
    from glocal.comparison.execution import Runner

    train = Runner._train

    def fail(self, run, *args):
        if run.model == "cvt_micro":
            raise RuntimeError("no luck")
        return train(self, run, *args)

    asked = settings(MODELS, "3ep", seeds=2, search="race")
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_train", fail)
        results = compare(data, asked, tmp_path)
    assert results["race"]["still"] == ["resnet_micro"]
    assert [run["id"] for run in results["runs"] if run["status"] == "failed"] == [
        "cvt_micro-f1-s0", "cvt_micro-f1-s1",
    ]  # fmt: skip
    again = compare(data, asked, tmp_path, resume=True)
    assert {one["model"] for one in again["race"]["looks"][0]["standings"]} == set(MODELS)
    assert not any(run["status"] == "failed" for run in again["runs"])


def test_side_by_side_in_processes_gives_the_same(data, raced, tmp_path):
    asked = settings(MODELS, "3ep", seeds=2, search="race")
    results = compare(data, asked, tmp_path, side_by_side=True)
    # the rule of this module's test is not in the other processes, which only train
    assert results["race"]["looks"][0]["done"] == 1 / 6
    assert {run["id"] for run in results["runs"]} >= {"resnet_micro-f1-s0"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"budget": "9s"}, "a budget in seconds depends on the clock; use --search exhaustive"),
        ({"fractions": (1.0, 0.5)}, "several fractions"),
        ({"search": "hasty"}, "search: expected one of race, exhaustive"),
    ],
)
def test_what_cannot_be_raced_is_refused(asked, message):
    with pytest.raises(GlocalError, match=message):
        settings(MODELS, **{"search": "race", **asked})


def test_race_is_the_default_where_decisions_depend_on_steps_alone():
    assert settings(MODELS, search=None).search == "race"
    assert settings(MODELS, "9s", search=None).search == "exhaustive"
    assert settings(MODELS[:1], search=None).search == "exhaustive"
    assert settings(MODELS, fractions=(1.0, 0.5), search=None).search == "exhaustive"
