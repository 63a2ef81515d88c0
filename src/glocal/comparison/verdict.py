"""The verdict of a comparison: the most accurate model, the models within the noise of it, and the cheapest of them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from glocal.comparison.cheapest import RANGE, CostName, cheapest_of, costs_in_words
from glocal.comparison.final_test import final_test_in_words
from glocal.comparison.limits import limits_caveats, limits_in_words
from glocal.comparison.metric import Metric
from glocal.comparison.metrics import TOP1
from glocal.comparison.settings import CONVERGED
from glocal.comparison.simultaneous import (
    accuracy_of_choice,
    chance_of_being_best,
    deviations,
    stepwise_differences,
)
from glocal.comparison.statistics import (
    CONFIDENCE,
    Answers,
    Evidence,
    Interval,
    score_difference,
    score_interval,
)
from glocal.formatting import listed, percent, significant
from glocal.schema import CompareVerdict, FinalTest, LimitsResults, RaceResults, RaceStanding, RunEntry, SummaryRow

FEW_IMAGES = 200
"""Below this many validation images one image is half a point and intervals are wide: a caveat is added."""
UNSTEADY = 0.25
"""Distance of the quartiles of a latency, relative to its median, from which the machine is called busy."""
RISE = 0.01
"""Score that a model must gain in the last fifth of its budget for its training to be called unfinished."""


def summarise(
    runs: Sequence[RunEntry], evidence: Mapping[str, Any], metric: Metric = TOP1, confidence: float = CONFIDENCE
) -> list[SummaryRow]:
    """One row for each model and fraction that has a finished run; the largest fraction first, then the best model.

    Args:
        runs: entries of the results, with costs.
        evidence: input of `Metric.gather` by run id; for top-1 (images,) booleans, whether each prediction is correct.
        metric: ranks the rows.
        confidence: of the intervals of the differences, all at once.
    """
    groups = _grouped(runs)
    gathered = {key: metric.gather([evidence[run["id"]] for run in group]) for key, group in groups.items()}
    order = sorted(groups, key=lambda key: (-key[0], -gathered[key].mean, groups[key][0]["macs"], key[1]))
    rows = []
    for fraction in dict.fromkeys(key[0] for key in order):
        keys = [key for key in order if key[0] == fraction]
        models = [gathered[key] for key in keys]
        differences, _, _ = stepwise_differences(models, confidence)
        beside = zip(keys, differences, chance_of_being_best(deviations(models)), strict=True)
        rows += [
            _row(groups[key], gathered[key], difference, float(chance), metric) for key, difference, chance in beside
        ]
    return rows


def rows_outside(
    runs: Sequence[RunEntry], evidence: Mapping[str, Any], summary: Sequence[SummaryRow], metric: Metric = TOP1
) -> list[SummaryRow]:
    """Rows of models that do not meet the limits, which are compared with the best that does and tied with none.

    Args:
        runs: entries of these and of the other models.
        evidence: as of `summarise`.
        summary: rows of the others.
        metric: of the task.
    """
    groups = _grouped(runs)
    best: dict[float, str] = {}
    for row in summary:
        best.setdefault(row["fraction"], row["model"])
    judged = {(row["model"], row["fraction"]) for row in summary}
    rows = []
    for (fraction, model), group in groups.items():
        if (model, fraction) not in judged and fraction in best:
            gathered, leader = (
                metric.gather([evidence[run["id"]] for run in of]) for of in (group, groups[fraction, best[fraction]])
            )
            row = _row(group, gathered, score_difference(gathered, leader), 0.0, metric)
            rows.append(row | {"tied_with_best": False})
    return sorted(rows, key=lambda row: (-row["fraction"], -row["difference_to_best"]))


def choice_of(runs: Sequence[RunEntry], evidence: Mapping[str, Any], metric: Metric = TOP1) -> Interval | None:
    """The accuracy to expect of the most accurate model on new images, corrected for its having been chosen.

    Args:
        runs: entries of the results.
        evidence: as of `summarise`.
        metric: of the task.

    Returns:
        None where nothing was chosen, and for scores that are no mean over images.
    """
    finished = [run for run in runs if run["status"] == "ok"]
    largest = max((run["fraction"] for run in finished), default=1.0)
    by_model: dict[str, list[Any]] = defaultdict(list)
    for run in finished:
        if run["fraction"] == largest:
            by_model[run["model"]].append(evidence[run["id"]])
    models = [metric.gather(of_model) for of_model in by_model.values()]
    if len(models) < 2 or not all(isinstance(model, Answers) for model in models):
        return None
    return accuracy_of_choice(cast("list[Answers]", models), deviations(models))


def _grouped(runs: Sequence[RunEntry]) -> dict[tuple[float, str], list[RunEntry]]:
    """The finished runs by fraction and model."""
    groups: dict[tuple[float, str], list[RunEntry]] = defaultdict(list)
    for run in runs:
        if run["status"] == "ok":
            groups[run["fraction"], run["model"]].append(run)
    return groups


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
        **{name: first[name] for key in metric.costs for name in (key, f"{key}{RANGE}") if name in first},
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
    *,
    cost: CostName = "latency",
    guess: float | None = None,
    scratch: bool = False,
    race: RaceResults | None = None,
    choice: Interval | None = None,
    limits: LimitsResults | None = None,
    test: FinalTest | None = None,
) -> CompareVerdict:
    """Which model to take, judged at the largest fraction of the training set.

    Args:
        summary: rows of `summarise`.
        runs: all entries, the failed ones too.
        num_val_images: size of the validation set.
        num_runs: number of planned runs, finished or not.
        metric: ranks the rows.
        cost: by which the cheapest of the ties is taken.
        guess: score of a model that has learned nothing.
        scratch: whether the models started from random weights.
        race: what was seen in it; its models that left are not in ``summary``.
        choice: from `choice_of`.
        limits: how all models stand to them; only those that meet them are in ``summary``.
        test: the chosen models on images that chose nothing, which is more than ``choice`` can tell.
    """
    caveats = _caveats(summary, runs, num_val_images, None if race and race["finished"] else num_runs)
    left = {} if race is None else left_models(race)
    if not summary:
        sentence = "No run has finished, so there is nothing to compare yet."
        return {
            "most_accurate": None,
            "cheapest_tied": None,
            "fastest": None,
            "best_set": [],
            "choice": None,
            "sentence": sentence + ("" if limits is None else limits_in_words(limits)),
            "caveats": caveats,
        }
    rows = [row for row in summary if row["fraction"] == summary[0]["fraction"]]
    best = rows[0]
    caveats += _of_training(rows, runs, metric, guess, scratch)
    caveats += [] if limits is None else limits_caveats(limits)
    cheapest = cheapest_of([row for row in rows if row["tied_with_best"]], cost, metric.words.batch)
    fastest = min(rows, key=lambda row: row["latency_ms_b1"])
    return {
        "most_accurate": best["model"],
        "cheapest_tied": cheapest["model"],
        "fastest": fastest["model"],
        "best_set": [
            *(row["model"] for row in rows if row["tied_with_best"]),
            *(model for model, one in left.items() if one["left"] == "dearer"),
        ],
        "choice": None if choice is None else {"mean": choice.mean, "low": choice.low, "high": choice.high},
        "sentence": _so_far(runs, num_runs, race)
        + _sentence(rows, best, cheapest, fastest, metric, cost, left)
        + _of_left(left)
        + (_of_choice(best, choice, metric) if test is None else final_test_in_words(test, metric.words.name))
        + ("" if limits is None else limits_in_words(limits)),
        "caveats": caveats,
    }


def left_models(race: RaceResults) -> dict[str, RaceStanding]:
    """The models that are out of a race, as they stood when they left; the most accurate first."""
    last = {one["model"]: one for look in race["looks"] for one in look["standings"]}
    out = [one for model, one in last.items() if one["left"] and model not in race["still"]]
    return {one["model"]: one for one in sorted(out, key=lambda one: -one["difference"])}


def _of_choice(best: Mapping[str, Any], choice: Interval | None, metric: Metric) -> str:
    """What the best of several is worth on new images."""
    if choice is None:
        return ""
    return (
        f" The best of several looks better than it is: of {best['model']} expect {percent(choice.mean)} "
        f"{metric.words.name} on new images ({100 * choice.low:.1f} to {100 * choice.high:.1f})."
    )


def _of_left(left: Mapping[str, RaceStanding]) -> str:
    """Who left a race, and why."""
    behind = [model for model, one in left.items() if one["left"] == "behind"]
    text = ""
    if behind:
        text += f" {listed(behind)} left the race: behind by more than the noise."
    for to in dict.fromkeys(one["to"] for one in left.values() if one["left"] == "dearer"):
        these = [model for model, one in left.items() if one["to"] == to]
        costs = "it costs" if len(these) == 1 else "they cost"
        text += f" {listed(these)} left it: {costs} more than {to} without a lead that these images could show."
    return text


def _sentence(
    rows: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any],
    cheapest: Mapping[str, Any],
    fastest: Mapping[str, Any],
    metric: Metric,
    cost: CostName,
    left: Mapping[str, RaceStanding],
) -> str:
    mean, name = f"{metric.key}_mean", metric.words.name
    if len(rows) == 1 and left:
        low, high = best[f"{metric.key}_ci"]
        return (
            f"Take {best['model']}: it is the last in the race, at {percent(best[mean])} {name} (95 % interval "
            f"{100 * low:.1f} to {100 * high:.1f}) with {significant(best['latency_ms_b1'])} ms per image at batch 1."
        )
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
            f"{best['model']}, the most accurate at {accuracy}, and it is cheaper: "
            f"{costs_in_words(cheapest, best, cost, metric.words.batch)}"
        )
    elif ties:
        text = (
            f"Take {best['model']}: at {accuracy} {name} it is the most accurate; {listed(ties)} "
            f"{'is' if len(ties) == 1 else 'are'} within the noise of it but not measurably cheaper"
        )
    else:
        second = rows[1]
        text = (
            f"Take {best['model']}: at {accuracy} {name} it is the most accurate, "
            f"{-100 * second['difference_to_best']:.1f} points ahead of {second['model']}, which is more than the noise"
        )
    latency = f"{significant(fastest['latency_ms_b1'])} ms"
    if fastest["model"] == cheapest["model"]:
        return f"{text}. It is also the fastest at batch 1, {latency} per image."
    return (
        f"{text}. If speed at batch 1 decides, {fastest['model']} is the fastest with {latency} per image "
        f"({percent(fastest[mean])} {name})."
    )


def _caveats(
    summary: Sequence[SummaryRow], runs: Sequence[RunEntry], num_val_images: int, num_runs: int | None
) -> list[str]:
    """What to keep in mind; without a number of runs none is missing."""
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
    if num_runs is not None and len(runs) < num_runs:
        caveats.append(f"{num_runs - len(runs)} of {num_runs} runs are missing; --resume finishes them.")
    for row in summary:
        low, high = row.get("latency_ms_b1_range") or [row["latency_ms_b1"]] * 2
        if high - low > UNSTEADY * row["latency_ms_b1"]:
            caveats.append(
                f"Times vary: half of the passes of {row['model']} took {significant(low)} to {significant(high)} ms. "
                "The machine was busy; to measure again when it is idle, delete costs.json and use --resume."
            )
            break
    return caveats


def _of_training(
    rows: Sequence[SummaryRow], runs: Sequence[RunEntry], metric: Metric, guess: float | None, scratch: bool
) -> list[str]:
    """What the scores at the end of the budget leave open."""
    caveats = []
    best: Mapping[str, Any] = rows[0]
    if guess is not None and best[f"{metric.key}_ci"][0] <= guess:
        caveats.append(
            f"No model is better than always answering the most frequent class: {percent(guess)} {metric.words.name}."
        )
    rising = [row["model"] for row in rows if row["tied_with_best"] and _still_rises(row, runs)]
    if rising:
        verb = "rises" if len(rising) == 1 else "rise"
        caveats.append(
            f"The curve of {listed(rising)} still {verb}: training was not finished, and a larger --budget may change "
            "the order."
        )
    if scratch and metric is TOP1:
        caveats.append(
            "All models started from random weights. Pretrained weights usually matter more than the architecture: "
            "--mode finetune."
        )
    return caveats


def _still_rises(row: SummaryRow, runs: Sequence[RunEntry]) -> bool:
    """Whether the mean score of a model rose by more than `RISE` in the last fifth of its budget."""
    gains = []
    for run in runs:
        if run["status"] == "ok" and (run["model"], run["fraction"]) == (row["model"], row["fraction"]):
            early = [p for p in run["curve"] if p["step"] <= 0.8 * run["curve"][-1]["step"]] if run["curve"] else []
            if early:
                gains.append(run["curve"][-1]["val_score"] - early[-1]["val_score"])
    return bool(gains) and _mean(gains) > RISE


def _so_far(runs: Sequence[RunEntry], num_runs: int, race: RaceResults | None) -> str:
    if race is not None:
        looks = f"after {len(race['looks'])} of at most {len(race['rungs'])} looks"
        return "" if race["finished"] else f"So far, {looks} at the race: "
    finished = sum(run["status"] == "ok" for run in runs)
    return "" if finished == num_runs else f"So far, with {finished} of {num_runs} runs finished: "


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
