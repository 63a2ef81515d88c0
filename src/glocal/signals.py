"""A stop request by a signal: noted at once, handled at the end of the step."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RESUMABLE = 75
"""Exit code of a run that was stopped and can be resumed: EX_TEMPFAIL of BSD's sysexits."""
LAUNCHER = "GLOCAL_LAUNCHER"
"""Environment variable by which child processes recognize their parent."""
PATIENCE = 2.0
"""Seconds in which a second signal is taken for the first one, passed on twice: by a terminal and by a launcher."""


class StopRequest:
    """Remembers the first SIGTERM or SIGINT; one that comes `PATIENCE` later ends the process at once.

    Args:
        at_once: exit at the first one, with `RESUMABLE`: as long as there is nothing to save.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.at_once = at_once
        self.requested: str | None = None
        self.since = math.inf

    def handle(self, number: int, _: FrameType | None) -> None:
        """The handler: only sets a flag, once there is something to save."""
        if self.at_once:
            raise SystemExit(RESUMABLE)
        if time.monotonic() - self.since > PATIENCE:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self.requested is None:
            self.requested, self.since = signal.Signals(number).name, time.monotonic()

    def install(self) -> None:
        """Handle both signals, in the main thread of this process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle)

    @contextmanager
    def installed(self) -> Iterator["StopRequest"]:
        """Handle both signals, and restore the previous handlers."""
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        self.install()
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def end_with_parent() -> None:
    """End this process with its parent, also if the parent ended during import."""
    parent = int(os.environ.get(LAUNCHER, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            _pause.wait(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_pause = threading.Event()
