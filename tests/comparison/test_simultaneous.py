import numpy as np
import pytest
from scipy import stats

from glocal.comparison.simultaneous import (
    Deviations,
    accuracy_of_choice,
    chance_of_being_best,
    deviations,
    differences_to_best,
    stepwise_differences,
)
from glocal.comparison.statistics import Answers, Resampled, paired_difference

IMAGES = 600


def equal_models(rng, count, seeds=1, images=IMAGES, accuracy=0.8):
    """Models of one accuracy that agree on most images."""
    difficulty = rng.standard_normal(images)
    own = rng.standard_normal((count, seeds, images))
    right = np.sqrt(0.6) * difficulty + np.sqrt(0.4) * own < stats.norm.ppf(accuracy)
    return [Answers(model) for model in right]


def test_two_models_have_the_normal_interval_of_their_paired_difference():
    one, other = equal_models(np.random.default_rng(1), 2)
    models = deviations([one, other])
    difference = other.right[0].astype(float) - one.right[0]
    if difference.mean() > 0:
        difference = -difference
    margin = stats.norm.ppf(0.975) * difference.std() / np.sqrt(IMAGES)
    worse = min(differences_to_best(models), key=lambda interval: interval.mean)
    assert worse.mean == pytest.approx(difference.mean())
    assert (worse.low, worse.high) == pytest.approx(
        (difference.mean() - margin, difference.mean() + margin), abs=0.05 * margin
    )


def test_the_best_is_no_distance_from_itself():
    models = deviations([Answers(np.ones((1, 50), bool)), Answers(np.zeros((2, 50), bool))])
    best, worst = differences_to_best(models)
    assert (best.mean, best.low, best.high) == (0, 0, 0)
    assert (worst.mean, worst.holds_zero) == (-1, False)
    assert chance_of_being_best(models).tolist() == [1, 0]


def test_the_more_models_the_wider_the_intervals():
    rng = np.random.default_rng(2)
    many = equal_models(rng, 40)
    width = [
        np.mean([i.high - i.low for i in differences_to_best(deviations(many[:count])) if i.low < 0])
        for count in (2, 5, 40)
    ]
    assert width[0] < width[1] < width[2]
    # Tukey's range: the quantiles of the studentised range over sqrt(2)
    for count, found in ((5, width[1] / width[0]), (40, width[2] / width[0])):
        expected = stats.studentized_range.ppf(0.95, count, 1e6) / stats.studentized_range.ppf(0.95, 2, 1e6)
        assert found == pytest.approx(expected, rel=0.12)


def test_none_of_many_equal_models_is_called_worse_more_often_than_allowed():
    rng = np.random.default_rng(3)
    wrong = wrong_in_pairs = 0
    for _ in range(150):
        models = equal_models(rng, 10, images=300)
        intervals = differences_to_best(deviations(models))
        wrong += any(not interval.holds_zero for interval in intervals)
        best = models[int(np.argmax([model.mean for model in models]))]
        wrong_in_pairs += any(not paired_difference(m.right, best.right).holds_zero for m in models if m is not best)
    assert wrong <= stats.binom.ppf(0.999, 150, 0.05)
    assert wrong_in_pairs > 40  # what an interval for each pair alone does


def test_the_spread_of_seeds_is_drawn_towards_the_median_of_all_models():
    """Scores that no draw of images changes."""
    scores = [np.array([0.5, 0.5]), np.array([0.35, 0.45]), np.array([0.2, 0.24]), np.array([0.3])]
    models = deviations([Resampled(s, np.tile(s, (4000, 1))) for s in scores])
    assert models.means.tolist() == pytest.approx([0.5, 0.4, 0.22, 0.3])
    assert np.abs(models.of_images).max() < 1e-12
    own, prior = np.array([0, 0.005, 0.0008]), 0.64 * 3
    typical = 0.0008 / stats.chi2.median(1)  # the median of one squared deviation is 0.45 of its mean
    moderated = [*(prior * typical + own) / (prior + 1), typical]
    # a t distribution of so few degrees of freedom has hardly a variance: compare quartiles
    for column, variance, count, freedom in zip(
        models.drawn.T, moderated, (2, 2, 2, 1), (*[prior + 1] * 3, prior), strict=True
    ):
        quartile = stats.t.ppf(0.75, freedom) * np.sqrt(variance / count)
        assert np.quantile(column, 0.75) == pytest.approx(quartile, rel=0.1)


def test_a_model_that_sometimes_fails_does_not_hide_the_differences_between_others():
    """The spread of its seeds is its own: pooled, it would be that of all."""
    rng = np.random.default_rng(5)
    accuracies = ([0.90, 0.90, 0.91], [0.90, 0.91, 0.90], [0.87, 0.875, 0.87], *[[0.1, 0.44, 0.33]] * 4)
    models = [Answers(np.array([rng.random(3000) < p for p in of_seeds])) for of_seeds in accuracies]
    intervals, still, _ = stepwise_differences(models)
    assert still == [0, 1]
    assert [interval.holds_zero for interval in intervals] == [True, True, *[False] * 5]
    assert differences_to_best(deviations(models))[2].holds_zero, "in one step it is hidden"


def test_no_step_calls_one_of_many_equal_models_worse_more_often_than_allowed():
    """Three that are far behind are set aside first."""
    rng = np.random.default_rng(6)
    wrong = 0
    for _ in range(100):
        models = equal_models(rng, 6, images=300)
        far = [Answers(model.right & (rng.random(model.right.shape) < 0.6)) for model in models[:3]]
        intervals, _, _ = stepwise_differences([*models, *far])
        assert all(interval.high < 0 for interval in intervals[6:])
        wrong += any(not interval.holds_zero for interval in intervals[:6])
    assert wrong <= stats.binom.ppf(0.999, 100, 0.05)


def test_the_sampling_of_images_is_not_counted_twice_where_seeds_differ_by_it():
    """Seeds that differ by chance on each image alone: more seeds are more images."""
    rng = np.random.default_rng(4)
    ratios = []
    for _ in range(30):
        right = rng.random((3, 5, 400)) < 0.7  # no image is harder than another
        spread = deviations([Answers(model) for model in right]).drawn.std(axis=0).mean()
        ratios.append(spread / np.sqrt(0.7 * 0.3 / 400 / 5))
    assert 0.95 < np.mean(ratios) < 1.3  # three models tell little about the spread of their seeds


def test_chances_are_those_of_the_resamples():
    drawn = np.array([[0.0, 0.2], [0.0, -0.1], [0.0, -0.2], [0.0, 0.05]])
    assert chance_of_being_best(Deviations(np.array([0.5, 0.45]), drawn, drawn)).tolist() == [0.75, 0.25]


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_accuracy_of_the_choice_is_without_the_winners_curse(seeds):
    rng = np.random.default_rng(5)
    found, naive, held = [], [], 0
    for _ in range(120):
        models = equal_models(rng, 20, seeds, images=300)
        interval = accuracy_of_choice(models, deviations(models))
        found.append(interval.mean)
        naive.append(max(model.mean for model in models))
        held += interval.low <= 0.8 <= interval.high
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - 0.8) < 3 * error
    assert np.mean(naive) - 0.8 > 6 * error
    assert held >= stats.binom.ppf(0.001, 120, 0.93)


def test_a_clear_winner_keeps_its_accuracy():
    rng = np.random.default_rng(6)
    models = [*equal_models(rng, 3, accuracy=0.6), *equal_models(rng, 1, accuracy=0.9)]
    interval = accuracy_of_choice(models, deviations(models))
    accuracy = models[-1].mean
    assert interval.mean == pytest.approx(accuracy)
    margin = stats.norm.ppf(0.975) * np.sqrt(accuracy * (1 - accuracy) / IMAGES)
    assert (interval.low, interval.high) == pytest.approx((accuracy - margin, accuracy + margin), abs=0.1 * margin)


def test_images_of_a_group_do_not_choose_for_each_other():
    """Two models know a group by heart each and nothing else; a third is right on 60 % of both."""
    groups = np.repeat([0, 1], 150)
    right = [groups == 0, groups == 1, np.arange(300) % 5 < 3]
    models = [Answers(model[None]) for model in right]
    of_all = deviations(models)
    assert accuracy_of_choice(models, of_all, groups).mean == 0  # chosen by one group, scored on the other
    assert accuracy_of_choice(models, of_all).mean == pytest.approx(0.6)
    one_group = accuracy_of_choice(models, of_all, np.zeros(300, int))  # nothing is left to score on
    assert one_group.mean == pytest.approx(0.6)
