import math

import numpy as np
import pytest
import torch

from glocal.comparison.logistic import fit_probe
from glocal.comparison.neighbours import CANDIDATES, LEFT_OUT, TEMPERATURE, fit_neighbours, nearest_neighbours


def example(count=60, dims=4, noise=1.0, seed=7, classes=3):
    """(N, D) float32 features and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    features = noise * rng.normal(size=(count, dims)) + np.eye(classes, dims)[labels]
    return torch.from_numpy(features).float(), labels


def rings(count, seed):
    """Images on two rings around the axis (0, 0, 1), which no plane separates."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    radius, angle = 0.4 + 0.8 * labels + 0.1 * rng.normal(size=count), rng.uniform(0, 2 * np.pi, count)
    return torch.from_numpy(np.stack([radius * np.cos(angle), radius * np.sin(angle), np.ones(count)], 1)), labels


def oracle(image, others, labels, k, num_classes):
    """(K,) scores and the prediction for an image, by loops."""
    cosines = []
    for index, other in enumerate(others):
        product = sum(a * b for a, b in zip(image, other, strict=True))
        norms = math.sqrt(sum(a * a for a in image)) * math.sqrt(sum(b * b for b in other))
        cosines.append((-product / norms, index))
    nearest = sorted(cosines)[:k]
    votes = [0.0] * num_classes
    for cosine, index in nearest:
        votes[labels[index]] += math.exp((nearest[0][0] - cosine) / TEMPERATURE)
    scores = [(of_class + 1 / num_classes) / (sum(votes) + 1) for of_class in votes]
    return scores, int(np.argmax(scores))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_votes_are_those_of_loops(k):
    train, labels = example()
    val, _ = example(count=20, seed=8)
    neighbours = fit_neighbours(train, labels, 3, candidates=[k])
    assert neighbours.k == k
    votes = neighbours(val)
    expected = [oracle(image, train.tolist(), labels.tolist(), k, 3) for image in val.tolist()]
    np.testing.assert_allclose(votes.scores, [scores for scores, _ in expected], atol=1e-5)
    assert votes.predictions.tolist() == [prediction for _, prediction in expected]
    assert torch.equal(votes.predictions, votes.scores.argmax(1))
    np.testing.assert_allclose(votes.scores.sum(1), 1, rtol=1e-12)


def test_k_is_chosen_by_leaving_each_image_out():
    train, labels = example(count=45, noise=0.8)
    neighbours = fit_neighbours(train, labels, 3)
    assert list(neighbours.accuracies) == [k for k in CANDIDATES if k < 45]
    images = train.tolist()
    for k, accuracy in neighbours.accuracies.items():
        correct = 0
        for left_out in range(45):
            others, known = images[:left_out] + images[left_out + 1 :], np.delete(labels, left_out).tolist()
            correct += oracle(images[left_out], others, known, k, 3)[1] == labels[left_out]
        assert accuracy == pytest.approx(correct / 45)
    best = max(neighbours.accuracies.values())
    assert neighbours.k == min(k for k, accuracy in neighbours.accuracies.items() if accuracy == best)


def test_noise_asks_for_more_neighbours():
    train, labels = example(count=600, dims=3, noise=1.0)
    assert fit_neighbours(train, labels, 3).k > 5
    twins = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    assert fit_neighbours(twins, np.arange(100) % 50 % 2, 2).k == 1


def test_rings_are_told_apart_where_a_plane_cannot():
    (train, labels), (val, of_val) = rings(200, seed=0), rings(200, seed=1)
    targets = torch.from_numpy(of_val)
    by_plane = (fit_probe(train, labels, 2)(val).argmax(1) == targets).double().mean()
    by_neighbours = (fit_neighbours(train, labels, 2)(val).predictions == targets).double().mean()
    assert by_plane < 0.7
    assert by_neighbours > 0.98


def test_a_class_of_two_images_is_found():
    rng = np.random.default_rng(0)
    labels = np.array([0] * 60 + [1] * 60 + [2] * 2)
    features = torch.from_numpy(np.eye(3, 6)[labels] + 0.1 * rng.normal(size=(122, 6)))
    neighbours = fit_neighbours(features, labels, 3)
    assert neighbours.k <= 3  # with more, the two are always outvoted
    rare = torch.from_numpy(np.eye(3, 6)[[2, 2, 0]] + 0.1 * rng.normal(size=(3, 6)))
    assert neighbours(rare).predictions.tolist() == [2, 2, 0]


@pytest.mark.parametrize("block", [(1, 1), (7, 11), (1000, 3), (5, 1000)])
def test_blocks_do_not_change_a_bit(block):
    train, labels = example(count=90, dims=40, noise=3.0)
    train = torch.cat([train, train[:30], train[:30] * 3])  # exact and scaled copies
    labels = np.concatenate([labels, labels[:30], (labels[:30] + 1) % 3])
    val = torch.cat([example(count=50, dims=40, seed=9)[0], train[:10]])
    whole, parts = fit_neighbours(train, labels, 3), fit_neighbours(train, labels, 3, block=block)
    assert whole.accuracies == parts.accuracies
    assert whole.k == parts.k
    for k in (1, 5, 50):
        one, other = nearest_neighbours(val, train, k), nearest_neighbours(val, train, k, block=block)
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.similarities, other.similarities)
    assert torch.equal(whole(val).scores, parts(val, block=block).scores)


def on_circle(*degrees):
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_a_tie_goes_to_the_nearer_neighbour():
    for first, second in ((0, 1), (1, 0)):  # equally near: the first of the training set
        neighbours = fit_neighbours(on_circle(20, -20, 90, 90), np.array([first, second, 2, 2]), 3)._replace(k=2)
        votes = neighbours(on_circle(0))
        assert votes.predictions.tolist() == [first]
        assert votes.scores.float().argmax(1).tolist() == [first]
        np.testing.assert_allclose(votes.scores[0, 0], votes.scores[0, 1], rtol=1e-5)


def test_equal_sums_of_votes_go_to_the_class_of_the_nearest():
    train = on_circle(30, 10, -10, -30)  # each class has one at 10 and one at 30 degrees
    for labels in ([1, 0, 1, 0], [0, 1, 0, 1]):
        votes = fit_neighbours(train, np.array(labels), 2)._replace(k=4)(on_circle(0))
        assert votes.predictions.tolist() == [labels[1]]


def test_scale_does_not_matter_and_zeros_are_taken():
    train, labels = example()
    val, _ = example(count=20, seed=8)
    one, other = fit_neighbours(train, labels, 3), fit_neighbours(train * 1e20, labels, 3)
    assert one.k == other.k
    assert torch.equal(one(val).predictions, other(val * 1e-20).predictions)
    votes = fit_neighbours(torch.zeros(4, 3), np.array([2, 0, 1, 1]), 3)(torch.zeros(2, 3))
    assert torch.isfinite(votes.scores).all()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_images(count):
    train, labels = example(count=count)
    neighbours = fit_neighbours(train, labels, 5)
    assert neighbours.k <= max(1, count - 1)
    assert neighbours(train).predictions.tolist() == labels.tolist()
    assert neighbours(train[:0]).scores.shape == (0, 5)
    assert torch.equal(neighbours(train).scores, fit_neighbours(train, labels, 5)(train).scores)


def test_at_most_some_images_are_left_out_and_all_are_neighbours():
    # images in pairs, far apart in the training set: an image is found only if all others are neighbours
    pairs = torch.randn(2 * LEFT_OUT, 6, generator=torch.Generator().manual_seed(0))
    train = torch.cat([pairs, pairs * 2])
    labels = np.tile(np.random.default_rng(0).integers(3, size=2 * LEFT_OUT), 2)
    neighbours = fit_neighbours(train, labels, 3, candidates=[1])
    assert neighbours.accuracies == {1: 1.0}


def test_other_images_of_the_block_are_not_left_out():
    found = nearest_neighbours(on_circle(0, 5), on_circle(0, 5, 7), 2, own=torch.tensor([0, 1]))
    assert found.indices.tolist() == [[1, 2], [2, 0]]
