"""The verdict of a comparison: the most accurate model, the models within the noise of it, and the cheapest of them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from glocal.comparison.metric import Metric
from glocal.comparison.metrics import TOP1
from glocal.comparison.settings import CONVERGED
from glocal.comparison.simultaneous import chance_of_being_best, deviations, differences_to_best
from glocal.comparison.statistics import Evidence, Interval, score_interval
from glocal.formatting import listed, percent
from glocal.schema import CompareVerdict, RunEntry, SummaryRow

FEW_IMAGES = 200
"""Below this many validation images one image is half a point and intervals are wide: a caveat is added."""


def summarise(runs: Sequence[RunEntry], evidence: Mapping[str, Any], metric: Metric = TOP1) -> list[SummaryRow]:
    """One row for each model and fraction that has a finished run; the largest fraction first, then the best model.

    Args:
        runs: entries of the results, with costs.
        evidence: input of `Metric.gather` by run id; for top-1 (images,) booleans, whether each prediction is correct.
        metric: ranks the rows.
    """
    groups: dict[tuple[float, str], list[RunEntry]] = defaultdict(list)
    for run in runs:
        if run["status"] == "ok":
            groups[run["fraction"], run["model"]].append(run)
    gathered = {key: metric.gather([evidence[run["id"]] for run in group]) for key, group in groups.items()}
    order = sorted(groups, key=lambda key: (-key[0], -gathered[key].mean, groups[key][0]["macs"], key[1]))
    rows = []
    for fraction in dict.fromkeys(key[0] for key in order):
        keys = [key for key in order if key[0] == fraction]
        drawn = deviations([gathered[key] for key in keys])
        beside = zip(keys, differences_to_best(drawn), chance_of_being_best(drawn), strict=True)
        rows += [
            _row(groups[key], gathered[key], difference, float(chance), metric) for key, difference, chance in beside
        ]
    return rows


def _row(
    group: Sequence[Mapping[str, Any]], evidence: Evidence, difference: Interval, chance: float, metric: Metric
) -> SummaryRow:
    score = score_interval(evidence)
    first = group[0]
    row = {
        "model": first["model"],
        "fraction": first["fraction"],
        "seeds": len(group),
        f"{metric.key}_mean": score.mean,
        f"{metric.key}_ci": [score.low, score.high],
        "ci_method": score.method,
        **{
            f"{key}_mean": None if first[key] is None else _mean(run[key] for run in group)
            for key in metric.words.others
        },
        **{name: first[name] for name in metric.costs},
        "train_images_per_s": _mean(run["train_images_per_s"] for run in group),
        "seconds_to_budget": _mean(run["budget"]["seconds_to_budget"] for run in group),
        "difference_to_best": difference.mean,
        "difference_ci": [difference.low, difference.high],
        "tied_with_best": difference.holds_zero,
        "chance_of_best": chance,
    }
    return cast(SummaryRow, row)  # the metric says which of its fields there are


def judge(
    summary: Sequence[SummaryRow],
    runs: Sequence[RunEntry],
    num_val_images: int,
    num_runs: int,
    metric: Metric = TOP1,
) -> CompareVerdict:
    """Which model to take, judged at the largest fraction of the training set.

    Args:
        summary: rows of `summarise`.
        runs: all entries, the failed ones too.
        num_val_images: size of the validation set.
        num_runs: number of planned runs, finished or not.
        metric: ranks the rows.
    """
    caveats = list(_caveats(summary, runs, num_val_images, num_runs))
    if not summary:
        sentence = "No run has finished, so there is nothing to compare yet."
        return {"most_accurate": None, "cheapest_tied": None, "fastest": None, "sentence": sentence, "caveats": caveats}
    rows = [row for row in summary if row["fraction"] == summary[0]["fraction"]]
    best = rows[0]
    cheapest = min((row for row in rows if row["tied_with_best"]), key=lambda row: (row["macs"], row["params"]))
    fastest = min(rows, key=lambda row: row["latency_ms_b1"])
    return {
        "most_accurate": best["model"],
        "cheapest_tied": cheapest["model"],
        "fastest": fastest["model"],
        "sentence": _sentence(rows, best, cheapest, fastest, metric),
        "caveats": caveats,
    }


def _sentence(
    rows: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any],
    cheapest: Mapping[str, Any],
    fastest: Mapping[str, Any],
    metric: Metric,
) -> str:
    mean, name = f"{metric.key}_mean", metric.words.name
    if len(rows) == 1:
        low, high = best[f"{metric.key}_ci"]
        return (
            f"{best['model']} reaches {percent(best[mean])} {name} (95 % interval {100 * low:.1f} to "
            f"{100 * high:.1f}); there is no other model to compare it with."
        )
    ties = [row["model"] for row in rows if row["tied_with_best"] and row is not best]
    accuracy = percent(best[mean])
    if cheapest is not best:
        text = (
            f"Take {cheapest['model']}: its {percent(cheapest[mean])} {name} is within the noise of "
            f"{best['model']}, the most accurate at {accuracy}, for {cheapest['macs'] / best['macs']:.2g} times the "
            "multiply-accumulates"
        )
    elif ties:
        text = (
            f"Take {best['model']}: at {accuracy} {name} it is the most accurate; {listed(ties)} "
            f"{'is' if len(ties) == 1 else 'are'} within the noise of it but no cheaper"
        )
    else:
        second = rows[1]
        text = (
            f"Take {best['model']}: at {accuracy} {name} it is the most accurate, "
            f"{-100 * second['difference_to_best']:.1f} points ahead of {second['model']}, which is more than the noise"
        )
    latency = f"{fastest['latency_ms_b1']:.2g} ms"
    if fastest["model"] == cheapest["model"]:
        return f"{text}. It is also the fastest at batch 1, {latency} per image."
    return (
        f"{text}. If speed at batch 1 decides, {fastest['model']} is the fastest with {latency} per image "
        f"({percent(fastest[mean])} {name})."
    )


def _caveats(summary: Sequence[SummaryRow], runs: Sequence[RunEntry], num_val_images: int, num_runs: int) -> list[str]:
    caveats = []
    random = any(run["budget"] is not None and run["budget"]["asked"] != CONVERGED for run in runs)
    if random and any(row["seeds"] == 1 for row in summary):
        caveats.append(
            "Some models have one seed only: the intervals cover the sampling of the validation images but not the "
            "variation over seeds, and another seed may change the order. Use --seeds 3 or more."
        )
    if num_val_images < FEW_IMAGES:
        caveats.append(f"There are only {num_val_images} validation images: small differences cannot be detected.")
    failed = [run for run in runs if run["status"] == "failed"]
    caveats += [f"{run['id']} failed: {run['error']}" for run in failed]
    if len(runs) < num_runs:
        caveats.append(f"{num_runs - len(runs)} of {num_runs} runs are missing; --resume finishes them.")
    return caveats


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
