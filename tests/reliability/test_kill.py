"""kill -9 inside any write, then --resume. The quick form of benchmarks/reliability/kill.py."""

import random
import shutil

import pytest
from benchmarks.reliability import forked, kill

from glocal import run_dir
from glocal.training import run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the unbroken run is, and the calls that change its folder."""
    folder = tmp_path_factory.mktemp("kill")
    return folder, folder / "whole", kill.watched(folder / "whole")


def aim(events, stage, when, occurrence=0):
    return kill.Aim([i for i, event in enumerate(events, 1) if event.stage == stage][occurrence], when)


AIMS = (
    ("write checkpoints/.tmp/optim.safetensors", "in", 1),
    ("rename checkpoints/.tmp checkpoints/step", "after", 2),
    ("rmtree checkpoints/.tmp", "in", 0),
    ("write metrics.csv", "in", 3),
    ("replace .tmp model.safetensors", "after", 0),
)


def test_killed_inside_writes(place):
    folder, whole, events = place
    cases = [[aim(events, *of)] for of in AIMS]
    cases[0].append(aim(events, "write checkpoints/.tmp/MANIFEST.json", "in"))  # and again in the resumed run
    found = forked.side_by_side(
        lambda i: kill.outlives(folder / f"run{i}", cases[i], whole), range(len(cases)), folder / "found"
    )
    assert found == [(True, [])] * len(cases)


def test_negative_control_a_naive_saver_loses_its_run(place):
    assert kill.naively_lost(place[0] / "naive", 2, 0.6)


def no_cut(path, columns, start, cut=run._cut):
    if not path.exists():
        cut(path, columns, start)


def dies_with_a_row(events):
    """When a row is on the disk, and its checkpoint is not."""
    return kill.Aim(aim(events, "write metrics.csv", "after", 3).number + 1, "after")


def test_planted_faults_are_noticed(place):
    """A resumed run that does not cut metrics.csv back, and one that does not clean up."""
    folder, whole, events = place
    cases = (
        (dies_with_a_row(events), lambda: setattr(run, "_cut", no_cut)),
        (aim(events, *AIMS[0]), lambda: setattr(run, "clean", lambda _: None)),
    )
    (_, uncut), (_, unclean) = forked.side_by_side(
        lambda i: kill.outlives(folder / f"planted{i}", [cases[i][0]], whole, cases[i][1]), range(2), folder / "planted"
    )
    assert uncut == ["metrics.csv differs"]
    assert any(fault.startswith("left behind: checkpoints/.tmp-") for fault in unclean), unclean


def test_nothing_has_a_name_before_it_is_on_the_disk(place):
    assert kill.unsynced(place[2]) == []


def test_negative_control_a_saver_that_does_not_sync_is_noticed(place):
    skip = lambda: setattr(run_dir, "sync", lambda _: None)  # noqa: E731
    faults = kill.unsynced(kill.watched(place[0] / "unsynced", skip))
    assert any("optim.safetensors is not synced" in fault for fault in faults), faults


def test_all_stages_are_aimed_at(place):
    events = place[2]
    aims = kill.aims(events, 60, random.Random(0))
    assert {events[of.number - 1].stage for of in aims} == {event.stage for event in events}
    assert {of.when for of in aims} == {"before", "in", "after"}


@pytest.mark.slow
def test_thirty_more(place):
    folder, whole, events = place
    draw = random.Random(1)
    aims = [[of] for of in kill.aims(events, 30, draw)]
    found = forked.side_by_side(
        lambda i: kill.outlives(folder / f"more{i}", aims[i], whole), range(len(aims)), folder / "more"
    )
    shutil.rmtree(folder / "more")
    assert [faults for _, faults in found if faults] == []
    assert all(killed for killed, _ in found)
