"""Answers that are made up, and the results that `glocal recommend` makes of them, for tests and pages."""

from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from glocal.recommend import job
from glocal.recommend.disturb import BLURS, CLEAN, CONDITIONS, SHUFFLES, Condition
from glocal.recommend.need import Answers
from tests.shapes import data_source

CHANCE = 0.1
COSTS = {
    "params": 640_000,
    "macs": 12_000_000,
    "latency_ms_b1": 1.5,
    "images_per_s_b32": 3500.0,
    "peak_memory_mib": 31.6,
}


def rates(clean: float = 0.9, shuffled: float = 0.9, blurred: float = 0.9) -> dict[Condition, float]:
    """How often answers are right, by condition."""
    return {CLEAN: clean} | dict.fromkeys(SHUFFLES, shuffled) | dict.fromkeys(BLURS, blurred)


def answers(right: dict[Condition, float], seeds: int = 3, images: int = 2000) -> Answers:
    """Answers right at these rates; the same images are hard for all."""
    rng = np.random.default_rng(0)
    hardness = rng.random(images)
    noise = 0.05 * rng.standard_normal((seeds, len(CONDITIONS), images))
    limits = np.array([right[condition] for condition in CONDITIONS])[:, None]
    return Answers(hardness + noise < limits, CHANCE, (6000, images), 5.0)


def results(
    right: dict[Condition, float], name: str = "photos", command: str = "glocal recommend photos", **kwargs: Any
) -> dict[str, Any]:
    """What `recommend` gives for such answers; nothing is trained or timed."""
    source = replace(data_source(), name=name, warnings=(f"links were not followed: 1 ({name})",))
    known = mock.patch.object(job, "train_references", return_value=answers(right, **kwargs))
    costs = mock.patch.object(job, "measure_costs", lambda models, *_: dict.fromkeys(models, COSTS))
    with known, costs:
        return job.recommend(source, seeds=kwargs.get("seeds", 3), device="cpu", command=command)
