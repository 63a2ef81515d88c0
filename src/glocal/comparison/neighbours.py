"""Weighted k-nearest neighbours on frozen features: Unsupervised Feature Learning via Non-Parametric Instance
Discrimination, Wu et al. 2018, https://arxiv.org/abs/1805.01978.

An image has the class of the training images nearest to it by cosine similarity. Nothing is fitted but k, which
leave-one-out on the training images chooses.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glocal.comparison.logistic import folds

CANDIDATES = (1, 3, 5, 10, 20, 50)
"""Of k."""
TEMPERATURE = 0.07
"""A neighbour's vote is exp(cosine similarity / 0.07) (Wu et al. 2018, §3.4)."""
LEFT_OUT = 2_000
"""At most this many training images are left out, one at a time, to choose k; all others remain neighbours."""
RESOLUTION = 2**24
"""Steps from cosine 0 to 1, as fine as float32: neighbours within a step are equally near."""
BLOCK = 1024, 4096
"""Images to classify, and training images, that are compared at a time: 100 MB for 2,000 features."""
EQUAL = 1e-9
"""Relative difference below which two sums of votes are a tie: that of rounding."""
NEARER = 1e-6
"""Share of a tied class by which that of the nearer neighbour wins, so that its score is the largest in float32 too."""


class Votes(NamedTuple):
    """Votes of the neighbours of some images.

    Attributes:
        scores: (M, K) float64, the fraction of the votes for each class. One further vote, as heavy as the nearest
            neighbour's, is spread over all classes, so none has a score of 0; rows sum to 1.
        predictions: (M,) int64, the class of the largest score; of equal ones that of the nearer neighbour.
    """

    scores: Tensor
    predictions: Tensor


class Neighbours(NamedTuple):
    """A k-nearest-neighbour classifier.

    Attributes:
        features: (N, D), of the training images.
        labels: (N,) int64.
        num_classes: K.
        k: number of neighbours.
        accuracies: by each k that was tried, of the training images that were left out.
    """

    features: Tensor
    labels: Tensor
    num_classes: int
    k: int
    accuracies: dict[int, float]

    def __call__(self, features: Tensor, *, block: tuple[int, int] = BLOCK) -> Votes:
        """(M, D) features -> votes on the CPU."""
        nearest = nearest_neighbours(features.to(self.features.device), self.features, self.k, block=block)
        votes = vote(nearest, self.labels, self.num_classes)
        return Votes(votes.scores.cpu(), votes.predictions.cpu())


def fit_neighbours(
    features: Tensor,
    labels: np.ndarray,
    num_classes: int,
    *,
    candidates: Sequence[int] = CANDIDATES,
    block: tuple[int, int] = BLOCK,
) -> Neighbours:
    """Choose the k of highest accuracy on at most `LEFT_OUT` training images left out in turn; of equal ones the least.

    The same features give the same classifier: nothing is random but which images are left out, whose seed is fixed.

    Args:
        features: (N, D), at least one; the work is done on their device.
        labels: (N,) int64 below ``num_classes``.
        num_classes: K.
        candidates: of k; of these only those below N are tried.
        block: see `BLOCK`; it does not change the result.
    """
    features = features if features.device.type == "cuda" else features.cpu()  # MPS has no float64
    targets = torch.from_numpy(labels).to(features.device)
    tried = [k for k in sorted(candidates) if k < len(features)]
    if not tried:  # no image can be left out
        return Neighbours(features, targets, num_classes, 1, {})
    left_out = torch.from_numpy(_left_out(labels)).to(features.device)
    nearest = nearest_neighbours(features[left_out], features, tried[-1], own=left_out, block=block)
    accuracies = {}
    for k in tried:
        first = Nearest(nearest.indices[:, :k], nearest.similarities[:, :k])
        is_correct = vote(first, targets, num_classes).predictions == targets[left_out]
        accuracies[k] = float(is_correct.double().mean())
    return Neighbours(features, targets, num_classes, max(tried, key=lambda k: accuracies[k]), accuracies)


class Nearest(NamedTuple):
    """Neighbours, the nearest first; of equally near ones the first of the training set.

    Attributes:
        indices: (M, k) int64.
        similarities: (M, k) float64 cosines, in steps of 1 / `RESOLUTION`.
    """

    indices: Tensor
    similarities: Tensor


def nearest_neighbours(
    features: Tensor, others: Tensor, k: int, *, own: Tensor | None = None, block: tuple[int, int] = BLOCK
) -> Nearest:
    """The k nearest others by cosine similarity.

    Args:
        features: (M, D).
        others: (N, D); N is at least k, with ``own`` k + 1.
        k: number of neighbours.
        own: (M,) the index of each image among the others: an image is not its own neighbour.
        block: see `BLOCK`.
    """
    ranks = torch.empty(len(features), k, dtype=torch.int64, device=features.device)
    for start in range(0, len(features), block[0]):
        rows = slice(start, start + block[0])
        ranks[rows] = _largest_ranks(features[rows], others, k, None if own is None else own[rows], block[1])
    steps = ranks.div(len(others), rounding_mode="floor")
    return Nearest(len(others) - 1 - (ranks - steps * len(others)), steps.double() / RESOLUTION)


def _largest_ranks(features: Tensor, others: Tensor, k: int, own: Tensor | None, size: int) -> Tensor:
    """(M, k), the largest first.

    The rank of an image is its similarity in steps, times N, plus the number of images after it. No two are equal, so
    the order of comparison makes no difference.
    """
    unit, count = _unit(features), len(others)
    best = torch.empty(len(features), 0, dtype=torch.int64, device=features.device)
    for first in range(0, count, size):
        part = others[first : first + size]
        indices = torch.arange(first, first + len(part), device=features.device)
        ranks = (unit @ _unit(part).T).mul_(RESOLUTION).round_().long().mul_(count).add_(count - 1 - indices)
        if own is not None:
            ranks[indices == own[:, None]] = -2 * RESOLUTION * count  # below all cosines
        ranks = torch.cat([best, ranks], dim=1)
        best = ranks.topk(min(k, ranks.shape[1]), dim=1).values
    return best


def _unit(features: Tensor) -> Tensor:
    """Of norm 1; zeros stay. In float64: sums in another order round to the same step."""
    return F.normalize(features.double(), dim=1, eps=1e-300)


def vote(nearest: Nearest, labels: Tensor, num_classes: int) -> Votes:
    """Votes of neighbours for their classes.

    Args:
        nearest: of M images.
        labels: (N,) int64, of all training images.
        num_classes: K.
    """
    classes = labels[nearest.indices]  # (M, k)
    weights = ((nearest.similarities - nearest.similarities[:, :1]) / TEMPERATURE).exp()
    sums = weights.new_zeros(len(classes), num_classes)
    for column in range(classes.shape[1]):  # in this order on every device
        sums.scatter_add_(1, classes[:, column, None], weights[:, column, None])
    largest = sums.amax(1, keepdim=True)
    is_largest = sums.gather(1, classes) >= largest * (1 - EQUAL)
    nearer_first = torch.arange(classes.shape[1], 0, -1, device=classes.device)
    winner = classes.gather(1, (is_largest * nearer_first).argmax(1, keepdim=True))
    sums.scatter_add_(1, winner, largest * NEARER)
    sums += 1 / num_classes
    return Votes(sums / sums.sum(1, keepdim=True), winner[:, 0])


def _left_out(labels: np.ndarray) -> np.ndarray:
    """Positions of at most `LEFT_OUT` images, of each class in proportion."""
    parts = -(-len(labels) // LEFT_OUT)
    return np.flatnonzero(folds(labels, parts) == 0)
