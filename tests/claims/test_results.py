"""What is said of the claims, on the committed results: they are of these claims, and follow from their numbers."""

import json
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from benchmarks.claims import CALLS, folder_of, page

from glocal.claims import BUDGETS, CLAIMS, choose, describe
from glocal.claims.costs import Costs, seconds_needed
from glocal.claims.experiment import Experiment
from glocal.claims.verdict import together, verdict_of
from glocal.comparison import Interval
from glocal.data import load_data

ROOT = Path(__file__).parents[2]
ALIKE = ("two-heads", "cvt-cls", "bot-position", "cat-embedding", "cat-position")
FOLDERS = {budget: folder_of(budget) for budget in BUDGETS}


@cache
def load(budget, name="claims.json"):
    return json.loads((FOLDERS[budget] / name).read_text())


def minutes(budget):
    return sum(call["seconds"] for call in load(budget, CALLS)) / 60


def estimate(ids, budget, measured, there=()):
    """Minutes that the command says before it starts, from training steps that were measured; some models are there."""
    experiment = Experiment(choose(ids), load_data("fashion-mini"), budget=budget)
    runs = [run for fraction in experiment.words for run in experiment.of_fraction(fraction).runs()]
    runs = [run for run in runs if run.model not in there]
    costs = Costs(**load(measured, "costs.json"))
    return round(seconds_needed(runs, experiment.settings, experiment.data, costs) / 60)


def found(budget, claim):
    return next(row for row in load(budget)["claims"] if row["id"] == claim)


@pytest.mark.parametrize("budget", BUDGETS)
def test_they_are_of_the_claims_as_they_are_now(budget):
    results = load(budget)
    assert results["settings"]["budget"] == BUDGETS[budget]
    assert results["settings"]["seeds"] == [0, 1, 2]
    for row in results["claims"]:
        claim = next(claim for claim in CLAIMS if claim.id == row["id"])
        assert describe(claim) == {key: row[key] for key in describe(claim)}
        assert [(a["name"], tuple(a["models"]), a["fraction"]) for a in row["arms"]] == [
            (arm.name, arm.models, arm.fraction) for arm in claim.arms
        ]
        asked = [(c.first, c.second, c.expected, c.margin, c.of) for c in claim.comparisons]
        keys = ("first", "second", "expected", "margin", "of")
        assert [tuple(part[key] for key in keys) for part in row["comparisons"]] == asked
        for part, comparison in zip(row["comparisons"], claim.comparisons, strict=True):
            effect = Interval(part["effect"], *part["interval"], part["method"])
            assert part["verdict"] == verdict_of(effect, comparison)
        assert row["verdict"] == together([part["verdict"] for part in row["comparisons"]])
    text = (FOLDERS[budget] / "README.md").read_text()
    assert text == page(FOLDERS[budget].name, results, load(budget, CALLS))


def of_blocks(state):
    """Mean change of the highest frequency by model and kind."""
    values = defaultdict(list)
    for block in found("quick", "low-pass")["details"]["blocks"]:
        values[block["model"].removesuffix("_micro"), block["kind"]].append(block[state])
    return {key: float(np.mean(changes)) for key, changes in values.items()}


def test_what_the_essay_says_beside_the_verdicts():
    trained, untrained = of_blocks("trained"), of_blocks("untrained")
    attention = {model: change for (model, kind), change in trained.items() if kind == "attention"}
    assert [model for model, change in attention.items() if change >= 0] == ["botnet"]
    assert len(attention) == 6
    assert {m: abs(c) < 0.05 for (m, kind), c in trained.items() if kind == "convolution"} == {
        "resnet": True, "botnet": True, "conformer": False,
    }  # fmt: skip
    assert trained["conformer", "convolution"] > 0.2
    assert untrained["conformer", "convolution"] < -0.2
    arms = {arm["name"]: arm for arm in found("quick", "coupling")["arms"]}
    assert round(arms["coupled"]["macs"] / arms["convolution branch alone"]["macs"]) == 3
    vit, cvt = (
        [next(a["mean"] for a in found(budget, "cvt-position-free")["arms"] if a["name"] == name) for budget in BUDGETS]
        for name in ("ViT with position", "CvT without position")
    )
    said = "The plain Transformer is at {:.1f} % instead of {:.1f} %, CvT at {:.1f} % instead of {:.1f} %"
    essay = " ".join((ROOT / "docs/local-or-global.md").read_text().split())
    assert said.format(100 * vit[1], 100 * vit[0], 100 * cvt[1], 100 * cvt[0]) in essay
    assert f"two claims, {minutes('default'):.0f} minutes" in essay


def test_all_claims_took_less_than_an_hour_at_the_quick_budget():
    assert [row["id"] for row in load("quick")["claims"]] == [claim.id for claim in CLAIMS]
    assert minutes("quick") < 60
    for name in ("docs/claims.md", "docs/local-or-global.md", "README.md"):
        assert f"{minutes('quick'):.0f} minutes" in (ROOT / name).read_text()
    words = {4: "four", 6: "six", 7: "seven"}
    verdicts = [row["verdict"] for row in load("quick")["claims"]]
    counted = {v: words[verdicts.count(v)] for v in ("supported", "contradicted", "inconclusive")}
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert "{supported} supported, {contradicted} contradicted, {inconclusive} inconclusive".format(**counted) in readme


def test_what_the_command_foretold():
    said = " ".join((ROOT / "docs/claims.md").read_text().split())
    hours, rest = divmod(estimate("all", "default", "quick"), 60)
    assert f"{hours} h {rest} min, estimated by the command" in said
    results = load("quick")
    took = sum(results["seconds_of_runs"].values()) / 60 / results["settings"]["jobs"]
    foretold = estimate("all", "quick", "quick")
    assert f"The estimate for `quick` was {foretold} minutes of training; it took {took:.0f}, and" in said
    first, second = (round(call["seconds"] / 60) for call in load("default", CALLS))
    patches = estimate("small-patches", "default", "default")
    position = estimate("cvt-position-free", "default", "default", there=["vit_micro"])
    assert f"were {patches} and {position} minutes; they took {first}, beside other work, and {second}" in said


def numbers_of(row):
    """Those that are said of a claim, and the accuracy of each of its models."""
    models = (f"{100 * model['mean']:.1f}" for model in row["details"].get("models", ()))
    said = " ".join([row["finding"], *(part["finding"] for part in row["comparisons"])])
    return {*re.findall(r"\d+\.\d+", said), *models}


def test_every_number_in_the_essay_is_one_that_was_found():
    essay = (ROOT / "docs/local-or-global.md").read_text()
    part = essay[essay.index("**Claims**") : essay.index("**Probes**")]
    said = 0
    for verdict in ("supported", "contradicted", "inconclusive"):
        row = next(line for line in part.splitlines() if line.startswith(f"| {verdict}"))
        _, *pieces = re.split(r"`([a-z0-9-]+)`", row)
        of_claim = dict(zip(pieces[::2], pieces[1::2], strict=True))
        assert of_claim.keys() == {claim["id"] for claim in load("quick")["claims"] if claim["verdict"] == verdict}
        for claim, text in of_claim.items():
            numbers = set(re.findall(r"\d+\.\d+", text))
            if claim == "cat-position":  # ends a list of five, of which the largest effect that is open is said
                numbers -= {f"{max(map(open_effect, ALIKE)):.1f}"}
            assert numbers <= numbers_of(found("quick", claim)), claim
            said += len(numbers)
    assert said > 20
    text = part[part.index("* **With 20 epochs") : part.index("* **The Fourier")]
    both = set().union(*(numbers_of(found(b, c)) for b in BUDGETS for c in ("small-patches", "cvt-position-free")))
    assert set(re.findall(r"\d+\.\d+", text)) <= both


def open_effect(claim):
    """The largest effect, in points, that is inconclusive in a claim."""
    parts = found("quick", claim)["comparisons"]
    return max(100 * abs(part["effect"]) for part in parts if part["verdict"] == "inconclusive")
