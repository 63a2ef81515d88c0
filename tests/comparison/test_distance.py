"""Accuracy against the distance needed."""

import itertools

import numpy as np
import pytest

from glocal.comparison import accuracy_interval
from glocal.comparison.distance import MOST_BINS, accuracy_by_distance, bins


def runs_of(**seeds):
    return [
        {"id": f"{model}{seed}", "model": model, "fraction": 1.0, "status": "ok"}
        for model, number in seeds.items()
        for seed in range(number)
    ]


def test_each_distance_has_the_accuracy_of_its_own_images():
    rng = np.random.default_rng(0)
    distances = np.tile([6, 9, 12], 200)
    runs = [*runs_of(near=2, far=1), {"id": "bad", "model": "bad", "fraction": 1.0, "status": "failed"}]
    right = {
        "near0": distances == 6, "near1": (distances == 6) | (rng.random(600) < 0.5), "far0": np.ones(600, bool),
    }  # fmt: skip
    rows = accuracy_by_distance(runs, right, distances)
    assert [(row["model"], row["distance"]) for row in rows] == [
        (model, [d, d]) for model in ("near", "far") for d in (6, 9, 12)
    ]
    assert {row["images"] for row in rows} == {200}
    assert [row["top1_mean"] for row in rows[3:]] == [1, 1, 1]
    assert rows[0]["top1_mean"] == 1
    far = distances == 12
    expected = accuracy_interval(np.stack([right["near0"][far], right["near1"][far]]))
    assert rows[2]["top1_mean"] == pytest.approx(right["near1"][far].mean() / 2)
    assert rows[2]["top1_ci"] == [expected.low, expected.high]


def test_many_distances_are_put_into_bins_of_like_numbers_without_gap_or_overlap():
    distances = np.random.default_rng(0).gamma(2.0, 5.0, 1000).round(1)
    found = bins(distances)
    assert len(found) == MOST_BINS
    numbers = [((distances >= low) & (distances <= high)).sum() for low, high in found]
    assert sum(numbers) == 1000
    assert min(numbers) > 100
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))
    assert bins(np.array([3, 3, 5])) == [(3, 3), (5, 5)]
    assert len(bins(np.repeat([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10], [991, 1, 1, 1, 1, 1, 1, 1, 1, 1]))) >= 1
