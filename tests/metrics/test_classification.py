import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from glocal.metrics.classification import Outcomes, score


def test_by_hand():
    # two classes; probabilities of class 1: 0.9 (right), 0.8 (wrong), 0.25 (right: class 0)
    probs = np.array([[0.1, 0.9], [0.2, 0.8], [0.75, 0.25]])
    labels = np.array([1, 0, 0])
    metrics = score(np.log(probs), labels)
    assert metrics.top1 == pytest.approx(2 / 3)
    assert metrics.top5 is None
    assert metrics.nll == pytest.approx(-(np.log(0.9) + np.log(0.2) + np.log(0.75)) / 3)
    # 0.8 and 0.75 are both in (11/15, 12/15], where confidence is 1.55 for one right answer in two
    assert metrics.ece == pytest.approx((0.1 + 0.55) / 3)
    assert metrics.confusion.tolist() == [[1, 1], [0, 1]]
    assert metrics.per_class.tolist() == [0.5, 1.0]
    assert Outcomes.of(np.log(probs), labels).mistakes() == [(1, 1, pytest.approx(0.8))]


def test_against_torchmetrics_and_a_loop():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 10)) * 3, rng.integers(10, size=500)
    metrics = score(logits, labels)
    probs = torch.tensor(logits).softmax(1)
    expected = multiclass_calibration_error(probs, torch.tensor(labels), num_classes=10, n_bins=15, norm="l1")
    assert metrics.ece == pytest.approx(expected.item(), abs=1e-6)
    five = [label in sorted(range(10), key=lambda k: -row[k])[:5] for row, label in zip(logits, labels, strict=True)]
    assert metrics.top5 == pytest.approx(np.mean(five))
    confusion = np.zeros((10, 10), int)
    for row, label in zip(logits, labels, strict=True):
        confusion[label, row.argmax()] += 1
    assert (metrics.confusion == confusion).all()


def test_large_logits_and_a_class_without_images():
    metrics = score(np.array([[1e4, -1e4, 0.0]], np.float32), np.array([0]))
    assert metrics.top1 == 1
    assert metrics.nll == 0
    assert metrics.per_class[0] == 1
    assert np.isnan(metrics.per_class[1:]).all()


def test_mistakes_come_most_confident_first():
    logits = np.array([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0], [5.0, 0.0]])
    assert [position for position, *_ in Outcomes.of(logits, np.zeros(4, int)).mistakes(2)] == [1, 2]


def test_many_classes_have_no_matrix_and_the_same_scores(monkeypatch):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 12)), rng.integers(12, size=200)
    whole = score(logits, labels)
    monkeypatch.setattr("glocal.metrics.classification.MOST_CONFUSED", 11)
    sparse = score(logits, labels)
    assert sparse.confusion.shape == (0, 0)
    assert sparse.confusion.tolist() == []
    np.testing.assert_array_equal(sparse.per_class, whole.per_class)
    np.testing.assert_array_equal(whole.per_class, whole.confusion.diagonal() / whole.confusion.sum(1))
    assert (sparse.top1, sparse.top5, sparse.ece, sparse.nll) == (whole.top1, whole.top5, whole.ece, whole.nll)


def test_confusions_are_the_matrix_without_its_diagonal():
    rng = np.random.default_rng(1)
    outcomes = Outcomes.of(rng.normal(size=(300, 7)), rng.integers(7, size=300))
    matrix = outcomes.score(7).confusion
    found = outcomes.confusions()
    assert [count for count, *_ in found] == sorted((count for count, *_ in found), reverse=True)
    again = np.diag(matrix.diagonal())
    for count, true, predicted in found:
        again[true, predicted] = count
    np.testing.assert_array_equal(again, matrix)
