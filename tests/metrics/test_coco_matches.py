"""Average precision of images with weights is that of pycocotools on images that are there as often."""

import dataclasses

import numpy as np
import pytest

from glocal.metrics.coco import Detections, Targets, match
from tests.metrics.test_coco import K, by_pycocotools, image

N = 60


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    return [image(rng) for _ in range(N)]


@pytest.fixture(scope="module")
def matches(images):
    return match(*zip(*images, strict=True), K)


def draws(images_of_a_draw, number, seed=0):
    return np.random.default_rng(seed).multinomial(images_of_a_draw, np.full(N, 1 / N), size=number)


def by_brute_force(images, weights):
    """pycocotools on the images of a draw, those drawn twice there twice."""
    return by_pycocotools([images[i] for i in np.repeat(np.arange(N), weights)], "bbox").stats[0]


def test_each_image_once(images, matches):
    assert matches.average_precision()[0] == pytest.approx(by_brute_force(images, np.ones(N, int)), abs=1e-12)


@pytest.mark.parametrize("images_of_a_draw", [N, 3])  # of three images most classes have no object
def test_a_draw_is_the_images_it_drew(images, matches, images_of_a_draw):
    weights = draws(images_of_a_draw, 6)
    expected = [by_brute_force(images, row) for row in weights]
    assert len(set(expected)) == 6
    assert matches.average_precision(weights) == pytest.approx(np.maximum(expected, 0), abs=1e-12)


def test_draws_are_looked_at_in_parts(matches, monkeypatch):
    weights = draws(N, 50)
    whole = matches.average_precision(weights)
    monkeypatch.setattr("glocal.metrics.coco.CELLS", 1000)
    assert (matches.average_precision(weights) == whole).all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: {"ignored": np.zeros_like(m.ignored)},  # crowds make what is detected in them wrong
        lambda m: {"score": m.score[::-1]},
        lambda m: {"matched": np.roll(m.matched, 1, axis=0)},
        lambda m: {"objects": m.objects + np.eye(N, K, dtype=int)},
    ],
)
def test_each_part_counts(images, matches, spoil):
    spoilt = dataclasses.replace(matches, **spoil(matches))
    assert abs(spoilt.average_precision()[0] - matches.average_precision()[0]) > 1e-4


def box(*sides, score=None, crowd=False):
    return sides, score, crowd


def one_image(true, detected):
    """A target and findings of one class."""
    target = Targets(
        (99, 99), np.array([sides for sides, _, _ in true], np.float32).reshape(-1, 4), np.zeros(len(true), np.int64),
        np.array([crowd for _, _, crowd in true], bool), np.ones(len(true)), None,
    )  # fmt: skip
    scores = np.array([score for _, score, _ in detected], np.float32)
    return target, Detections(
        np.array([sides for sides, _, _ in detected], np.float32).reshape(-1, 4),
        scores,
        np.zeros(len(detected), int),
        None,
    )


def test_an_object_is_found_once_and_a_crowd_by_any_number():
    true = [box(0, 0, 10, 10), box(50, 50, 90, 90, crowd=True)]
    detected = [
        box(0, 0, 10, 9, score=0.9), box(0, 0, 10, 10, score=0.8), box(55, 55, 65, 65, score=0.7),
        box(70, 70, 80, 80, score=0.6), box(20, 20, 30, 30, score=0.5),
    ]  # fmt: skip
    matches = match(*([one] for one in one_image(true, detected)), 1)
    assert matches.objects.tolist() == [[1]]
    assert matches.matched[:, 0].tolist() == [True, False, False, False, False]
    assert matches.ignored[:, 0].tolist() == [False, False, True, True, False]
    # at 0.95 the surest does not overlap enough, and the second one takes the object
    assert matches.matched[:, -1].tolist() == [False, True, False, False, False]


def test_f1_and_its_best_threshold():
    images = [
        one_image([box(0, 0, 10, 10)], [box(0, 0, 10, 10, score=0.9), box(50, 50, 60, 60, score=0.4)]),
        one_image([box(0, 0, 10, 10)], [box(0, 0, 10, 10, score=0.5), box(50, 50, 60, 60, score=0.8)]),
        one_image([], []),
        one_image([], [box(0, 0, 10, 10, score=0.3)]),
    ]
    matches = match(*zip(*images, strict=True), 1)
    # F1 from 0.9 on 2/3, from 0.8 on 1/2, from 0.5 on 4/5, from 0.4 on 2/3
    assert matches.best_threshold() == pytest.approx(0.5)
    assert matches.f1_of_images(0.5).tolist() == pytest.approx([1, 2 / 3, np.nan, np.nan], nan_ok=True)
    assert matches.f1_of_images(0.2)[[0, 3]].tolist() == pytest.approx([2 / 3, 0])


def test_nothing_found():
    matches = match(*([one] for one in one_image([box(0, 0, 10, 10)], [])), 2)
    assert matches.average_precision().tolist() == [0]
    assert matches.best_threshold() == 1
    assert matches.f1_of_images(1.0).tolist() == [0]
