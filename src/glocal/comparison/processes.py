"""Runs side by side, each in a process of its own that has its share of the cores.

Small models gain little from a second core and lose most of their speed when another program wants it: the threads of a
layer wait for each other. Two runs on one core each are faster than one run on two, and stay so on a busy machine.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import torch

from glocal.comparison.execution import Runner, failed_entry
from glocal.comparison.settings import Run
from glocal.comparison.store import Store
from glocal.errors import GlocalError
from glocal.schema import RecordedRun
from glocal.training import Progress

PROCESS_MIB = 1024
"""Memory of a process before it has a model: libraries, and the images it is sent."""
MEMORY_SHARE = 0.5
"""Of the machine's memory that all runs together may take."""
REPORT_EVERY = 0.2
"""Seconds between two reports of a run's progress."""

Event = Progress | RecordedRun | None
"""None when a run begins, then its progress, in the end its entry in the results."""


def share_cores(num_runs: int, cores: int, memory_mib: float, run_mib: float) -> tuple[int, int]:
    """How many runs go on at a time, and the threads of each.

    Args:
        num_runs: of the comparison.
        cores: of this machine.
        memory_mib: of this machine.
        run_mib: what a run needs beside `PROCESS_MIB`.
    """
    fitting = int(MEMORY_SHARE * memory_mib / (PROCESS_MIB + run_mib))
    jobs = max(1, min(num_runs, cores, fitting))
    return jobs, max(1, cores // jobs)


def run_side_by_side(
    runner: Runner, runs: Sequence[Run], store: Store, jobs: int, threads: int, tell: Callable[[Run, Event], None]
) -> None:
    """Execute runs, ``jobs`` at a time, and tell what happens; those still going are killed if that raises.

    A run whose process dies, as when memory runs out, has failed; the others go on.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # the libraries are imported once, not once a run
    waiting = list(reversed(runs))
    going: dict[Connection, tuple[Run, Any]] = {}
    try:
        while waiting or going:
            while waiting and len(going) < jobs:
                run = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_execute, args=(runner, run, store, threads, sender))
                process.start()
                sender.close()  # ours: when the process ends, the pipe does
                going[receiver] = run, process
                tell(run, None)
            for receiver in cast("list[Connection]", wait(list(going))):
                run, process = going[receiver]
                try:
                    event: Event | GlocalError = receiver.recv()
                except EOFError:
                    process.join()
                    event = _died(run, process.exitcode, store)
                if isinstance(event, GlocalError):
                    raise event
                if isinstance(event, dict):
                    del going[receiver]
                    process.join()
                tell(run, event)
    finally:
        for _, process in going.values():
            process.kill()
            process.join()


def _execute(runner: Runner, run: Run, store: Store, threads: int, sender: Connection) -> None:
    """What a process does: one run, reported through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    last = 0.0
    point = None

    def report(progress: Progress) -> None:
        nonlocal last, point
        if progress.point is not point or time.monotonic() - last >= REPORT_EVERY:
            last, point = time.monotonic(), progress.point
            sender.send(progress)

    try:
        sender.send(runner.execute(run, store, report))
    except GlocalError as error:  # the record cannot be written: no run's could
        sender.send(error)


def _end_with_parent() -> None:
    """Nobody is left to hold the folder when the first process is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _died(run: Run, exit_code: int | None, store: Store) -> RecordedRun:
    how = f"signal {signal.Signals(-exit_code).name}" if exit_code and exit_code < 0 else f"exit code {exit_code}"
    entry = failed_entry(run, f"its process ended by {how}; was there not enough memory?")
    store.write(run.id, entry, lambda folder: None)
    return entry
