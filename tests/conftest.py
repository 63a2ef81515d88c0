"""What all tests need of the process they run in."""

import gc
import signal


def pytest_configure():
    """A shell lets what it starts in the background ignore Ctrl-C, and so does what that starts: tests press it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """What was imported stays: the garbage collector need not go through a million objects again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
