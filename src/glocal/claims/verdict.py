"""Verdicts on claims: effects with intervals, compared with the expected range."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from glocal.claims.claim import Claim, Comparison
from glocal.claims.measures import Measurement
from glocal.comparison.statistics import CONFIDENCE, Answers, Interval, score_difference

Verdict = Literal["supported", "contradicted", "inconclusive"]


@dataclass(frozen=True)
class Decision:
    """Effect and verdict of one comparison.

    Attributes:
        comparison: of two arms.
        effect: first arm minus second, with its interval.
        verdict: see `verdict_of`.
    """

    comparison: Comparison
    effect: Interval
    verdict: Verdict


def decide(claim: Claim, found: Measurement, macs: Mapping[str, float]) -> tuple[Decision, ...]:
    """Decide each comparison of a claim.

    The intervals hold jointly with 95 % confidence: each of m comparisons with random variation has the confidence
    1 - 0.05 / m (Bonferroni), so a claim of many parts is not contradicted by a single chance result.

    Args:
        claim: a claim.
        found: the measured values of its arms.
        macs: by arm.
    """
    by_chance = sum(not found.exact and comparison.of == "value" for comparison in claim.comparisons)
    confidence = 1 - (1 - CONFIDENCE) / max(1, by_chance)
    decisions = []
    for comparison in claim.comparisons:
        if comparison.of == "macs":
            assert comparison.second is not None
            more = macs[comparison.first] / macs[comparison.second] - 1
            effect = Interval(more, more, more, "counted")
        else:
            effect = difference(found, comparison.first, comparison.second, confidence)
        decisions.append(Decision(comparison, effect, verdict_of(effect, comparison)))
    return tuple(decisions)


def difference(found: Measurement, first: str, second: str | None, confidence: float) -> Interval:
    """One arm minus another, or minus 0.

    A paired bootstrap over seeds and units (`glocal.comparison.score_difference`). Readouts of the same trained models
    are paired by seed too. For deterministic values the interval is from the smallest to the largest difference.
    """
    one = found.values[first]
    other = found.values[second] if second is not None else np.zeros((1, one.shape[1]))
    if found.exact:
        by_unit = (one - other).mean(axis=0)
        return Interval(float(by_unit.mean()), float(by_unit.min()), float(by_unit.max()), "exact: smallest to largest")
    if found.paired and second is not None:
        one, other = one - other, np.zeros((1, one.shape[1]))
    return score_difference(Answers(one), Answers(other), confidence)


def verdict_of(effect: Interval, comparison: Comparison) -> Verdict:
    """Supported if the whole interval is in the expected range, contradicted if it is outside, else inconclusive."""
    low, high = expected_range(comparison)
    if low < effect.low and effect.high < high:
        return "supported"
    if effect.high < low or high < effect.low:
        return "contradicted"
    return "inconclusive"


def expected_range(comparison: Comparison) -> tuple[float, float]:
    """Lowest and highest expected effect."""
    margin = comparison.margin
    return {
        "more": (margin, math.inf),
        "less": (-math.inf, -margin),
        "not less": (-margin, math.inf),
        "equal": (-margin, margin),
    }[comparison.expected]


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """A claim is supported if all of its parts are, and contradicted if one is."""
    if "contradicted" in verdicts:
        return "contradicted"
    return "supported" if all(verdict == "supported" for verdict in verdicts) else "inconclusive"
