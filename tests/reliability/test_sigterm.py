"""Asked to stop, at any moment. The quick form of benchmarks/reliability/sigterm.py."""

import os
import random
import signal
import time

import pytest
from benchmarks.reliability import forked, sigterm

from glocal.training.trainer import Trainer
from tests.shapes import write_folder

STEPS = 30


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sigterm")
    write_folder(folder / "data")
    (folder / "recipe.yaml").write_text(sigterm.RECIPE.to_yaml().replace("epochs: 75", "epochs: 5"))
    whole = folder / "whole"
    code = forked.run(lambda: forked.command(*sigterm.arguments(folder, whole)), folder / "whole.said")
    assert code == 0, (folder / "whole.said").read_text()
    assert sigterm.last_logged(whole) == STEPS
    return folder, whole


def stopped(folder, out, number, step, plant=lambda: None):
    def job():
        plant()
        forked.command(*sigterm.arguments(folder, out))

    pid = forked.fork(job, out.with_suffix(".said"))
    while sigterm.last_logged(out) < step:
        time.sleep(0.01)
    os.kill(pid, number)
    sent = time.monotonic()
    code = forked.wait(pid)
    said = out.with_suffix(".said").read_text()
    return sigterm.Stopped(code, time.monotonic() - sent, True, sigterm.last_logged(out), sigterm.last_saved(out), said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_training(place, number):
    folder, whole = place
    out = folder / f"run{number}"
    found = stopped(folder, out, number, 4)
    assert sigterm.wrong(found, number) == []
    assert 4 <= found.saved < STEPS
    assert sigterm.resumes(folder, out, whole) == []


def test_negative_control_steps_that_are_not_saved_are_noticed(place):
    folder, _ = place

    def never():
        Trainer._save = lambda _: None

    found = stopped(folder, folder / "never", signal.SIGTERM, 4, never)
    assert any("steps lost" in fault for fault in sigterm.wrong(found, signal.SIGTERM))


@pytest.mark.slow
def test_the_command_from_its_start(place):
    """In a process of its own; the first second is for Python."""
    folder, whole = place
    draw = random.Random(0)
    for i, number in enumerate((signal.SIGTERM, signal.SIGINT) * 2):
        out = folder / f"command{i}"
        found = sigterm.stop(folder, out, number, draw.uniform(2, 10))
        if found is None or found.logged == STEPS:
            continue  # it was fast
        assert sigterm.wrong(found, number) == []
        assert sigterm.resumes(folder, out, whole) == []
