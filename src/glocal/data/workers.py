"""Data-loading workers, and the detection of one that died or cannot start."""

import copy
import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import RawValue
from typing import Any

import torch
from torch.utils.data import DataLoader

from glocal.errors import GlocalError


def default_workers() -> int:
    """Number of data-loading workers: one per CPU core, up to 8."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def read_in_order(
    dataset: Any, keys: Any, workers: int, collate_fn: Callable[[Any], Any] | None = None
) -> DataLoader[Any]:
    """A `DataLoader` of ``dataset[key]`` for each of ``keys``, in order, without use of torch's global generator.

    Args:
        dataset: read by ``workers`` processes, or in this one if that is 0.
        keys: of the dataset; any iterable, possibly endless.
        workers: number of processes. When one is killed, one of `WORKER_ERRORS` is raised, now or later.
        collate_fn: see `DataLoader`; by default arrays become tensors.

    Raises:
        GlocalError: if the processes cannot import the calling script. Only forks, the default on Linux before Python
            3.14, do not.
    """
    context = _context() if workers else None
    if context is not None and context.get_start_method() != "fork":
        check_main_module(context, "0 workers")
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        generator=torch.Generator(),  # the loader draws a seed for its workers
        collate_fn=collate_fn,
        multiprocessing_context=context,
    )


def check_main_module(context: BaseContext, otherwise: str) -> None:
    """Check that the processes of a context can import the calling script, as those of spawn and forkserver do.

    A script that starts processes where it is imported does so in each of them again, and they die.

    Args:
        context: of `multiprocessing`.
        otherwise: what needs no such processes.

    Raises:
        GlocalError: if they cannot.
    """
    process = context.Process()  # type: ignore[attr-defined]  # imports the script, and has nothing else to do
    process.start()
    try:
        process.join()
    finally:
        process.kill()
        process.join()
    if process.exitcode:
        script = getattr(sys.modules["__main__"], "__file__", "the calling script")
        raise GlocalError(
            f"main: expected a script that processes can import, got {script}, "
            f"whose import ended with {ended_with(process.exitcode)}; keep the script in a file and its calls under "
            f"`if __name__ == '__main__':`, or use {otherwise}"
        )


def ended_with(exit_code: int | None) -> str:
    """How a process ended: its signal, or its exit code."""
    return f"signal {signal.Signals(-exit_code).name}" if exit_code and exit_code < 0 else f"exit code {exit_code}"


WORKER_ERRORS = (RuntimeError, ConnectionError, EOFError)
"""Raised when a data-loading worker dies, and for other reasons: `worker_died` decides."""


def worker_died(error: BaseException) -> bool:
    """Whether an error means that a data-loading worker died: out of memory, or a crashed decoder.

    Exceptions of the dataset, which the loader raises again, do not.
    """
    if isinstance(error, (ConnectionError, EOFError)):  # of the queue to the worker, not of the dataset
        frames = traceback.walk_tb(error.__traceback__)
        return any(frame.f_globals.get("__name__") == "multiprocessing.queues" for frame, _ in frames)
    return str(error).startswith("DataLoader worker (pid")


class _Flag:
    """A lock-free `multiprocessing.Event`, one byte in shared memory.

    A worker killed while it holds the lock of multiprocessing's own event would block the loader for ever when it stops
    the other workers.
    """

    def __init__(self) -> None:
        self._set = RawValue(ctypes.c_bool, False)

    def is_set(self) -> bool:
        return self._set.value

    def set(self) -> None:
        self._set.value = True


def _context() -> BaseContext:
    context = copy.copy(multiprocessing.get_context())
    context.Event = _Flag  # type: ignore[assignment, method-assign]
    return context
