"""The results of a claim as JSON: verdict, effects, arms, costs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from glocal.claims.claim import Arm, Claim, Comparison
from glocal.claims.measures import CLAIM_METRICS, ClaimMetric, Measurement
from glocal.claims.verdict import Decision, Verdict, expected_range, together
from glocal.comparison.statistics import Answers, Interval, score_interval
from glocal.schema import ClaimArm, ClaimComparison, ClaimTexts, DecidedClaim, RecordedRun

Entries = Mapping[tuple[str, float], Sequence[RecordedRun]]
"""Records of the finished runs by model and fraction, in the order of the seeds."""


def describe(claim: Claim) -> ClaimTexts:
    """The texts of a claim, tested or not."""
    metric = CLAIM_METRICS[claim.measure]
    return {
        "id": claim.id,
        "sentence": claim.sentence,
        "background": claim.background,
        "differ": claim.differ,
        "note": claim.note,
        "source": claim.source,
        "url": claim.url,
        "published": [{"text": p.text, "second_hand": p.second_hand} for p in claim.published],
        "measure": {
            "key": claim.measure,
            "name": metric.name,
            "unit": metric.unit,
            "factor": metric.factor,
            "units": metric.units,
        },
    }


def untested(claim: Claim, reason: str) -> DecidedClaim:
    """A claim without a verdict."""
    return {
        **describe(claim), "verdict": None, "exact": False, "finding": f"Not tested: {reason}", "comparisons": [],
        "arms": [], "details": {}, "seeds": [], "cost": {"runs": 0, "seconds": 0.0}, "failures": [],
    }  # fmt: skip


def tested(
    claim: Claim,
    found: Measurement,
    decisions: Sequence[Decision],
    entries: Entries,
    costs: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    failures: Sequence[str],
) -> DecidedClaim:
    """A claim with its verdict.

    Args:
        claim: a claim.
        found: its measured values.
        decisions: of its comparisons.
        entries: records of its runs.
        costs: ``params`` and ``macs`` by model.
        seeds: the measured ones.
        failures: of runs with other seeds.
    """
    metric = CLAIM_METRICS[claim.measure]
    verdict = together([decision.verdict for decision in decisions])
    runs = [entry for of_model in entries.values() for entry in of_model]
    here = "" if found.exact else " on this data at this budget"
    return {
        **describe(claim),
        "verdict": verdict,
        "exact": found.exact,
        "finding": f"{verdict.capitalize()}{here}: "
        + "; ".join(_said(decision, found, metric) for decision in _deciding(decisions, verdict))
        + "."
        + _parts(decisions),
        "comparisons": [_comparison(decision, found, metric) for decision in decisions],
        "arms": [_arm(claim, arm, found, entries, costs) for arm in claim.arms],
        "details": dict(found.details),
        "seeds": list(seeds),
        "cost": {"runs": len(runs), "seconds": sum(run["budget"]["seconds_to_budget"] for run in runs)},
        "failures": list(failures),
    }


def macs_of(arm: Arm, costs: Mapping[str, Mapping[str, Any]]) -> float | None:
    """MACs of an arm per image, mean over its models."""
    return float(np.mean([costs[model]["macs"] for model in arm.models])) if arm.models else None


def _arm(
    claim: Claim, arm: Arm, found: Measurement, entries: Entries, costs: Mapping[str, Mapping[str, Any]]
) -> ClaimArm:
    values = found.values[arm.name]
    interval = _range(values) if found.exact else score_interval(Answers(values), CLAIM_METRICS[claim.measure].bounds)
    runs = [run for model in arm.models for run in entries[model, arm.fraction]]
    return {
        "name": arm.name,
        "models": list(arm.models),
        "fraction": arm.fraction,
        "mean": interval.mean,
        "interval": [interval.low, interval.high],
        "by_seed": values.mean(axis=1).tolist(),
        "macs": macs_of(arm, costs),
        "params": float(np.mean([costs[model]["params"] for model in arm.models])) if arm.models else None,
        "seconds": float(np.mean([run["budget"]["seconds"] for run in runs])) if runs else None,
        "steps": round(np.mean([run["budget"]["steps"] for run in runs])) if runs else None,
        "runs": [run["id"] for run in runs],
        "curves": [[{"step": point["step"], "score": point["val_score"]} for point in run["curve"]] for run in runs],
    }


def _range(values: np.ndarray) -> Interval:
    return Interval(float(values.mean()), float(values.min()), float(values.max()), "smallest to largest")


def _comparison(decision: Decision, found: Measurement, metric: ClaimMetric) -> ClaimComparison:
    comparison, effect = decision.comparison, decision.effect
    low, high = expected_range(comparison)
    return {
        "first": comparison.first,
        "second": comparison.second,
        "expected": comparison.expected,
        "margin": comparison.margin,
        "of": comparison.of,
        "expected_range": [low if math.isfinite(low) else None, high if math.isfinite(high) else None],
        "effect": effect.mean,
        "interval": [effect.low, effect.high],
        "method": effect.method,
        "verdict": decision.verdict,
        "question": _question(comparison, metric),
        "finding": _said(decision, found, metric),
    }


def _deciding(decisions: Sequence[Decision], verdict: str) -> Sequence[Decision]:
    """The comparisons to report first: of two, all deciding ones; of more, the first deciding one."""
    deciding = [decision for decision in decisions if decision.verdict == verdict]
    return deciding if len(decisions) == 2 else deciding[:1]


def _parts(decisions: Sequence[Decision]) -> str:
    """The number of parts per verdict, if the verdicts differ."""
    of_parts = [decision.verdict for decision in decisions]
    if len(set(of_parts)) == 1:
        return ""
    counted = [f"{of_parts.count(v)} {v}" for v in get_args(Verdict) if v in of_parts]
    return f" Of its {len(of_parts)} parts: {', '.join(counted)}."


def _question(comparison: Comparison, metric: ClaimMetric) -> str:
    """The expected difference in words."""
    first, second, margin = comparison.first, comparison.second, comparison.margin
    if comparison.of == "macs":
        by = f"{100 * margin:.0f} % of multiply-accumulates"
        equal = comparison.expected == "equal"
        return f"{first} and {second} differ by less than {by}" if equal else f"{first} costs more than {second}"
    if second is None:
        return f"{first} is {'above' if comparison.expected == 'more' else 'below'} 0"
    by = f" by more than {_number(margin, metric)}" if margin else ""
    return {
        "more": f"{first} {metric.more} {second}{by}",
        "less": f"{second} {metric.more} {first}{by}",
        "not less": f"{first} is at most {_number(margin, metric)} behind {second}",
        "equal": f"{first} and {second} differ by less than {_number(margin, metric)}",
    }[comparison.expected]


def _said(decision: Decision, found: Measurement, metric: ClaimMetric) -> str:
    """The finding in words: ``A 84.1 %, B 82.0 %: 2.1 points more (0.3 to 3.9)``."""
    comparison, effect = decision.comparison, decision.effect
    first, second = comparison.first, comparison.second
    if comparison.of == "macs":
        more = "more" if effect.mean >= 0 else "fewer"
        return f"{first} takes {100 * abs(effect.mean):.0f} % {more} multiply-accumulates than {second}"
    between = f"({_plain(effect.low, metric)} to {_plain(effect.high, metric)})"
    mean = _level(float(found.values[first].mean()), metric)
    if second is None:
        return f"{first} {mean} {between}"
    difference = _number(abs(effect.mean), metric)
    than = "more" if effect.mean > 0 else "less"
    apart = f"{difference} {than}" if difference != _number(0, metric) else "no difference"
    of_second = _level(float(found.values[second].mean()), metric)
    return f"{first} {mean}, {second} {of_second}: {apart} {between}"


def _level(value: float, metric: ClaimMetric) -> str:
    return f"{_plain(value, metric)} %" if metric.factor == 100 else _number(value, metric)


def _number(value: float, metric: ClaimMetric) -> str:
    return f"{_plain(value, metric)} {metric.unit}"


def _plain(value: float, metric: ClaimMetric) -> str:
    text = f"{metric.factor * value:.{1 if metric.factor == 100 else 2}f}"
    return (text if float(text) else text.removeprefix("-")).replace("-", "\u2212")
