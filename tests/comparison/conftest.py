import pytest

from glocal.comparison import costs, job


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    """Times of inference are measured all the same, but not for long."""
    monkeypatch.setattr(costs, "TIMING_SECONDS", 0.02)


@pytest.fixture(autouse=True)
def no_pages(monkeypatch):
    """A page after each run takes longer than these runs; comparisons of module fixtures write theirs."""
    monkeypatch.setattr(job, "write_report", lambda *_, **__: None)
