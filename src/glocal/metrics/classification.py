"""Accuracy overall and per class, calibration, and the most confident mistakes, from validation logits.

Everything is computed from `Outcomes`, a few numbers an image, so a set is scored batch by batch, or a part in each
process, without keeping its logits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.special import log_softmax

from glocal.schema import Scores

NUM_BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017, §2."""
MOST_CONFUSED = 2000
TOP5_FROM = 6
"""With fewer classes top-5 is always or nearly always 1, so it is meaningless."""


@dataclass(frozen=True)
class Metrics:
    """Scores of one model on N labelled images of K classes.

    Attributes:
        top1: top-1 accuracy.
        top5: top-5 accuracy; None below `TOP5_FROM` classes.
        ece: expected calibration error, `NUM_BINS` bins of equal width.
        nll: mean negative log-likelihood, in nats.
        per_class: (K,) top-1 within each class; nan for a class without images.
        confusion: (K, K) counts, a row for each true class, a column for each predicted one; (0, 0) above
            `MOST_CONFUSED` classes, where it would take gigabytes.
    """

    top1: float
    top5: float | None
    ece: float
    nll: float
    per_class: np.ndarray
    confusion: np.ndarray

    def to_dict(self) -> Scores:
        """The scores as JSON, with None for NaN."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "ece": self.ece,
            "nll": self.nll,
            "per_class": [None if math.isnan(rate) else rate for rate in self.per_class.tolist()],
            "confusion": self.confusion.tolist(),
        }


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Predictions for N labelled images, one entry per image.

    Attributes:
        label: (N,) int64, the true class.
        predicted: (N,) int64, the most probable class.
        confidence: (N,) float64, its probability.
        nll: (N,) float64, negative log-likelihood of the true class, in nats.
        in_top5: (N,) bool, whether the true class is among the five most probable.
        finite: (N,) bool, whether all logits of the image are finite.
        logits: (N, K) behind them, if they were to be kept.
    """

    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    nll: np.ndarray
    in_top5: np.ndarray
    finite: np.ndarray
    logits: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray, *, keep: bool = False) -> "Outcomes":
        """Outcomes of (N, K) logits and (N,) labels, with ``keep`` the logits too; an image's are its own."""
        with np.errstate(invalid="ignore"):  # logits that are not finite: `finite` says so
            log_probs = log_softmax(logits.astype(np.float64), axis=1)
        labels = np.asarray(labels, np.int64)
        in_top5 = np.ones(len(labels), bool)
        if logits.shape[1] > 5:
            five = np.argpartition(-log_probs, 4, axis=1)[:, :5]
            in_top5 = (five == labels[:, None]).any(1)
        nll = -log_probs[np.arange(len(labels)), labels]
        finite = np.isfinite(logits).all(1)
        kept = logits if keep else None
        return cls(labels, log_probs.argmax(1), np.exp(log_probs.max(1)), nll, in_top5, finite, kept)

    @classmethod
    def join(cls, parts: Sequence["Outcomes"]) -> "Outcomes":
        """Concatenate outcomes in order; empty if there are none."""
        parts = list(parts) or [cls.of(np.empty((0, 1)), np.empty(0))]
        of_all: dict[str, Any] = {field.name: [getattr(part, field.name) for part in parts] for field in fields(cls)}
        joined: dict[str, Any] = {
            name: None if values[0] is None else np.concatenate(values) for name, values in of_all.items()
        }
        return cls(**joined)

    def score(self, num_classes: int) -> Metrics:
        """The scores of these images; ``num_classes`` is the number of logits they came from.

        Raises:
            ValueError: if there is no image.
        """
        if not len(self):
            raise ValueError("outcomes: expected at least one image, got none")
        correct = self.predicted == self.label
        confusion = np.zeros((0, 0), np.int64)
        if num_classes <= MOST_CONFUSED:
            pairs = self.label * num_classes + self.predicted
            confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, -1)
        with np.errstate(invalid="ignore"):
            per_class = np.bincount(self.label[correct], minlength=num_classes) / self.counts(num_classes)
        top5 = float(self.in_top5.mean()) if num_classes >= TOP5_FROM else None
        ece = calibration_error(self.confidence, correct)
        return Metrics(float(correct.mean()), top5, ece, float(self.nll.mean()), per_class, confusion)

    def counts(self, num_classes: int) -> np.ndarray:
        """(K,) images of each class."""
        return np.bincount(self.label, minlength=num_classes)

    def confusions(self) -> list[tuple[int, int, int]]:
        """Confused pairs of classes, most frequent first: (count, true, predicted)."""
        wrong = self.predicted != self.label
        pairs, counts = np.unique(np.stack([self.label[wrong], self.predicted[wrong]]), axis=1, return_counts=True)
        found = zip(counts.tolist(), *pairs.tolist(), strict=True)
        return sorted(found, key=lambda pair: -pair[0])

    def mistakes(self, count: int = 12) -> list[tuple[int, int, float]]:
        """The wrong predictions with the highest confidence, highest first: (position, predicted class, confidence)."""
        wrong = np.flatnonzero(self.predicted != self.label)
        worst = wrong[np.argsort(-self.confidence[wrong], kind="stable")][:count]
        return [(int(i), int(self.predicted[i]), float(self.confidence[i])) for i in worst]

    def reliability(self) -> list["Bin"]:
        """The `NUM_BINS` bins of a reliability diagram (Guo et al. 2017, Fig. 1), lowest confidence first."""
        bins = _bins(self.confidence)
        correct = self.predicted == self.label
        found = []
        for i in range(NUM_BINS):
            inside = bins == i
            count = int(inside.sum())
            means = (float(self.confidence[inside].mean()), float(correct[inside].mean())) if count else (None, None)
            found.append(Bin(i / NUM_BINS, (i + 1) / NUM_BINS, count, *means))
        return found


@dataclass(frozen=True)
class Bin:
    """Images with a confidence in (lower, upper]: number, mean confidence and top-1; None without images."""

    lower: float
    upper: float
    count: int
    confidence: float | None
    top1: float | None


def score(logits: np.ndarray, labels: np.ndarray) -> Metrics:
    """Score (N, K) logits against (N,) labels."""
    return Outcomes.of(logits, labels).score(logits.shape[1])


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3): mean gap of confidence and accuracy, bin by bin.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) whether the prediction is right.
    """
    gap = np.bincount(_bins(confidence), weights=correct - confidence, minlength=NUM_BINS)
    return float(np.abs(gap).sum() / len(correct))


def _bins(confidence: np.ndarray) -> np.ndarray:
    """(N,) index of the bin (lower, upper] of each confidence."""
    return np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
