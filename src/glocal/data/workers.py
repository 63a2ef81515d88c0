"""Data-loading workers, and the detection of one that died."""

import copy
import ctypes
import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import RawValue
from typing import Any

import torch
from torch.utils.data import DataLoader


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
    """
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        generator=torch.Generator(),  # the loader draws a seed for its workers
        collate_fn=collate_fn,
        multiprocessing_context=_context() if workers else None,
    )


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
