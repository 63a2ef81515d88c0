"""No NaN is ever saved. The quick form of benchmarks/reliability/nan.py."""

import pytest
from benchmarks.reliability import forked, nan


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nan")
    assert forked.run(lambda: forked.train(folder / "whole", nan.STOP), folder / "log") == 0
    return folder


CASES = (
    ("statistics", {5}, False),
    ("gradients", {4}, True),
)


def test_injected(place):
    found = forked.side_by_side(
        lambda i: nan.injected(place / f"run{i}", place / "whole", CASES[i][0], frozenset(CASES[i][1]), CASES[i][2]),
        range(len(CASES)),
        place / "found",
    )
    assert found == [[]] * len(CASES)


def test_negative_control_without_guards_it_is_noticed(place):
    at = frozenset([3])
    faults = nan.injected(place / "control", place / "whole", "statistics", at, False, nan.unguarded)
    assert any(fault.startswith("NOT FINITE") for fault in faults), faults


@pytest.mark.slow
def test_more_than_may_be_skipped(place):
    at = frozenset([4, 5, 7, 9])
    assert len(at) == nan.SKIPS + 1
    assert nan.injected(place / "more", place / "whole", "loss", at, True) == []


@pytest.mark.slow
@pytest.mark.parametrize("where", nan.PLACES)
@pytest.mark.parametrize("skip", [False, True])
def test_every_place(place, where, skip):
    assert nan.injected(place / f"{where}{skip}", place / "whole", where, frozenset([6]), skip) == []
