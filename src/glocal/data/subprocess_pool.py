"""Python processes that do not import the calling script.

Those of multiprocessing do, by spawn and forkserver: a script without ``if __name__ == "__main__":`` would run again in
each. These are started by subprocess and run this file, which imports nothing of glocal: functions are imported when
they are called. Not forks, which would copy the locks of torch's threads.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import BinaryIO, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class ProcessDiedError(Exception):
    """A process of a `SubprocessPool` ended in the middle of its items."""


class SubprocessPool:
    """Processes that map a function over items; a context, at whose end they are killed.

    Args:
        max_workers: processes at most.
    """

    def __init__(self, max_workers: int) -> None:
        self.max_workers = max_workers
        self._threads = ThreadPoolExecutor(max_workers)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        self._threads.shutdown()  # before the pipes that they read are closed
        for process in self._processes:
            process.communicate()

    def map(self, function: Callable[[Item], Result], items: list[Item], *, chunksize: int = 1) -> Iterator[Result]:
        """The results in the order of the items, as they come.

        Args:
            function: picklable, and defined in a module that can be imported, not in the calling script.
            items: picklable.
            chunksize: items that are sent to a process at once.

        Raises:
            ProcessDiedError: in place of the first result of a chunk whose process died.
            Exception: what ``function`` raises, likewise.
        """
        chunks = [items[start : start + chunksize] for start in range(0, len(items), chunksize)]
        while len(self._processes) < min(self.max_workers, len(chunks)):
            command = [sys.executable, "-P", __file__]  # -P: the folder of this file stays off sys.path
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._processes.append(process)
            self._idle.put(process)
        for results in self._threads.map(partial(self._call, function), chunks):
            yield from results

    def _call(self, function: Callable[[Item], Result], chunk: list[Item]) -> list[Result]:
        process = self._idle.get()
        try:
            answer = _ask(process, pickle.dumps((function, chunk)))
        finally:
            self._idle.put(process)  # one that has died fails at once, so that no thread waits for another
        results = pickle.loads(answer)
        if isinstance(results, Exception):
            raise results
        return results


def _ask(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump((sys.path, request), process.stdin)
        process.stdin.flush()
        return pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise ProcessDiedError from error


def serve() -> None:
    """Answer the requests on stdin until the parent process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    null = os.open(os.devnull, os.O_RDWR)  # if the calling script has no stderr, this becomes it
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(null, 0)
    os.dup2(2, 1)  # what a decoder prints
    received: SimpleQueue[tuple[list[str], bytes]] = SimpleQueue()
    threading.Thread(target=_receive, args=(requests, received), daemon=True).start()
    while True:
        sys.path[:], request = received.get()
        with suppress(OSError):  # the parent has ended, and so will this process
            pickle.dump(_results(request), answers)
            answers.flush()


def _receive(requests: BinaryIO, received: "SimpleQueue[tuple[list[str], bytes]]") -> None:
    while True:
        try:
            received.put(pickle.load(requests))
        except (EOFError, pickle.UnpicklingError):  # the parent has ended; a decoder may be stuck
            os._exit(1)


def _results(request: bytes) -> bytes:
    try:
        function, items = pickle.loads(request)
        return pickle.dumps([function(item) for item in items])
    except Exception as error:
        return pickle.dumps(error)


if __name__ == "__main__":
    serve()
