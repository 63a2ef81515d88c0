"""Two processes of which one dies, or that become one. The quick form of benchmarks/reliability/ddp.py."""

import os
import signal
import time

import pytest
from benchmarks.reliability import ddp, forked, watched

from glocal import signals


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return ddp.Place(tmp_path_factory.mktemp("ddp")).make()


@pytest.mark.parametrize(
    ("first", "second", "plant"),
    [(2, 1, ddp.die_at(8)), pytest.param(2, 2, ddp.die_at_the_end, marks=pytest.mark.slow)],
)
def test_fsdp_goes_on(place, first, second, plant):
    """Killed after a test and a checkpoint, or when only the results were not written."""
    out = place.folder / f"fsdp{first}{second}"
    arguments = place.arguments(out, "--strategy", "fsdp", "-s", "epochs=2", model="vit_micro")
    logs = [out.with_suffix(f".order{i}") for i in range(2)]
    assert ddp.together(arguments, logs[0], first, plant) == [-signal.SIGKILL] * first
    assert ddp.together(arguments, logs[1], second) == [0] * second
    orders = [ddp.merged(watched.read(log), world) for log, world in zip(logs, (first, second), strict=True)]
    assert list(orders[0] | orders[1]) == list(range(12))
    assert (out / "results.json").exists()


def test_the_order_of_images_is_that_of_one_process(place):
    orders = []
    for world in (1, 2):
        log = place.folder / f"order{world}"
        codes = ddp.together([*place.arguments(place.folder / f"world{world}"), "-s", "epochs=1"], log, world)
        assert codes == [0] * world, log.with_suffix(".said").read_text()
        orders.append(ddp.merged(watched.read(log), world))
    assert orders[0] == orders[1]
    assert len({image for images in orders[0].values() for image in images}) == 48


def orphan(knows):
    """Start a process, and end before it has come to look for us; it is of our session."""

    def first():
        os.environ[signals.LAUNCHER] = str(os.getpid())
        if os.fork() == 0:
            time.sleep(0.5)
            if knows:
                signals.end_with_parent()
            time.sleep(20)

    return first


@pytest.mark.parametrize("knows", [True, False])
def test_no_orphan_though_the_parent_was_gone_first(tmp_path, knows):
    pid = forked.fork(orphan(knows), tmp_path / "log")
    assert forked.wait(pid) == 0
    assert (forked.gone(pid, 4) < 4) == knows


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "step"), [(0, 6), (1, 6), (0, None)])
def test_one_of_two_is_killed(place, rank, step):
    single = place.folder / "one.order"
    if not single.exists():
        assert ddp.together(place.arguments(place.folder / "one"), single, 1) == [0]
    expected = ddp.merged(watched.read(single), 1)
    out = place.folder / f"kill{rank}{step}"
    seconds, (faults, lines, _) = ddp.kill_one(place, out.name, rank, step, [])
    assert seconds < ddp.GONE
    assert faults == []
    assert ddp.goes_on(place, out, lines, expected, 2) == []
    assert ddp.goes_on(place, out, lines, expected, 1) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "everybody"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_while_the_second_process_starts(place, number, everybody):
    seconds, code = ddp.stopped(place, f"stop{number}", number, everybody)
    assert seconds < ddp.GONE
    assert code == 75
