"""Early ends of a run: a runtime error, non-finite numbers, or a request to stop."""

from glocal.errors import GlocalError


class TrainingError(GlocalError):
    """A run that cannot continue; the other runs of a comparison can."""


class Stopped(Exception):  # noqa: N818 - not an error
    """A run stopped on request: everything is saved up to ``step``."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"stopped by {reason} after step {step}")
        self.step, self.reason = step, reason
