"""A recommendation: the needs of the images, the costs of candidates, and which to compare first."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import cast

from glocal.bench import count_macs, count_params, describe_environment, measure_together, peak_training_memory
from glocal.data import DataSource
from glocal.errors import GlocalError
from glocal.models.creation import create
from glocal.recommend.need import (
    CONFIDENCE,
    NEEDED,
    REFERENCE,
    Answers,
    Estimate,
    Needs,
    ProgressCallback,
    needs,
    train_references,
)
from glocal.recommend.rule import advise, find
from glocal.schema import Candidate, CandidateCosts, FractionInterval, ImageNeed, NeedFinding, RecommendResults
from glocal.training import Budget, load_recipe, resolve_device
from glocal.version import __version__

SCHEMA = "glocal.recommend/1"
DEFAULT_BUDGET = "5ep"
RECIPE = "micro"
BATCH = 32
"""Of the throughput, ``images_per_s_b32``."""
FEW_IMAGES = 200
"""With fewer validation images there is a caveat."""
MOST_SEEDS = 20
SIZES = range(32, 1025)
TIMING_SECONDS = 1.0
"""For each candidate at each batch size."""
REFERENCES_PROGRESS = 0.9
"""Fraction of the time for references; the rest is for costs."""


def recommend(
    data: DataSource,
    *,
    budget: str = DEFAULT_BUDGET,
    seeds: int = 3,
    image_size: int = 32,
    device: str = "auto",
    command: str = "glocal.recommend.recommend",
    progress: ProgressCallback = lambda done, what: None,
) -> RecommendResults:
    """Which backbones to compare first on these images, with reasons and their uncertainty.

    Only the small reference model is trained and evaluated, not the candidates.

    Args:
        data: from `glocal.data.load_data`.
        budget: of each reference, see `glocal.training.Budget`.
        seeds: number of references.
        image_size: side in pixels, for the references and the costs.
        device: ``auto``, or a device of torch.
        command: for the results.
        progress: called with the fraction done and the current activity.

    Returns:
        The contents of ``results.json``, see docs/recommend.md.

    Raises:
        GlocalError: for an invalid budget, number of seeds, size or device.
    """
    parsed, device = check_request(budget=budget, seeds=seeds, image_size=image_size, device=device)
    answers = train_references(
        data,
        image_size=image_size,
        recipe=load_recipe(RECIPE),
        budget=parsed,
        seeds=seeds,
        device=device,
        progress=lambda done, what: progress(REFERENCES_PROGRESS * done, what),
    )
    found = needs(answers)
    finding = find(found)
    advice = advise(finding, image_size)
    progress(REFERENCES_PROGRESS, f"measuring the costs of {len(advice)} candidates")
    costs = measure_costs([one.model for one in advice], len(data.classes), image_size, device)
    progress(1.0, "done")
    return {
        "schema": SCHEMA,
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "glocal": __version__,
        "settings": {
            "budget": str(parsed),
            "seeds": list(range(seeds)),
            "image_size": image_size,
            "device": device,
            "reference": REFERENCE,
            "recipe": RECIPE,
            "needed": NEEDED,
            "confidence": CONFIDENCE,
        },
        "data": {
            "name": data.name,
            "classes": len(data.classes),
            "train": len(data.train),
            "val": len(data.val),
            "learned_from": answers.images[0],
            "tested_on": answers.images[1],
            "split": data.split,
            "fingerprint": data.fingerprint,
            "skipped": len(data.skipped),
            "warnings": list(data.warnings),
        },
        "need": _described(found),
        "finding": cast(NeedFinding, asdict(finding)),
        "recommended": [cast(Candidate, {**asdict(one), **costs[one.model]}) for one in advice],
        "next": _next_command(data.name, [one.model for one in advice], image_size),
        "caveats": _caveats(answers, found, data),
        "environment": describe_environment(device),
    }


def check_request(*, budget: str, seeds: int, image_size: int, device: str) -> tuple[Budget, str]:
    """The budget, and a device of torch; arguments as of `recommend`.

    Raises:
        GlocalError: for invalid arguments.
    """
    if not 1 <= seeds <= MOST_SEEDS:
        raise GlocalError(f"seeds: expected a number from 1 to {MOST_SEEDS}, got {seeds}")
    if image_size not in SIZES:
        raise GlocalError(f"image size: expected {SIZES[0]} to {SIZES[-1]} pixels, got {image_size}")
    return Budget.parse(budget), resolve_device(device)


def measure_costs(models: Sequence[str], num_classes: int, image_size: int, device: str) -> dict[str, CandidateCosts]:
    """Costs of each model on this machine, by name: MACs, parameters, and interleaved timings."""
    made = {name: create(name, num_classes=num_classes, image_size=image_size, seed=0) for name in models}
    single, batch = (measure_together(made, image_size, size, device, seconds=TIMING_SECONDS) for size in (1, BATCH))
    return {
        name: {
            "params": count_params(model),
            "macs": count_macs(model, image_size),
            "latency_ms_b1": single[name].median_ms,
            "images_per_s_b32": batch[name].images_per_s,
            "peak_memory_mib": peak_training_memory(model, (BATCH, 3, image_size, image_size), device),
        }
        for name, model in made.items()
    }


def _described(found: Needs) -> ImageNeed:
    return {
        "chance": found.chance,
        "local": None if found.detail is None else _interval(found.detail),
        "global": None if found.layout is None else _interval(found.layout),
        "conditions": [
            {
                "kind": curve.condition.kind,
                "level": curve.condition.level,
                "name": curve.condition.name,
                "accuracy": _interval(curve.accuracy),
                "kept": None if curve.kept is None else _interval(curve.kept),
            }
            for curve in found.curves
        ],
    }


def _interval(estimate: Estimate) -> FractionInterval:
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}


def _next_command(name: str, models: Sequence[str], image_size: int) -> str:
    return shlex.join(["glocal", "compare", name, "--models", ",".join(models), "--image-size", str(image_size)])


def _caveats(answers: Answers, found: Needs, data: DataSource) -> list[str]:
    caveats = [
        "The candidates were not trained: run the comparison to see which is most accurate.",
        f"The needs are those of a small reference ({REFERENCE}) after {answers.epochs:.3g} epochs; a larger or "
        "longer trained model may have others.",
    ]
    if len(answers.right) == 1:
        caveats.append(
            "With one seed the intervals cover the sampling of the validation images but not the variation over seeds; "
            "use --seeds 3 or more."
        )
    if answers.images[1] < FEW_IMAGES:
        caveats.append(f"There are only {answers.images[1]} validation images: the intervals are wide.")
    taken, there = answers.images, (len(data.train), len(data.val))
    if taken != there:
        caveats.append(
            f"A fraction of each class was used: {taken[0]:,} of {there[0]:,} training and {taken[1]:,} of "
            f"{there[1]:,} validation images."
        )
    return caveats
