"""From needs to backbones."""

import json
import re
from pathlib import Path

import pytest
import timm

import glocal  # noqa: F401  (registers the models)
from glocal.recommend.need import NEEDED, Estimate, Needs
from glocal.recommend.rule import ATTENTION, CONVOLUTION, LARGE_FROM, RULE, advise, find

PROBES = Path(__file__).parents[2] / "docs/results/probes.json"
NO, YES, OPEN = Estimate(0.05, 0.0, 0.1), Estimate(0.8, 0.7, 0.9), Estimate(NEEDED, NEEDED - 0.1, NEEDED + 0.1)


def finding(detail, layout):
    return find(Needs((), 0.1, detail, layout))


@pytest.mark.parametrize(
    ("detail", "layout", "kind"),
    [
        (YES, NO, "local"),
        (NO, YES, "global"),
        (YES, YES, "both"),
        (NO, NO, "either"),
        (OPEN, YES, "uncertain"),
        (YES, OPEN, "uncertain"),
        (OPEN, OPEN, "uncertain"),
        (None, None, "uncertain"),
    ],
)
def test_the_rows_of_the_rule(detail, layout, kind):
    assert finding(detail, layout).kind == kind


def test_the_sentence_has_the_numbers_and_what_is_unsure():
    sentence = finding(NO, YES).sentence
    assert "loses 80 % (70 to 90) of its accuracy above chance when patches of 1/4 of the side are shuffled" in sentence
    assert "5 % (0 to 10) when images are blurred by 1/8 of the side" in sentence
    assert finding(OPEN, YES).sentence.startswith("Whether detail is needed is uncertain")
    assert finding(OPEN, OPEN).sentence.startswith("Whether layout and detail are needed is uncertain")
    assert "no better than chance" in finding(None, None).sentence


@pytest.mark.parametrize("kind", RULE)
def test_two_or_three_backbones_that_exist_are_named_with_their_reasons(kind):
    for size in (32, LARGE_FROM):
        advice = advise(finding(*{"local": (YES, NO), "global": (NO, YES), "both": (YES, YES), "either": (NO, NO),
                                  "uncertain": (OPEN, OPEN)}[kind]), size)  # fmt: skip
        models = [one.model for one in advice]
        assert 2 <= len(models) == len(set(models)) <= 3
        assert all(timm.is_model(model) for model in models)
        assert all(("micro" in model) == (size < LARGE_FROM) for model in models)
        assert all(one.reason and one.source for one in advice)


@pytest.mark.parametrize("kind", ["either", "uncertain"])
def test_where_the_need_is_not_known_all_three_kinds_are_named(kind):
    kinds = [of.name for of, _ in RULE[kind]]
    assert {CONVOLUTION.name, ATTENTION.name} < set(kinds)
    assert sum(name.startswith("hybrid") for name in kinds) == 1


def test_what_reasons_say_of_probes_was_measured():
    rows = {(row["probe"], row["model"]): row for row in json.loads(PROBES.read_text())["summary"]}
    said = [
        (kind, *match)
        for entries in RULE.values()
        for kind, reason in entries
        for match in re.findall(r"(\w+_micro) (solves|fails) the probe (\w+)", reason)
    ]
    assert len(said) >= 5
    for kind, model, verb, probe in said:
        assert model == kind.micro
        row = rows[probe, model]
        low, high = row["top1_ci"]
        assert low > 0.95 if verb == "solves" else low <= row["chance"] <= high, (model, verb, probe)
