"""What validation logits say: accuracy overall and per class, calibration, the mistakes made with most confidence."""

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

NUM_BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017, §2."""
TOP5_FROM = 6
"""With fewer classes five guesses are always or nearly always right, so top-5 says nothing."""


@dataclass(frozen=True)
class Metrics:
    """Scores of one model on N labelled images of K classes.

    Attributes:
        top1: share of images whose most probable class is theirs.
        top5: share whose class is among the five most probable; None below `TOP5_FROM` classes.
        ece: expected calibration error, `NUM_BINS` bins of equal width.
        nll: mean negative log-likelihood, in nats.
        per_class: (K,) top-1 within each class; nan for a class without images.
        confusion: (K, K) counts, a row for each true class, a column for each predicted one.
    """

    top1: float
    top5: float | None
    ece: float
    nll: float
    per_class: np.ndarray
    confusion: np.ndarray


def score(logits: np.ndarray, labels: np.ndarray) -> Metrics:
    """Score (N, K) logits against (N,) labels."""
    log_probs = log_softmax(logits.astype(np.float64), axis=1)
    num_classes = logits.shape[1]
    predicted = log_probs.argmax(1)
    right = predicted == labels
    confusion = np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, -1)
    with np.errstate(invalid="ignore"):
        per_class = confusion.diagonal() / confusion.sum(1)
    top5 = None
    if num_classes >= TOP5_FROM:
        five = np.argpartition(-log_probs, 4, axis=1)[:, :5]
        top5 = float((five == labels[:, None]).any(1).mean())
    confidence = np.exp(log_probs.max(1))
    nll = float(-log_probs[np.arange(len(labels)), labels].mean())
    return Metrics(float(right.mean()), top5, calibration_error(confidence, right), nll, per_class, confusion)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3): mean gap of confidence and accuracy, bin by bin.

    Args:
        confidence: (N,) probability of the predicted class.
        right: (N,) whether the prediction is right.
    """
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)  # (lower, upper]
    gap = np.bincount(bins, weights=right - confidence, minlength=NUM_BINS)
    return float(np.abs(gap).sum() / len(right))


def confident_mistakes(logits: np.ndarray, labels: np.ndarray, count: int = 12) -> list[tuple[int, int, float]]:
    """The wrong predictions with the highest confidence, highest first: (position, predicted class, confidence)."""
    probs = np.exp(log_softmax(logits.astype(np.float64), axis=1))
    predicted, confidence = probs.argmax(1), probs.max(1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return [(int(i), int(predicted[i]), float(confidence[i])) for i in worst]
