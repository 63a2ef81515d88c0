import numpy as np
import pytest
import torch

from glocal.comparison.logistic import CROSS_VALIDATED, DECADES, choose_c, fit, fit_probe, folds


def example(count=60, dims=4, noise=1.0, seed=7):
    """(N, D) features of three classes, centred and of root mean square 1, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    features = noise * rng.normal(size=(count, dims)) + np.eye(3, dims)[labels]
    features -= features.mean(0)
    return torch.from_numpy(features / np.sqrt((features**2).mean())), labels


def objective(weight, bias, features, labels, c):
    """C x the sum of the cross-entropies + half the squared norm, by loops."""
    total = 0.0
    for image, label in zip(features.tolist(), labels.tolist(), strict=True):
        logits = [sum(w * x for w, x in zip(row, image, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        total += c * (np.log(sum(np.exp(logit) for logit in logits)) - logits[label])
    return total + 0.5 * sum(w * w for row in weight for w in row)


def test_the_weights_are_those_of_scikit_learn():
    # LogisticRegression(C=0.3, tol=1e-10) of scikit-learn 1.9.1 on the same numbers
    coefficients = [
        [0.77311, -0.46184, -0.201483, -0.353773],
        [-0.268141, 0.92207, -0.35124, 0.319151],
        [-0.50497, -0.46023, 0.552723, 0.034623],
    ]
    features, labels = example()
    weights = fit(features, torch.from_numpy(labels), 3, 0.3).weights
    np.testing.assert_allclose(weights[:, :-1], coefficients, atol=2e-5)
    bias = weights[:, -1] - weights[:, -1].mean()  # only differences of biases matter
    np.testing.assert_allclose(bias, [0.044061, -0.07648, 0.032419], atol=2e-5)


def test_no_step_away_from_the_weights_is_better():
    features, labels = example(count=12)
    weights = fit(features, torch.from_numpy(labels), 3, 2.0).weights.numpy()
    best = objective(weights[:, :-1].tolist(), weights[:, -1].tolist(), features, labels, 2.0)
    for index in np.ndindex(weights.shape):
        for step in (-1e-3, 1e-3):
            other = weights.copy()
            other[index] += step
            assert objective(other[:, :-1].tolist(), other[:, -1].tolist(), features, labels, 2.0) > best


def test_c_is_the_one_with_the_smallest_loss_on_images_left_out():
    features, labels = example(count=90, dims=20, noise=2.0)
    targets = torch.from_numpy(labels)
    c, losses, _ = choose_c(features, targets, 3)
    assert c == min(losses, key=losses.get)
    fold = folds(labels, 5)
    for tried, loss in losses.items():
        total = 0.0
        for part in range(5):
            rows = fold != part
            weights = fit(features[rows], targets[rows], 3, tried).weights
            logits = features[~rows] @ weights[:, :-1].T + weights[:, -1]
            total += torch.nn.functional.cross_entropy(logits, targets[~rows], reduction="sum").item()
        assert loss == pytest.approx(total / 90, rel=2e-3)  # cross-validation stops earlier
    smaller, larger = (losses[c * factor] for factor in (10**-0.5, 10**0.5) if c * factor in losses)
    assert losses[c] < min(smaller, larger)


def test_noise_asks_for_a_stronger_penalty_than_clean_features():
    clean, noisy = (fit_probe(*example(count=120, dims=40, noise=noise), 3) for noise in (0.2, 3.0))
    assert clean.c > 100 * noisy.c
    assert noisy.c >= DECADES[0] / 10**0.5


def test_where_the_features_lie_does_not_matter():
    features, labels = example()
    one, other = fit_probe(features, labels, 3), fit_probe(1000 + 50 * features, labels, 3)
    assert one.c == other.c
    torch.testing.assert_close(one(features), other(1000 + 50 * features), atol=1e-3, rtol=1e-3)
    assert one.loss == pytest.approx(
        torch.nn.functional.cross_entropy(one(features), torch.from_numpy(labels)).item(), abs=1e-9
    )


def test_it_is_the_same_again():
    features, labels = example()
    one, other = fit_probe(features.float(), labels, 3), fit_probe(features.float(), labels, 3)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0, 0, 1], [0, 1], [0, 0, 2, 2, 2, 2]])
def test_classes_of_one_image_or_none_are_taken(labels):
    features = torch.arange(len(labels)).float()[:, None] * torch.tensor([[1.0, 0.0]])  # and a feature that is constant
    probe = fit_probe(features, np.array(labels), 3)
    assert torch.isfinite(probe(features)).all()
    assert probe(features).argmax(1).tolist() == labels


def test_equal_features_give_the_frequencies():
    probe = fit_probe(torch.ones(10, 3), np.array([0] * 7 + [1] * 3), 2)
    torch.testing.assert_close(
        probe(torch.ones(1, 3)).softmax(1), torch.tensor([[0.7, 0.3]], dtype=torch.float64), atol=1e-3, rtol=0
    )


def test_classes_of_one_image_do_not_choose_the_penalty():
    features, labels = example(count=90, dims=10)
    more, others = torch.cat([features, features[:4] + 1]), np.concatenate([labels, [3, 4, 5, 6]])
    alone, with_singles = fit_probe(features, labels, 3), fit_probe(more, others, 7)
    assert with_singles.c == pytest.approx(alone.c, rel=3.2)  # a step of the grid at most
    assert fit_probe(features[:3], labels[:3], 3).c == 1  # nothing can choose


def test_folds_spread_every_class_evenly():
    labels = np.repeat([0, 1, 2], [50, 7, 1])
    fold = folds(labels, 5)
    assert np.bincount(fold, minlength=5).max() - np.bincount(fold, minlength=5).min() <= 1
    for label, count in ((0, 50), (1, 7)):
        of_class = np.bincount(fold[labels == label], minlength=5)
        assert of_class.max() - of_class.min() <= 1
        assert of_class.sum() == count


def test_at_most_some_images_choose_c_and_all_are_fitted():
    count = 3 * CROSS_VALIDATED
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    features = torch.from_numpy(rng.normal(size=(count, 2)) + labels[:, None])
    probe = fit_probe(features, labels, 2)
    whole = fit(
        (features - features.mean(0)) / (features - features.mean(0)).square().mean().sqrt(),
        torch.from_numpy(labels), 2, probe.c,
    )  # fmt: skip
    centred = (features - features.mean(0)) / (features - features.mean(0)).square().mean().sqrt()
    torch.testing.assert_close(
        probe(features), centred @ whole.weights[:, :-1].T + whole.weights[:, -1], atol=1e-6, rtol=1e-6
    )
    assert probe.passes < 2 * whole.passes + len(probe.losses) * 5 * 300 / 3
