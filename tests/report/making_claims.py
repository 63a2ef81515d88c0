"""Results of claims as `glocal claims` writes them, to make pages from: every claim of the catalogue, planted."""

import dataclasses
from typing import Any

import numpy as np

from glocal.claims import CLAIMS
from glocal.claims.measures import CLAIM_METRICS
from glocal.claims.results import tested, untested
from glocal.claims.verdict import decide
from glocal.models.micro import MICRO_MODELS
from tests.claims.making import macs, planted

CREATED = "2026-11-21T08:00:00+00:00"


def results(name: str = "photos", command: str = "glocal claims run all photos") -> dict[str, Any]:
    """Claims in turn: as expected, with their arms the other way round, with nothing to see, and one not tested."""
    claims = []
    for i, claim in enumerate(CLAIMS):
        found = dataclasses.replace(planted(claim), details=_details(claim))
        if claim.measure != "costs":
            found = dataclasses.replace(found, values=(dict, _reversed, _alike)[i % 3](found.values))
        costs = {model: {"macs": 12_190_000 + 1000 * len(model), "params": 645_000} for model, _ in claim.trained()}
        entries = {key: [_run(*key, seed) for seed in range(3)] for key in claim.trained()}
        seeds = [0, 1, 2] if claim.trained() else []
        made = tested(claim, found, decide(claim, found, macs(claim)), entries, costs, seeds, [])
        claims.append(made)
    claims[-1] = {**untested(CLAIMS[-1], "vit_micro-f1-s0 failed: the loss became nan"), "failures": ["a run failed"]}
    return {
        "schema": "glocal.claims/1",
        "created": CREATED,
        "glocal": "0.1.0",
        "command": command,
        "settings": {
            "budget": "1.5ep", "mode": "scratch", "image_size": 32, "device": "cpu", "recipe": {"lr": 0.003},
            "confidence": 0.95, "jobs": 2, "seeds": [0, 1, 2],
        },
        "data": {"name": name, "classes": 10, "train": 10_000, "val": 2000, "fingerprint": "ab" * 32},
        "environment": {"python": "3.12.1", "torch": "2.15.0", "cpu": "AMD EPYC", "cores": 2, "gpu": None},
        "seconds_of_runs": {"resnet_micro-f1-s0": 61.0, "vit_micro-f1-s0": 75.5},
        "claims": [{**claim, "created": CREATED, "command": command} for claim in claims],
    }  # fmt: skip


def _reversed(values: Any) -> dict[str, np.ndarray]:
    """The arm that was best is the worst, and so on."""
    order = sorted(values, key=lambda name: values[name].mean())
    return {name: values[other] for name, other in zip(order, reversed(order), strict=True)}


def _alike(values: Any) -> dict[str, np.ndarray]:
    """Nothing but noise."""
    rng = np.random.default_rng(0)
    return {name: (rng.random(of_arm.shape) < 0.7).astype(float) for name, of_arm in values.items()}


def _run(model: str, fraction: float, seed: int) -> dict[str, Any]:
    curve = [{"step": 100 * (i + 1), "val_score": 0.7 + 0.05 * i + 0.01 * seed} for i in range(4)]
    return {
        "id": f"{model}-f{fraction:g}-s{seed}", "budget": {"seconds": 61.0, "seconds_to_budget": 63.0, "steps": 400},
        "curve": curve,
    }  # fmt: skip


def _details(claim: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    if claim.measure == "costs":
        return dict(CLAIM_METRICS["costs"].read(claim, None).details)
    if claim.measure == "places":
        return {
            "depth": [
                {"state": state, "padding": padding, "r2": (rng.random(7) * (padding == "zeros")).tolist()}
                for state in ("trained", "untrained")
                for padding in ("zeros", "reflect", "circular")
            ]
        }
    if claim.measure == "frequencies":
        return {
            "blocks": [
                {"model": model, "name": f"blocks.{i}", "kind": kind, "trained": sign * rng.random(), "untrained": 0.1}
                for model in MICRO_MODELS
                for i, (kind, sign) in enumerate((("attention", -1), ("convolution", 1), ("attention", -1)))
            ]
        }
    several = [arm for arm in claim.arms if len(arm.models) > 1]
    return {"models": [{"arm": arm.name, "model": m, "mean": 0.8} for arm in several for m in arm.models]}
