"""Processes that read images, and what becomes of a run when one of them dies."""

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
    """Processes that decode: a processor each, up to 8."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def read_in_order(
    dataset: Any, keys: Any, workers: int, collate_fn: Callable[[Any], Any] | None = None
) -> DataLoader[Any]:
    """A loader of ``dataset[key]`` for each of ``keys``, in their order; it leaves torch's global generator alone.

    Args:
        dataset: what is read; by ``workers`` processes, or by this one if that is 0.
        keys: what is read of it; an iterable, endless if need be.
        workers: how many processes. One that is killed raises one of `LOST`, then or at any later moment.
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


LOST = (RuntimeError, ConnectionError, EOFError)
"""What may be raised where a process of a loader is gone; `worker_died` tells whether it was."""


def worker_died(error: BaseException) -> bool:
    """Whether an error says that a process of a loader is gone: for want of memory, or as a decoder crashed.

    What such a process itself raised, and the loader raises again, is none.
    """
    if isinstance(error, (ConnectionError, EOFError)):  # of a share that is gone, unless it is of what was handed over
        frames = traceback.walk_tb(error.__traceback__)
        return any(frame.f_globals.get("__name__") == "multiprocessing.queues" for frame, _ in frames)
    return str(error).startswith("DataLoader worker (pid")


class _Flag:
    """An event of one byte.

    That of `multiprocessing` has a lock, which a process that is killed while it looks at the event takes along. The
    loader then waits for that lock for ever when it ends its other processes.
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
