"""The plan of an amount of time: what is given up, in which order, and what it is expected to take."""

import json

import pytest

from glocal.comparison.plan import FILLED, Counts, Plan, Speed, plan_for
from glocal.errors import GlocalError

COUNTS = Counts(train=(400,) * 10, val=(100,) * 10, decode=0.001)
SPEEDS = {f"model{i}": Speed(224, 0.02) for i in range(6)}


def test_the_seconds_of_each_stage_by_hand():
    plan = plan_for(1e9, SPEEDS, COUNTS)
    assert (plan.images, plan.side, plan.rates, plan.survivors, plan.given_up) == (None, None, 3, 4, ())
    decoding = 5000 * 0.001
    assert plan.seconds["screen"] == pytest.approx(decoding + 1.2 * 6 * 5000 * 0.02)
    assert plan.seconds["learning rates"] == pytest.approx(4 * 3 * (1.5 * 3200 * 0.06 + 800 * 0.02))
    assert plan.seconds["race"] == pytest.approx(decoding + 0.7 * 4 * 3 * (5 * 4000 * 0.06 + 10 * 1000 * 0.02))


def test_less_time_gives_up_in_the_printed_order():
    seen = []
    seconds = 1e5
    while seconds > 1:
        try:
            plan = plan_for(seconds, SPEEDS, COUNTS)
        except GlocalError:
            break
        assert plan.total <= FILLED * seconds
        state = plan.images, plan.side, plan.rates, plan.survivors
        if not seen or seen[-1] != state:
            seen.append(state)
        seconds *= 0.99
    assert seen[:9] == [
        (None, None, 3, 4), (200, None, 3, 4), (100, None, 3, 4), (50, None, 3, 4), (50, 160, 3, 4), (50, 128, 3, 4),
        (50, 128, 1, 4), (50, 128, 1, 3), (50, 128, 1, 2),
    ]  # fmt: skip
    assert seen[-1] == (50, 128, 0, 0)
    assert all(survivors == 0 for *_, survivors in seen[9:])


def test_what_is_given_up_is_said():
    plan = plan_for(3000, SPEEDS, COUNTS)
    assert (
        plan.given_up == ("50 images per class: 500 of 4,000 training images",)
        if plan.side is None
        else plan.given_up[0] == "50 images per class: 500 of 4,000 training images"
    )
    screen = plan_for(150, SPEEDS, COUNTS)
    assert screen.survivors == 0
    assert screen.given_up[-1] == "nothing is fine-tuned: the models are judged by their frozen features"


def test_a_size_that_was_asked_for_stays():
    seconds = 1e5
    while seconds > 100:
        try:
            assert plan_for(seconds, SPEEDS, COUNTS, fixed_size=True).side is None
        except GlocalError:
            return
        seconds /= 1.5


def test_a_small_model_keeps_its_size():
    speeds = {"large": Speed(224, 0.02), "small": Speed(128, 0.005)}
    plan = plan_for(60, speeds, COUNTS)
    assert plan.sizes == {"large": plan.side or 224, "small": 128}
    assert Speed(224, 0.02).at(112) == Speed(112, 0.005, 0.015)


def test_two_models_are_both_fine_tuned():
    assert plan_for(1e9, dict(list(SPEEDS.items())[:2]), COUNTS).survivors == 2
    assert plan_for(1e9, dict(list(SPEEDS.items())[:1]), COUNTS).survivors == 1


def test_no_time_at_all_is_an_error_with_what_is_needed():
    with pytest.raises(
        GlocalError, match=r"time: expected at least \d+:\d\d to look at 6 models with 50 images per class at 128"
    ):
        plan_for(1, SPEEDS, COUNTS)


def test_a_plan_is_read_as_it_was_written():
    plan = plan_for(500, SPEEDS, COUNTS)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
