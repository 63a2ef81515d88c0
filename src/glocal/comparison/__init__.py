"""Comparison of models under one recipe and budget: runs, records, statistics, verdict."""

from glocal.comparison.job import ComparisonObserver, compare
from glocal.comparison.limits import CostLimits
from glocal.comparison.pictures import pictures, pictures_of_mistakes
from glocal.comparison.settings import ComparisonSettings, Run, make_settings
from glocal.comparison.statistics import Interval, accuracy_interval, paired_difference
from glocal.comparison.verdict import judge, summarise

__all__ = [
    "ComparisonObserver",
    "ComparisonSettings",
    "CostLimits",
    "Interval",
    "Run",
    "accuracy_interval",
    "compare",
    "judge",
    "make_settings",
    "paired_difference",
    "pictures",
    "pictures_of_mistakes",
    "summarise",
]
