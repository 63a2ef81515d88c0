"""Parallel runs, each in its own process with a part of the cores.

Small models gain little from a second core and lose most of their speed when another program uses it: the threads of a
layer wait for each other. Two runs on one core each are faster than one run on two, also on a busy machine.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from typing import Any, cast

import torch

from glocal.comparison.execution import Runner, failed_entry
from glocal.comparison.settings import Run
from glocal.comparison.store import Store
from glocal.data import workers
from glocal.errors import GlocalError
from glocal.schema import RecordedRun
from glocal.training import TrainingProgress

PROCESS_MIB = 1024
"""Memory of a process without a model: libraries and images."""
MEMORY_SHARE = 0.5
"""Fraction of the machine's memory for all runs together."""
REPORT_EVERY = 0.2
"""Seconds between two reports of a run's progress."""

Event = TrainingProgress | RecordedRun | None
"""None at the start of a run, then its progress, finally its entry in the results."""


def share_cores(num_runs: int, cores: int, memory_mib: float, run_mib: float) -> tuple[int, int]:
    """The number of parallel runs, and the threads of each.

    Args:
        num_runs: of the comparison.
        cores: of this machine.
        memory_mib: of this machine.
        run_mib: memory of a run in addition to `PROCESS_MIB`.
    """
    fitting = int(MEMORY_SHARE * memory_mib / (PROCESS_MIB + run_mib))
    jobs = max(1, min(num_runs, cores, fitting))
    return jobs, max(1, cores // jobs)


def check_main_module() -> None:
    """Check that the process of each run can import the calling script.

    Raises:
        GlocalError: if it cannot; see `workers.check_main_module`.
    """
    workers.check_main_module(_context(), "side_by_side=False")


def run_side_by_side(
    runner: Runner,
    runs: Sequence[Run],
    store: Store,
    jobs: int,
    threads: int,
    tell: Callable[[Run, Event], None],
    until: float = 1.0,
) -> None:
    """Execute runs, ``jobs`` at a time, and call ``tell``; an exception kills the running ones.

    A run whose process dies, for example out of memory, has failed; the others continue.

    Raises:
        GlocalError: if the processes cannot import the calling script, or a record cannot be written.
    """
    check_main_module()
    context = _context()
    waiting = list(reversed(runs))
    going: dict[Connection, tuple[Run, Any]] = {}
    try:
        while waiting or going:
            while waiting and len(going) < jobs:
                run = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_execute, args=(runner, run, store, threads, until, sender))
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


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # the libraries are imported once, not once a run
    return context


def _execute(runner: Runner, run: Run, store: Store, threads: int, until: float, sender: Connection) -> None:
    """Execute one run in this process and report through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    last = 0.0
    point = None

    def report(progress: TrainingProgress) -> None:
        nonlocal last, point
        if progress.point is not point or time.monotonic() - last >= REPORT_EVERY:
            last, point = time.monotonic(), progress.point
            sender.send(progress)

    try:
        sender.send(runner.execute(run, store, report, until))
    except GlocalError as error:  # the record cannot be written, nor could that of any other run
        sender.send(error)


def _end_with_parent() -> None:
    """End with the parent process, so that no orphan holds the folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _died(run: Run, exit_code: int | None, store: Store) -> RecordedRun:
    entry = failed_entry(run, f"its process died ({workers.ended_with(exit_code)}), probably out of memory")
    store.write(run.id, entry, lambda folder: None)
    return entry
