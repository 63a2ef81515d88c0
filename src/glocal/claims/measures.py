"""Metrics of claims: predictions of trained models, analyses of their features, and the cost of attention.

A measurement gives each arm an array of values with one row per seed and one column per unit: a validation image, or a
group of images where one image is too little. Rows are paired if the arms come from the same trained models.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glocal.analysis import fourier, position
from glocal.bench import count_macs
from glocal.claims.claim import Claim
from glocal.claims.trials import Trials
from glocal.data.transforms import Normalize, resize_crop
from glocal.layers import CrossPatchAttention, SelfAttention, WindowAttention
from glocal.models.creation import create, normalisation
from glocal.models.io import load_model
from glocal.training import predict

GROUPS = 8
"""Number of groups of validation images, for metrics for which a single image is too little."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """The measured values of a claim.

    Attributes:
        values: (seeds, units) by name of the arm.
        paired: whether the rows of all arms come from the same trained models.
        exact: whether the values are deterministic: another seed or image would give the same.
        details: further values for the page of the claim, as JSON.
    """

    values: Mapping[str, np.ndarray]
    paired: bool = False
    exact: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClaimMetric:
    """A metric of claims.

    Attributes:
        name: for the page.
        unit: of the values on the page.
        factor: from values to that unit.
        units: the columns of the values, in words.
        more: the relation of an arm to one with a lower value, in words between the two names.
        read: measures the arms of a claim.
        bounds: lowest and highest possible value.
    """

    name: str
    unit: str
    factor: float
    units: str
    more: str
    read: Callable[[Claim, Trials], Measurement]
    bounds: tuple[float, float] = (0.0, 1.0)


def _answers(claim: Claim, trials: Trials) -> Measurement:
    """Correct predictions on the validation images, per run; the mean for several models."""
    seeds, values, models = trials.seeds(claim), {}, []
    for arm in claim.arms:
        right = np.array([[trials.right(model, arm.fraction, seed) for model in arm.models] for seed in seeds], float)
        values[arm.name] = right.mean(axis=1)  # (seeds, images)
        if len(arm.models) > 1:
            means = right.mean(axis=(0, 2)).tolist()
            models += [{"arm": arm.name, "model": m, "mean": v} for m, v in zip(arm.models, means, strict=True)]
    return Measurement(values, details={"models": models} if models else {})


def _heads(claim: Claim, trials: Trials) -> Measurement:
    """Correct predictions per head of one trained model: "conv", "trans", or "both", the mean of their logits."""
    labels = trials.data.val.labels
    right: dict[str, list[np.ndarray]] = {}
    for seed in trials.seeds(claim):
        saved = load_model(trials.folder(*claim.trained()[0], seed), "classification")
        logits = predict(_Branches(saved.model), Normalize(saved.mean, saved.std), trials.val_images, trials.device)
        conv, trans = logits.unbind(1)
        for reading, of_head in (("conv", conv), ("trans", trans), ("both", (conv + trans) / 2)):
            right.setdefault(reading, []).append(of_head.argmax(1).numpy() == labels)
    return Measurement({arm.name: np.array(right[arm.reading], dtype=np.float64) for arm in claim.arms}, paired=True)


class _Branches(nn.Module):
    """The logits of a model with two heads, (B, 2, K)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.model.forward_branches(x), dim=1)


def _high_frequencies(claim: Claim, trials: Trials) -> Measurement:
    """Change of the log-amplitude at the highest frequency per kind of operation, mean within, then over models.

    Readings are "trained attention", "untrained convolution" and so on.
    """
    models, seeds = [model for model, _ in claim.trained()], trials.seeds(claim)
    of_models: dict[str, list[np.ndarray]] = {}  # by reading: (seeds, groups) of each model that has such operations
    blocks: list[dict[str, Any]] = []
    for model in models:
        of_seeds: dict[str, list[list[float]]] = {}
        single: dict[tuple[str, str], dict[str, list[float]]] = {}
        for seed in seeds:
            for state, module, images in _states(model, seed, trials):
                changes: dict[str, list[float]] = {}
                for group in images:
                    found: dict[str, list[float]] = {}
                    for point in fourier(module, group, batch_size=len(group)).points:
                        if point.kind in ("attention", "convolution") and point.high_change is not None:
                            found.setdefault(point.kind, []).append(point.high_change)
                            of_block = single.setdefault((point.name, point.kind), {})
                            of_block.setdefault(state, []).append(point.high_change)
                    for kind, of_kind in found.items():
                        changes.setdefault(f"{state} {kind}", []).append(float(np.mean(of_kind)))
                for reading, of_groups in changes.items():
                    of_seeds.setdefault(reading, []).append(of_groups)
        for reading, rows in of_seeds.items():
            of_models.setdefault(reading, []).append(np.array(rows))
        blocks += [
            {"model": model, "name": name, "kind": kind, **{state: float(np.mean(v)) for state, v in values.items()}}
            for (name, kind), values in single.items()
        ]
    values = {arm.name: np.mean(of_models[arm.reading], axis=0) for arm in claim.arms}
    return Measurement(values, details={"blocks": blocks})


def _places(claim: Claim, trials: Trials) -> Measurement:
    """R^2 of a linear probe for row and column, mean over depth; readings are "trained zeros" and the like."""
    (model, _), *_ = claim.trained()
    paddings = tuple(dict.fromkeys(arm.reading.split()[1] for arm in claim.arms))
    rows: dict[str, list[list[float]]] = {}
    depth: dict[tuple[str, str], list[list[float]]] = {}
    for seed in trials.seeds(claim):
        for state, module, images in _states(model, seed, trials, per_group=32):
            found = [position(module, group, paddings=paddings, seed=seed).points for group in images]
            for padding in paddings:
                of_groups = [[point.r2[padding] for point in points] for points in found]
                rows.setdefault(f"{state} {padding}", []).append([float(np.mean(r2)) for r2 in of_groups])
                depth.setdefault((state, padding), []).append(np.mean(of_groups, axis=0).tolist())
    values = {arm.name: np.array(rows[arm.reading]) for arm in claim.arms}
    by_depth = [
        {"state": state, "padding": padding, "r2": np.mean(of_seeds, axis=0).tolist()}
        for (state, padding), of_seeds in depth.items()
    ]
    return Measurement(values, paired=True, details={"depth": by_depth})


def _states(
    model: str, seed: int, trials: Trials, per_group: int = 8
) -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """A model "trained" and "untrained", and `GROUPS` groups of random validation images, normalized for it."""
    source, size = trials.data.val, trials.image_size
    count = min(len(source), GROUPS * per_group)
    rows = np.random.default_rng(0).permutation(len(source))[:count]
    pixels = np.stack([resize_crop(source.image(row), size, 1.0) for row in rows.tolist()])
    saved = load_model(trials.folder(model, 1.0, seed), "classification")
    fresh = create(model, num_classes=len(trials.data.classes), image_size=size, seed=seed).eval()
    for state, module, (mean, std) in (
        ("trained", saved.model, (saved.mean, saved.std)),
        ("untrained", fresh, normalisation(fresh)),
    ):
        images = Normalize(mean, std)(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        yield state, module, images.tensor_split(GROUPS)


COST_SIZES = tuple(range(28, 113, 14))
COST_CHANNELS, COST_WINDOW = 96, 7


def attention_formulas(side: int, chs: int = COST_CHANNELS, window: int = COST_WINDOW) -> dict[str, int]:
    """MACs of one attention layer on a square map (Lin et al. 2021, "CAT", §3.2 and 3.3).

    Args:
        side: of the map, in pixels: a multiple of the window.
        chs: channels.
        window: side of the windows, in pixels.
    """
    pixels, inside = side**2, window**2
    return {
        "msa": 4 * pixels * chs**2 + 2 * pixels**2 * chs,
        "ipsa": 4 * pixels * chs**2 + 2 * inside * pixels * chs,
        "cpsa": 4 * inside * pixels * chs + 2 * (pixels // window) ** 2 * chs,
    }


def _costs(claim: Claim, trials: Trials) -> Measurement:
    """MACs relative to the formula for global attention, one column per map size.

    Readings are "counted msa", "formula ipsa" and so on.
    """
    counted = {
        "msa": lambda: _OnTokens(SelfAttention(COST_CHANNELS, 3)),
        "ipsa": lambda: _ChannelsLast(WindowAttention(COST_CHANNELS, 3, COST_WINDOW)),
        "cpsa": lambda: _ChannelsLast(CrossPatchAttention(COST_WINDOW)),
    }
    rows = []
    for side in COST_SIZES:
        formulas = attention_formulas(side)
        rows.append(
            {
                "side": side,
                **{f"formula {key}": value for key, value in formulas.items()},
                **{f"counted {key}": count_macs(make(), side, COST_CHANNELS) for key, make in counted.items()},
            }
        )
    values = {arm.name: np.array([[row[arm.reading] / row["formula msa"] for row in rows]]) for arm in claim.arms}
    return Measurement(values, paired=True, exact=True, details={"sizes": rows})


class _OnTokens(nn.Module):
    """Attention over tokens, on a (B, C, H, W) map."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.flatten(2).transpose(1, 2))


class _ChannelsLast(_OnTokens):
    """Attention over windows, on a (B, C, H, W) map."""

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.permute(0, 2, 3, 1))


_ACCURACY = ("top-1 accuracy", "points", 100.0, "validation images", "is more accurate than")
CLAIM_METRICS: Mapping[str, ClaimMetric] = {
    "top1": ClaimMetric(*_ACCURACY, _answers),
    "heads": ClaimMetric(*_ACCURACY, _heads),
    "frequencies": ClaimMetric(
        "change of the log-amplitude at the highest frequency", "nats", 1.0, "groups of validation images",
        "sharpens more than", _high_frequencies, (-math.inf, math.inf),
    ),
    "places": ClaimMetric(
        "row and column predicted by a linear probe (R²)", "R²", 1.0, "groups of validation images",
        "encodes position better than", _places, (-math.inf, 1.0),
    ),
    "costs": ClaimMetric(
        "MACs relative to global attention", "points", 100.0, "map sizes", "costs more than",
        _costs,
    ),
}  # fmt: skip
