"""Random number generators: the global ones of Python, NumPy and torch, saved, seeded and restored together."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Restore the global generators after the block, also CUDA's if CUDA is in use."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def seed_all(seed: int, device: torch.device) -> None:
    """Seed the global generators, and that of the device in use.

    Those of other devices are left alone: `torch.manual_seed` keeps a stack trace for each of them.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
