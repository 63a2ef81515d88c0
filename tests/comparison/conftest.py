import pytest

from glocal.comparison import costs


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    """Times of inference are measured all the same, but not for long."""
    monkeypatch.setattr(costs, "TIMING_SECONDS", 0.02)
