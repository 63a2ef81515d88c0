"""Times, percentages and lists as text: one format for the command line, verdicts and pages."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def duration(seconds: float) -> str:
    """In words: 45 s, 2 min 5 s, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def clock(seconds: float) -> str:
    """For progress bars: 2:05, 3:20:00; ``?`` for NaN."""
    if math.isnan(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def percent(fraction: float, digits: int = 1) -> str:
    """With a space before the sign: 93.7 %."""
    return f"{100 * fraction:.{digits}f} %"


def few(items: Sequence[Item], count: int, separator: str = ", ", *, show: Callable[[Item], str] = str) -> str:
    """The first ``count`` items, and how many more there are: "a, b and 3 more"."""
    shown = separator.join(map(show, items[:count]))
    if len(items) <= count:
        return shown
    return f"{shown}{' ' if separator == ', ' else separator}and {len(items) - count} more"


def listed(names: Sequence[str]) -> str:
    """All of them, at least one: "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def significant(value: float) -> str:
    """Two significant digits without an exponent: ``0.13``, ``5.6``, ``120``, ``1,200``."""
    digits = 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, digits):,.{max(0, digits)}f}"
