"""Times and percentages as text: one format for the command line, verdicts and pages."""

import math


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
