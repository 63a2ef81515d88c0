"""Random numbers of others are as before, however a block ends."""

import random

import numpy as np
import pytest
import torch

from glocal.rng import isolated_rng


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def seed(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.mark.parametrize("fails", [False, True])
def test_all_generators_are_restored(fails):
    seed(0)
    expected = draw()
    seed(0)
    with pytest.raises(ZeroDivisionError) if fails else isolated_rng(), isolated_rng():
        seed(1)
        draw()
        assert not fails or 1 / 0
    assert draw() == expected


def test_an_uninitialised_cuda_stays_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1 / 0)
    with isolated_rng():
        pass
