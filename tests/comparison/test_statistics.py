import numpy as np
import pytest
from scipy import stats

from glocal.comparison import accuracy_interval, paired_difference


def rights(*counts, images=10):
    """A row for each run, with that many right answers."""
    return np.array([[i < count for i in range(images)] for count in counts])


def test_over_seeds_and_images_by_hand():
    interval = accuracy_interval(rights(500, 600, 700, images=1000))
    of_seeds = 4.302653 * 0.1 / np.sqrt(3)  # t(0.975, 2) x s / sqrt(S)
    means = np.repeat([1, 2 / 3, 1 / 3, 0], [500, 100, 100, 300])  # of an image over the seeds
    of_images = 1.959964 * means.std() / np.sqrt(1000)
    margin = np.hypot(of_seeds, of_images)
    assert interval.mean == pytest.approx(0.6)
    assert (interval.low, interval.high) == pytest.approx((0.6 - margin, 0.6 + margin), abs=1e-4)
    assert interval.method == "t-interval over 3 seeds, with the sampling of the validation images"


def test_seeds_that_agree_by_luck_leave_the_sampling_of_images():
    interval = accuracy_interval(rights(800, 800, images=1000))
    margin = 1.959964 * np.sqrt(0.8 * 0.2 / 1000)
    assert (interval.low, interval.high) == pytest.approx((0.8 - margin, 0.8 + margin), rel=0.02)


def test_an_interval_stays_between_none_and_all():
    interval = accuracy_interval(rights(900, 1000, images=1000))
    assert interval.low == pytest.approx(0.95 - 12.7062 * 0.05, abs=1e-3)
    assert interval.high == 1.0


def test_with_one_seed_it_is_the_bootstrap_of_images():
    interval = accuracy_interval(rights(80, images=100))
    # 100 draws with replacement, each right with probability 0.8
    expected = stats.binom(100, 0.8).ppf([0.025, 0.975]) / 100
    assert (interval.low, interval.high) == pytest.approx(expected, abs=0.011)
    assert "one seed" in interval.method


def test_paired_difference_against_a_plain_bootstrap():
    rng = np.random.default_rng(3)
    one, other = rng.random((1, 200)) < 0.7, rng.random((1, 200)) < 0.8
    interval = paired_difference(one, other)
    drawn = rng.integers(200, size=(10_000, 200))
    plain = (one[0].astype(float) - other[0])[drawn].mean(1)
    assert interval.mean == pytest.approx(one.mean() - other.mean())
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=0.006)


def test_shared_images_make_the_difference_sure():
    best = np.random.default_rng(0).random((1, 500)) < 0.8
    worse = best.copy()
    worse[0, np.flatnonzero(best[0])[:10]] = False  # wrong on 10 images more, alike on all others: -2 points
    assert not paired_difference(worse, best).holds_zero
    shuffled = np.random.default_rng(1).permutation(500)
    assert paired_difference(worse[:, shuffled], best).holds_zero


def test_the_same_answers_differ_by_nothing():
    right = np.random.default_rng(0).random((1, 100)) < 0.8
    interval = paired_difference(right, right)
    assert (interval.mean, interval.low, interval.high) == (0, 0, 0)


def test_it_is_the_same_every_time():
    rng = np.random.default_rng(0)
    one, other = rng.random((3, 100)) < 0.7, rng.random((3, 100)) < 0.8
    assert paired_difference(one, other) == paired_difference(one, other)
    assert accuracy_interval(one[:1]) == accuracy_interval(one[:1])


def planted(rng, gap, seeds, images=1000, seed_spread=0.02):
    """Answers of two models on images of varied difficulty, the second better by `gap`; seeds shift the accuracy."""
    difficulty = rng.beta(4, 1, images)

    def model(bonus):
        shift = bonus + rng.normal(0, seed_spread if seeds > 1 else 0, (seeds, 1))
        return rng.random((seeds, images)) < np.clip(difficulty + shift, 0, 1)

    return model(0.0), model(gap)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_equal_models_are_tied_about_95_times_in_100(seeds):
    rng = np.random.default_rng(0)
    ties = [paired_difference(*planted(rng, 0.0, seeds)).holds_zero for _ in range(120)]
    assert 0.92 <= np.mean(ties) <= 0.99


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_better_model_is_not_tied(seeds):
    rng = np.random.default_rng(seeds)
    ties = [paired_difference(*planted(rng, 0.15, seeds)).holds_zero for _ in range(30)]
    assert np.mean(ties) <= 0.1


def test_with_two_seeds_the_spread_of_seeds_is_in_the_interval():
    images = np.random.default_rng(0).random(1000) < 0.9
    best, spread = np.stack([images] * 2), np.stack([images] * 2)
    spread[0, np.flatnonzero(images)[:100]] = False  # -10 points with one seed, nothing with the other
    interval = paired_difference(spread, best)
    # means of two drawn seeds: -10, -5 or 0 points, widened by sqrt(2) about their mean of -5
    assert interval.low == pytest.approx(-0.05 - 0.05 * np.sqrt(2), abs=0.02)
    assert interval.high == pytest.approx(-0.05 + 0.05 * np.sqrt(2), abs=0.02)
