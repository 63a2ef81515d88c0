"""Processes that do not import the calling script: order, deaths, what decoders print, and the end of the parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from glocal.data.subprocess_pool import ProcessDiedError, SubprocessPool


def slower_first(number):
    time.sleep(0.05 if number < 4 else 0)
    return number, os.getpid()


def die_at_9(number):
    if number == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def print_much(number):
    print("from Python", flush=True)
    os.system("echo from C; cat")
    return number


def interrupt(number):
    os.kill(os.getpid(), signal.SIGINT)
    return number


def raise_at_9(number):
    if number == 9:
        raise EOFError("of the file")
    return number


def hang_after_4(number):
    if number >= 4:
        time.sleep(600)
    return number


def pid_and_hang(number):
    if number:
        time.sleep(600)
    return os.getpid()


def test_results_come_in_the_order_of_the_items():
    with SubprocessPool(2) as pool:
        found = list(pool.map(slower_first, list(range(40)), chunksize=3))
    assert [number for number, _ in found] == list(range(40))
    processes = {process for _, process in found}
    assert os.getpid() not in processes
    assert len(processes) == 2


def test_results_come_as_soon_as_they_are_there():
    with SubprocessPool(2) as pool:
        found = pool.map(hang_after_4, list(range(8)), chunksize=4)
        began = time.monotonic()
        assert [next(found) for _ in range(4)] == [0, 1, 2, 3]
    assert time.monotonic() - began < 60  # the process that hangs is killed


def test_a_death_is_found_in_its_chunk():
    with SubprocessPool(2) as pool:
        found = pool.map(die_at_9, list(range(20)), chunksize=4)
        assert [next(found) for _ in range(8)] == list(range(8))
        with pytest.raises(ProcessDiedError):
            next(found)


def test_an_exception_of_the_function_is_no_death():
    with SubprocessPool(2) as pool, pytest.raises(EOFError, match="of the file"):
        list(pool.map(raise_at_9, list(range(20)), chunksize=4))


def test_decoders_that_print_or_read_do_not_corrupt_the_results(capfd):
    with SubprocessPool(2) as pool:
        assert list(pool.map(print_much, list(range(20)), chunksize=4)) == list(range(20))
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.count("from Python") == printed.err.count("from C") == 20


def test_ctrl_c_is_left_to_the_parent():
    with SubprocessPool(1) as pool:
        assert list(pool.map(interrupt, [1, 2, 3])) == [1, 2, 3]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_their_parent(sent):
    """Also while a decoder is stuck."""
    script = """
from glocal.data.subprocess_pool import SubprocessPool
from tests.data.test_subprocess_pool import pid_and_hang
with SubprocessPool(1) as pool:
    for process in pool.map(pid_and_hang, [0, 1]):
        print(process, flush=True)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], start_new_session=True, **pipes) as parent:
        child = int(parent.stdout.readline())
        if sent == signal.SIGINT:
            os.killpg(parent.pid, sent)
        else:
            parent.send_signal(sent)
        errors = parent.communicate(timeout=60)[1]
    assert errors.count("Traceback") == (sent == signal.SIGINT)  # of the parent
    give_up = time.monotonic() + 60
    while is_running(child):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def is_running(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # nobody may be there to reap it
    except FileNotFoundError:
        return False
