"""Needs and their intervals, from answers that are known."""

import numpy as np
import pytest

from glocal.recommend.disturb import CLEAN, CONDITIONS
from glocal.recommend.need import BLURRED, SHUFFLED, Answers, needs
from tests.recommend.making import CHANCE, answers, rates


def test_needs_are_shares_of_what_is_known_above_guessing():
    found = needs(answers(rates(shuffled=0.5, blurred=0.82)))
    assert found.layout.mean == pytest.approx(0.5, abs=0.02)  # (0.9 - 0.5) / (0.9 - 0.1)
    assert found.detail.mean == pytest.approx(0.1, abs=0.02)
    for need, truth in ((found.layout, 0.5), (found.detail, 0.1)):
        assert need.low < truth < need.high
        assert need.high - need.low < 0.1
    by_name = {curve.condition: curve for curve in found.curves}
    assert by_name[CLEAN].kept.mean == by_name[CLEAN].kept.low == by_name[CLEAN].kept.high == 1
    assert by_name[SHUFFLED].kept.mean == pytest.approx(1 - found.layout.mean)
    assert by_name[BLURRED].accuracy.mean == pytest.approx(0.82, abs=0.02)


def test_what_is_always_right_has_no_width():
    found = needs(answers(rates(clean=1.2, blurred=1.2)))
    estimates = [found.detail, *(curve.accuracy for curve in found.curves if curve.condition in (CLEAN, BLURRED))]
    assert [(one.mean, one.low, one.high) for one in estimates] == [(0, 0, 0), (1, 1, 1), (1, 1, 1)]


def test_nothing_learned_is_no_need():
    found = needs(answers(rates(clean=0.1, shuffled=0.1, blurred=0.1), images=400))
    assert found.detail is None
    assert found.layout is None
    assert all(curve.kept is None for curve in found.curves)


def test_few_images_of_which_some_resamples_know_nothing_widen_the_interval():
    right = np.zeros((1, len(CONDITIONS), 10), bool)
    right[:, CONDITIONS.index(CLEAN), :5] = right[:, CONDITIONS.index(SHUFFLED), :3] = True
    found = needs(Answers(right, CHANCE, (1, 10), 1.0))
    assert found.layout.mean == pytest.approx(0.5)
    assert found.layout.low <= 0 < 0.9 < found.layout.high


def test_seeds_that_disagree_and_fewer_images_widen_the_interval():
    def width(**changes):
        found = needs(answers(rates(shuffled=0.6), **changes))
        return found.layout.high - found.layout.low

    steady = width()
    assert width(images=200) > 2 * steady
    # a seed that is better throughout keeps its share: what widens the interval is what the share does not cancel
    varied = answers(rates(shuffled=0.6))
    wavering = varied.right.copy()
    wavering[0, CONDITIONS.index(SHUFFLED), :400] = False
    disagreeing = needs(Answers(wavering, CHANCE, (1, 1), 1.0)).layout
    assert disagreeing.high - disagreeing.low > 2 * steady


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Simulated sets of 300 images, three references that differ by chance: at least nine in ten, for 95 %."""
    held, rng = [], np.random.default_rng(1)
    for _ in range(60):
        right = rng.random((3, len(CONDITIONS), 300)) < 0.8
        right[:, CONDITIONS.index(SHUFFLED)] = rng.random((3, 300)) < 0.45
        layout = needs(Answers(right, CHANCE, (1, 1), 1.0)).layout
        held.append(layout.low < 0.5 < layout.high)
    assert np.mean(held) >= 0.9


def test_one_seed_resamples_images_alone():
    found = needs(answers(rates(shuffled=0.5), seeds=1))
    assert found.layout.low < 0.5 < found.layout.high
