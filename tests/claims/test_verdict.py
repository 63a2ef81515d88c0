import dataclasses
import re
from collections import defaultdict

import numpy as np
import pytest

from glocal.claims import CLAIMS, Comparison
from glocal.claims.measures import Measurement
from glocal.claims.results import tested as described
from glocal.claims.verdict import decide, difference, together, verdict_of
from glocal.comparison import Interval
from tests.claims.making import claim, macs, planted

DIRECTED = [c for c in CLAIMS if any(part.expected != "equal" for part in c.comparisons)]


def verdict(tested, found, costs=None):
    return together([decision.verdict for decision in decide(tested, found, costs or macs(tested))])


def exchanged(found, one, other):
    """The same measurements with two arms exchanged."""
    values = dict(found.values)
    values[one], values[other] = values[other], values[one]
    return dataclasses.replace(found, values=values)


@pytest.mark.parametrize("tested", CLAIMS, ids=lambda c: c.id)
def test_planted_effects_support_every_claim(tested):
    assert verdict(tested, planted(tested)) == "supported"


@pytest.mark.parametrize("tested", DIRECTED, ids=lambda c: c.id)
def test_every_claim_with_a_direction_is_contradicted_with_arms_swapped(tested):
    part = next(part for part in tested.comparisons if part.expected != "equal" and part.of == "value")
    found = planted(tested)
    if part.second is None:
        values = {**found.values, part.first: -found.values[part.first]}
        assert verdict(tested, dataclasses.replace(found, values=values)) == "contradicted"
    else:
        assert verdict(tested, exchanged(found, part.first, part.second)) == "contradicted"


def test_a_claim_of_equality_is_contradicted_by_a_difference_in_either_direction():
    equal = next(c for c in CLAIMS if c.id == "cat-embedding")
    different = planted(dataclasses.replace(equal, comparisons=(Comparison("slicing", "convolution", "more"),)))
    assert verdict(equal, different) == "contradicted"
    assert verdict(equal, exchanged(different, "slicing", "convolution")) == "contradicted"


@pytest.mark.parametrize("tested", [c for c in DIRECTED if c.measure == "top1"], ids=lambda c: c.id)
def test_few_images_support_nothing_that_should_be_more(tested):
    if any(part.expected == "more" and part.of == "value" for part in tested.comparisons):
        assert verdict(tested, planted(tested, gap=0.02, seeds=1, units=20)) != "supported"


def test_a_claim_that_costs_less_is_contradicted_if_it_costs_more():
    stride = next(c for c in CLAIMS if c.id == "cvt-kv-stride")
    costs = macs(stride)
    costs["stride 1"], costs["stride 2"] = costs["stride 2"], costs["stride 1"]
    assert verdict(stride, planted(stride), costs) == "contradicted"


@pytest.mark.parametrize(
    ("expected", "margin", "low", "high", "outcome"),
    [
        ("more", 0.0, 0.01, 0.05, "supported"),
        ("more", 0.0, -0.01, 0.05, "inconclusive"),
        ("more", 0.0, 0.0, 0.0, "inconclusive"),
        ("more", 0.0, -0.05, -0.01, "contradicted"),
        ("more", 0.1, 0.05, 0.09, "contradicted"),
        ("more", 0.1, 0.05, 0.2, "inconclusive"),
        ("less", 0.0, -0.05, -0.01, "supported"),
        ("less", 0.0, 0.01, 0.05, "contradicted"),
        ("not less", 0.02, -0.01, 0.05, "supported"),
        ("not less", 0.02, -0.03, 0.05, "inconclusive"),
        ("not less", 0.02, -0.05, -0.03, "contradicted"),
        ("equal", 0.02, -0.01, 0.01, "supported"),
        ("equal", 0.02, -0.01, 0.03, "inconclusive"),
        ("equal", 0.02, 0.03, 0.05, "contradicted"),
        ("equal", 0.02, -0.05, -0.03, "contradicted"),
    ],
)
def test_where_the_interval_lies_decides(expected, margin, low, high, outcome):
    effect = Interval((low + high) / 2, low, high, "by hand")
    assert verdict_of(effect, Comparison("a", "b", expected, margin)) == outcome


def test_a_claim_is_its_parts():
    assert together(["supported", "supported"]) == "supported"
    assert together(["supported", "inconclusive"]) == "inconclusive"
    assert together(["supported", "inconclusive", "contradicted"]) == "contradicted"


@pytest.mark.parametrize("tested", CLAIMS, ids=lambda c: c.id)
def test_the_interval_of_an_arm_is_around_its_mean(tested):
    found = planted(tested)  # changes of amplitude lie below zero, too
    costs = {model: {"params": 1, "macs": 1} for arm in tested.arms for model in arm.models}
    arms = described(tested, found, decide(tested, found, macs(tested)), defaultdict(list), costs, [0, 1, 2], [])[
        "arms"
    ]
    for arm in arms:
        low, high = arm["interval"]
        assert low <= arm["mean"] <= high
        if arm["mean"] not in (0, 1) and not found.exact:
            assert low < arm["mean"] < high


def test_both_parts_of_two_are_said():
    stride = next(c for c in CLAIMS if c.id == "cvt-kv-stride")
    costs = {model: {"params": 1, "macs": 1} for arm in stride.arms for model in arm.models}
    found = planted(stride)
    said = described(stride, found, decide(stride, found, macs(stride)), defaultdict(list), costs, [0], [])["finding"]
    assert re.search(r"stride 2 .* points .*; stride 1 takes 100 % more multiply-accumulates than stride 2\.$", said)


def test_parts_that_differ_are_counted():
    cost = next(c for c in CLAIMS if c.id == "cost")
    found = planted(cost)
    whole = described(cost, found, decide(cost, found, {}), {}, {}, [], [])
    assert "parts" not in whole["finding"]
    assert whole["finding"].count(" to ") == 1  # of five
    level = found.values["inside windows"]
    values = {**found.values, "between windows": level + 0.5, "between windows, formula": level + 0.5}
    other = dataclasses.replace(found, values=values)
    part = described(cost, other, decide(cost, other, {}), {}, {}, [], [])
    assert [row["verdict"] for row in part["comparisons"]].count("contradicted") == 1
    assert part["finding"].endswith(". Of its 5 parts: 4 supported, 1 contradicted.")


def test_intervals_of_several_parts_are_wider():
    one = claim()
    two = dataclasses.replace(one, comparisons=(*one.comparisons, Comparison("blind", "sees", "equal")))
    found = planted(one, gap=0.05)
    alone, beside = decide(one, found, {})[0].effect, decide(two, found, {})[0].effect
    assert beside.low < alone.low < alone.high < beside.high


def test_readings_of_one_network_are_paired_by_seed():
    """Seeds spread far, but on each the one reading is one point ahead: that is sure."""
    rng = np.random.default_rng(0)
    rates = np.array([0.5, 0.7, 0.9])[:, None]
    luck = rng.random((3, 2000))
    one, other = (luck < rates + 0.01).astype(float), (luck < rates).astype(float)
    pairs = Measurement({"a": one, "b": other}, paired=True)
    apart = Measurement({"a": one, "b": other})
    assert difference(pairs, "a", "b", 0.95).low > 0
    assert difference(apart, "a", "b", 0.95).low < 0
