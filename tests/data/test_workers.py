"""Processes that read: what they read and in what order, and that the death of one ends nothing but itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from glocal.data.workers import WORKER_ERRORS, read_in_order, worker_died


class Numbers:
    """Each number in a process of its own choice; at ``die_at`` the process kills itself, ``after`` what it reads."""

    def __init__(self, die_at=None, after=False):
        self.die_at, self.after = die_at, after

    def __getitem__(self, key):
        if key == self.die_at:
            if not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            sys.setprofile(die_while_looking)
        return key


class Raising:
    def __init__(self, kind):
        self.kind = kind

    def __getitem__(self, key):
        raise self.kind("the share is gone")


class HalfSent:
    """What is read cannot be received: so it looks where the other end of a connection has just gone."""

    def __init__(self, kind):
        self.kind = kind

    def __getitem__(self, key):
        return self

    def __reduce__(self):
        return gone, (self.kind,)


def gone(kind):
    raise kind("gone")


def die_while_looking(frame, event, argument):
    """Killed as soon as a call that looks at the event has come back: with whatever lock that has taken."""
    caller = frame.f_back.f_code.co_name if frame.f_back else ""
    if event == "return" and "is_set" in (frame.f_code.co_name, caller):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_all_is_read_in_order_and_the_global_generator_is_left_alone(workers):
    before = torch.get_rng_state()
    keys = [3, 1, 4, 1, 5, 9, 2, 6]
    assert list(read_in_order(Numbers(), keys, workers)) == keys
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dead_process_is_told_from_what_one_raises():
    with pytest.raises(WORKER_ERRORS) as caught:
        list(read_in_order(Numbers(die_at=3), range(9), 2))
    assert worker_died(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [RuntimeError, ConnectionResetError, EOFError])
def test_an_error_of_reading_is_no_death(kind, workers):
    with pytest.raises(kind, match="the share is gone") as caught:
        list(read_in_order(Raising(kind), range(9), workers))
    assert not worker_died(caught.value)


@pytest.mark.parametrize("kind", [ConnectionResetError, EOFError])
def test_a_process_that_goes_while_it_hands_over_is_a_death(kind):
    with pytest.raises(kind) as caught:
        list(read_in_order(HalfSent(kind), range(9), 2))
    assert worker_died(caught.value)


def ends(make, seconds):
    """Whether a loader, in a process of its own, ends after one of its processes was killed looking at the event."""
    script = f"""
import faulthandler
from torch.utils.data import DataLoader
from glocal.data.workers import read_in_order
from tests.data.test_workers import Numbers
faulthandler.dump_traceback_later({seconds - 5})
try:
    print(list({make}))
except RuntimeError as error:
    print("raised:", error, flush=True)
"""
    command = [sys.executable, "-c", script]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as running:
        try:
            said, errors = running.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)  # with the processes that wait for the lock, too
            errors = running.communicate()[1]
            assert "multiprocessing/synchronize.py" in errors, errors  # it waits for a lock
            return False
    assert "raised: DataLoader worker" in said, said + errors
    assert running.returncode == 0, errors
    return True


def test_a_process_killed_at_the_worst_moment_does_not_stop_the_others_from_ending():
    assert ends("read_in_order(Numbers(3, after=True), range(99), 2)", 100)


@pytest.mark.slow
def test_with_the_event_of_multiprocessing_it_does():
    """What the test above would see; if this one fails, torch or Python have mended it, and `_Flag` can go."""
    plain = DataLoader(Numbers(3, after=True), batch_size=None, sampler=range(99), num_workers=2)
    assert plain.multiprocessing_context is None
    assert not ends("DataLoader(Numbers(3, after=True), batch_size=None, sampler=range(99), num_workers=2)", 30)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_may_be_started_in_other_ways(method):
    """By default on macOS and Windows, and everywhere from Python 3.14 on."""
    script = f"""
import multiprocessing
from glocal.data.workers import read_in_order
from tests.data.test_workers import Numbers
multiprocessing.set_start_method("{method}")
print(list(read_in_order(Numbers(), range(5), 2)))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=100)
    assert done.stdout == "[0, 1, 2, 3, 4]\n", done.stderr


def test_a_script_without_main_guard_is_told_so(tmp_path):
    """Not that a worker died, which would be called out of memory, or a crash of the decoder."""
    script = tmp_path / "script.py"
    script.write_text("""
import multiprocessing
from glocal.data.workers import read_in_order
from tests.data.test_workers import Numbers
multiprocessing.set_start_method("spawn", force=True)
print(list(read_in_order(Numbers(), range(5), 0)))
print(list(read_in_order(Numbers(), range(5), 2)))
""")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=100)
    assert set(done.stdout.splitlines()) == {"[0, 1, 2, 3, 4]"}
    error = done.stderr.splitlines()[-1]
    assert error.startswith(
        f"glocal.errors.GlocalError: main: expected a script that processes can import, got {script}"
    )
    assert error.endswith("its calls under `if __name__ == '__main__':`, or use 0 workers")
