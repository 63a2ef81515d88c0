"""Accuracy by the distance between the positions to relate, for data with distances (`glocal.data.probes`)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glocal.comparison.statistics import accuracy_interval
from glocal.schema import DistanceRow

MOST_BINS = 8


def accuracy_by_distance(
    runs: Sequence[Mapping[str, Any]], right: Mapping[str, np.ndarray], distances: np.ndarray
) -> list[DistanceRow]:
    """One row for each model, fraction and bin of distances, near to far.

    Args:
        runs: entries of the results.
        right: by the id of a finished run, (images,) booleans: which predictions are correct.
        distances: (images,) of the validation images, pixels.
    """
    groups: dict[tuple[float, str], list[np.ndarray]] = defaultdict(list)
    for run in runs:
        if run["status"] == "ok":
            groups[run["fraction"], run["model"]].append(right[run["id"]])
    rows: list[DistanceRow] = []
    for (fraction, model), of_seeds in groups.items():
        stacked = np.stack(of_seeds)
        for low, high in bins(distances):
            inside = (distances >= low) & (distances <= high)
            top1 = accuracy_interval(stacked[:, inside])
            rows.append(
                {
                    "model": model,
                    "fraction": fraction,
                    "distance": [low, high],
                    "images": int(inside.sum()),
                    "top1_mean": top1.mean,
                    "top1_ci": [top1.low, top1.high],
                }
            )
    return rows


def bins(distances: np.ndarray) -> list[tuple[float, float]]:
    """Smallest and largest distance of each bin: single distances if there are few, else equally filled."""
    known = np.unique(distances)
    if len(known) <= MOST_BINS:
        return [(float(distance), float(distance)) for distance in known]
    edges = np.unique(np.quantile(distances, np.linspace(0, 1, MOST_BINS + 1)))
    of_bin = np.clip(np.searchsorted(edges, known, side="right") - 1, 0, len(edges) - 2)
    return [(float(known[of_bin == i].min()), float(known[of_bin == i].max())) for i in np.unique(of_bin)]
