import math

import pytest

from glocal.formatting import clock, duration, few, listed, percent


@pytest.mark.parametrize(
    ("seconds", "words", "digits"),
    [(0.4, "0 s", "0:00"), (59.4, "59 s", "0:59"), (59.6, "1 min 0 s", "1:00"), (125, "2 min 5 s", "2:05"),
     (3599, "59 min 59 s", "59:59"), (12_000, "3 h 20 min", "3:20:00"), (360_061, "100 h 1 min", "100:01:01")],
)  # fmt: skip
def test_times(seconds, words, digits):
    assert (duration(seconds), clock(seconds)) == (words, digits)


def test_an_unknown_time_and_percentages():
    assert clock(math.nan) == "?"
    assert percent(0.93659) == "93.7 %"
    assert percent(0.93659, digits=0) == "94 %"


def test_lists():
    assert few(["a", "b"], 2) == "a, b"
    assert few(["a", "b", "c"], 2) == "a, b and 1 more"
    assert few([1, 2, 3], 1, "; ") == "1; and 2 more"
    assert few([*"abc"], 2, "\n  ", show=str.upper) == "A\n  B\n  and 1 more"
    assert few([], 2) == ""
    assert [listed([*names]) for names in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]
