"""Killed at a batch, resumed: the same images. The quick form of benchmarks/reliability/resume_grid.py."""

import pytest
from benchmarks.reliability import forked, resume_grid


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    return folder, *resume_grid.unbroken(folder)


def test_every_image_once_an_epoch(place):
    assert resume_grid.covers_each_epoch(place[2])


def test_killed_at_a_batch_and_a_loader_that_forgets_its_place(place):
    """The second is the negative control: a planted fault, which must be noticed."""
    folder, whole, expected = place
    cases = (("run", lambda: None), ("forgets", resume_grid.forgets_its_place))
    (_, good), (_, bad) = forked.side_by_side(
        lambda case: resume_grid.resumed(folder / case[0], whole, expected, 0, 10, case[1]), cases, folder / "found"
    )
    assert good == []
    assert "after it other images were trained on" in bad
    assert "an epoch has not every image exactly once" in bad


@pytest.mark.slow
@pytest.mark.parametrize("stop", range(5, 31, 5))
def test_with_workers(place, stop):
    folder, whole, expected = place
    assert resume_grid.resumed(folder / f"run{stop}", whole, expected, 2, stop)[1] == []


@pytest.mark.slow
def test_negative_control_an_order_that_depends_on_workers_is_noticed(place):
    folder, whole, expected = place
    faults = resume_grid.resumed(folder / "asks", whole, expected, 2, 10, resume_grid.asks_its_workers)[1]
    assert "before the kill other images were trained on" in faults
