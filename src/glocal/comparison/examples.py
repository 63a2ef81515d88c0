"""The validation images to show: those on which the models differ most, the hardest, and typical ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glocal.schema import Example

MOST = (("differ", 4), ("hard", 4), ("typical", 2))
"""Reasons in order, and the number of images for each."""


def choose(
    runs: Sequence[Mapping[str, Any]], of_image: Mapping[str, np.ndarray], paths: Sequence[str]
) -> list[Example]:
    """Images to show, each once, with the score of each model on it.

    Args:
        runs: entries of the results; used are the first finished seeds of each model at the largest fraction.
        of_image: by run id, (images,) score of each image; NaN for images without a score.
        paths: of the images.

    Returns:
        ``why``, ``path``, ``scores`` by model, and the keys of the pictures: ``truth``, and ``predictions`` by model.
    """
    finished = [run for run in runs if run["status"] == "ok"]
    largest = max((run["fraction"] for run in finished), default=1.0)
    shown: dict[str, str] = {}
    for run in finished:
        if run["fraction"] == largest:
            shown.setdefault(run["model"], run["id"])
    if not shown:
        return []
    scores = np.stack([of_image[run_id] for run_id in shown.values()])  # (models, images)
    there = np.flatnonzero(~np.isnan(scores).all(axis=0))
    judged = np.nan_to_num(scores[:, there], nan=1.0)  # no targets, and no detections by this model
    means, spreads = judged.mean(axis=0), np.ptp(judged, axis=0)
    order: dict[str, Sequence[Any] | np.ndarray] = {
        "differ": [i for i in np.argsort(-spreads, kind="stable") if spreads[i] > 0],
        "hard": np.argsort(means, kind="stable"),
        "typical": np.argsort(np.abs(means - np.median(means)), kind="stable") if len(means) else [],
    }
    chosen: dict[int, str] = {}
    for why, most in MOST:
        fresh = [position for i in order[why] if (position := int(there[i])) not in chosen]
        chosen |= dict.fromkeys(fresh[:most], why)
    return [
        {
            "why": why,
            "path": paths[position],
            "scores": {model: _number(score) for model, score in zip(shown, scores[:, position], strict=True)},
            "truth": f"truth/{paths[position]}",
            "predictions": {model: f"{run_id}/{paths[position]}" for model, run_id in shown.items()},
        }
        for position, why in chosen.items()
    ]


def _number(score: float) -> float | None:
    return None if np.isnan(score) else float(score)
