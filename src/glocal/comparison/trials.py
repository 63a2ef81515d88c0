"""Learning rates tried for each model before its runs: one rate for all reorders models.

A rate that suits a ConvNet costs a Transformer points, and the other way round. Each model gets the same few trials at
a short budget, on four fifths of the training images, and takes the rate with the smallest negative log-likelihood
(NLL) of the other fifth. The validation images choose nothing here.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from glocal.comparison.settings import ComparisonSettings, Run
from glocal.data import ImageSet
from glocal.schema import RecordedRun, TrialResults, TrialRow
from glocal.training import Budget

SHORT = 0.3
"""Budget of a trial, as a fraction of that of a run; of epochs at least one, if a run has one."""
HELD_OUT = 0.2
"""Of the training images of each class."""


def trial_runs(settings: ComparisonSettings) -> list[Run]:
    """The trials of all models; none where there is nothing to choose."""
    if len(settings.rates) < 2:
        return []
    return [Run(model, settings.fractions[0], 0, rate) for rate in settings.rates for model in settings.models]


def trial_budget(budget: Budget | None) -> Budget | None:
    """The budget of a trial."""
    if budget is None:
        return None
    least = min(1.0, budget.amount) if budget.unit == "ep" else 0.0
    return Budget(max(least, SHORT * budget.amount), budget.unit)


def held_out(images: ImageSet, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and rows held out: `HELD_OUT` of each class, at least one of two, none of one."""
    order = np.random.default_rng((seed, 1)).permutation(len(images))
    out: list[int] = []
    for label in range(len(images.classes)):
        members = order[images.labels[order] == label]
        count = max(1, round(HELD_OUT * len(members))) if len(members) > 1 else 0
        out += members[:count].tolist()
    left = np.sort(np.array(out, dtype=np.int64))
    return np.setdiff1d(np.arange(len(images)), left), left


def chosen_rates(entries: Mapping[Run, RecordedRun]) -> dict[str, float]:
    """For each model the multiple of the recipe's learning rate with the smallest NLL; of equal ones the smaller.

    A model all of whose trials failed is left out: it takes the recipe's.
    """
    best: dict[str, tuple[float, float]] = {}
    for run, entry in entries.items():
        nll = _nll(entry)
        if run.rate is not None and nll is not None:
            best[run.model] = min(best.get(run.model, (math.inf, math.inf)), (nll, run.rate))
    return {model: rate for model, (_, rate) in best.items()}


def trial_results(settings: ComparisonSettings, entries: Mapping[Run, RecordedRun], images: int) -> TrialResults:
    """What the trials found, for the results.

    Args:
        settings: of the comparison.
        entries: of the finished trials.
        images: held out.
    """
    lr, chosen = settings.recipe.optimizer.lr, chosen_rates(entries)
    rows: list[TrialRow] = []
    for run, entry in entries.items():
        assert run.rate is not None
        rows.append(
            {
                "model": run.model,
                "lr": lr * run.rate,
                "nll": _nll(entry),
                "top1": entry.get("top1"),
                "error": entry["error"],
            }
        )
    pairs, reordered = _reordered(settings.rates, entries, chosen)
    return {
        "images": images,
        "budget": str(trial_budget(settings.budget)),
        "rows": rows,
        "chosen": {model: lr * rate for model, rate in chosen.items()},
        "pairs": pairs,
        "reordered": {f"{lr * rate:g}": count for rate, count in reordered.items()},
        "flop": sum(entry["budget"]["flop"] for entry in entries.values() if entry["status"] == "ok"),
    }


def _reordered(
    rates: Sequence[float], entries: Mapping[Run, RecordedRun], chosen: Mapping[str, float]
) -> tuple[int, dict[float, int]]:
    """Pairs of models, and how many of them each rate, taken for all models, puts in another order than their own."""
    top1 = {(run.model, run.rate): entry["top1"] for run, entry in entries.items() if entry["status"] == "ok"}
    whole = [model for model in chosen if all((model, rate) in top1 for rate in rates)]
    pairs = list(combinations(whole, 2))

    def order(a: str, b: str, rate_a: float, rate_b: float) -> float:
        return float(np.sign(top1[a, rate_a] - top1[b, rate_b]))

    return len(pairs), {
        rate: sum(order(a, b, rate, rate) * order(a, b, chosen[a], chosen[b]) < 0 for a, b in pairs) for rate in rates
    }


def _nll(entry: RecordedRun) -> float | None:
    """Of a finished trial, if it is finite."""
    nll = entry.get("nll") if entry["status"] == "ok" else None
    return nll if isinstance(nll, float) and math.isfinite(nll) else None
