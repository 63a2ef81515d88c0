"""Logits of a batch of images -> the most probable classes, as predictions."""

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from glocal.inference.output import ClassPrediction

DIGITS = 8
"""Of a probability that are written: more would tell apart what float32 cannot."""


def most_probable(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, K) logits -> (B, k) classes and their probabilities; of two as probable the earlier class comes first."""
    probabilities = softmax(logits.astype(np.float64), axis=1)
    top_k = min(top_k, probabilities.shape[1])
    best = np.empty((len(probabilities), top_k), np.int64)
    least = np.partition(probabilities, -top_k, axis=1)[:, -top_k]
    for row, low, chosen in zip(probabilities, least, best, strict=True):
        found = np.flatnonzero(~(row < low))  # sorting all of 20,000 classes would take longer than small models do
        chosen[:] = found[np.argsort(-row[found], kind="stable")[:top_k]]
    return best, np.take_along_axis(probabilities, best, axis=1)


def described(
    paths: Sequence[str],
    errors: Sequence[str | None],
    best: np.ndarray,
    probabilities: np.ndarray,
    classes: tuple[str, ...],
) -> list[ClassPrediction]:
    """The predictions of a batch."""
    found = []
    rows = zip(paths, errors, best.tolist(), probabilities.tolist(), strict=True)
    for path, error, of_image, with_probability in rows:
        top = [(classes[k], round(p, DIGITS)) for k, p in zip(of_image, with_probability, strict=True)]
        found.append(ClassPrediction(path, tuple(top) if error is None else (), error))
    return found
