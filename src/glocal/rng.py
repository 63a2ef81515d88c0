"""Random numbers that leave those of others as they were."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolate_rng() -> Iterator[None]:
    """Restore the generators of Python, NumPy and torch (CPU, and CUDA where it is initialised) at the end."""
    python, of_numpy = random.getstate(), np.random.get_state()
    # asking an uninitialised CUDA for its state would initialise it, which a process that forks must not do
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)
