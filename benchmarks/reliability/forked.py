"""Small runs in forks of this process, which has imported all: one import of torch serves hundreds of them.

A fork has a session of its own, so what it leaves behind can be found; what it says goes into a file.
"""

import csv
import faulthandler
import json
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tests.shapes import data_source

import glocal.cli
from glocal.data import DataSource
from glocal.tasks import ClassificationTask
from glocal.training import TrainConfig
from glocal.training.checkpoint import check
from glocal.training.run import COLUMNS, train_run

LIMIT = 300.0
"""Seconds after which a run of this folder is taken to hang."""
SMALL = TrainConfig.of(
    epochs=2, batch_size=20, lr=1e-2, image_size=16, random_erasing=0.25, drop_path=0.1, log_every_steps=1,
    checkpoint_every_steps=2,
)  # fmt: skip
"""Six steps; checkpoints after 2, 3 (the end of an epoch), 4 and 6."""


def train(out: Path, recipe: TrainConfig = SMALL, source: DataSource | None = None, **kwargs: Any) -> None:
    """Begin or resume a small run in this process; its notes are printed."""
    config = recipe.replace(**{"name": "resnet_micro", "resume": True, "num_workers": 0, **kwargs})
    train_run(ClassificationTask.for_data(source or data_source(), config), out, say=print)


def command(*arguments: str) -> None:
    """``glocal ARGUMENTS`` in this process, which it ends."""
    sys.argv = ["glocal", *arguments]
    glocal.cli.main()


def fork(function: Callable[[], Any], log: Path) -> int:
    """Run a function in a fork of this process; its number. The fork ends by its exit code, 70 for an exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: pytest-xdist has one, it sleeps
        pid = os.fork()
    if pid:
        return pid
    code: Any = 70
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(descriptor, number)
        sys.stdin = open(os.devnull)  # noqa: SIM115 - until the end of the process
        sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - and not pytest's
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.register(signal.SIGUSR1, file=descriptor)  # where it hangs, if it does
        warnings.resetwarnings()
        torch.set_num_threads(1)  # the threads of OpenMP do not survive a fork
        function()
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def wait(pid: int, limit: float = LIMIT) -> int:
    """Exit code of a fork, negative for a signal; one that hangs is an error."""
    deadline = time.monotonic() + limit
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGUSR1)
            time.sleep(1)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"process {pid} was still there after {limit:.0f} s")
        time.sleep(0.005)


def run(function: Callable[[], Any], log: Path, limit: float = LIMIT) -> int:
    """`fork` and `wait`."""
    return wait(fork(function, log), limit)


def side_by_side(function: Callable[[Any], Any], cases: Iterable[Any], folder: Path, jobs: int = 2) -> list[Any]:
    """What a function gives for each case, ``jobs`` at a time, each in a fork that may fork again."""
    cases = list(cases)
    folder.mkdir(parents=True, exist_ok=True)
    running: dict[int, int] = {}
    for number, case in enumerate(cases):
        if len(running) == jobs:
            _collect(running, folder)
        running[fork(lambda number=number, case=case: _keep(folder, number, function(case)), folder / "log")] = number
    while running:
        _collect(running, folder)
    return [pickle.loads((folder / str(number)).read_bytes()) for number in range(len(cases))]


def _keep(folder: Path, number: int, result: Any) -> None:
    (folder / str(number)).write_bytes(pickle.dumps(result))


def _collect(running: dict[int, int], folder: Path) -> None:
    while True:
        for pid in running:
            if os.waitpid(pid, os.WNOHANG)[0]:
                if not (folder / str(running[pid])).exists():
                    raise RuntimeError(f"case {running[pid]} broke:\n{(folder / 'log').read_text()[-3000:]}")
                del running[pid]
                return
        time.sleep(0.005)


def session(leader: int) -> dict[int, str]:
    """Processes of a session that are alive, and their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, *fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == leader and state not in "ZX":
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")[:200]
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def gone(leader: int, limit: float) -> float:
    """Seconds until a session has no process; infinity if ``limit`` is not enough, and then they are killed."""
    start = time.monotonic()
    while session(leader):
        if time.monotonic() - start > limit:
            for pid in session(leader):
                os.kill(pid, signal.SIGKILL)
            return float("inf")
        time.sleep(0.02)
    return time.monotonic() - start


def rows(out: Path) -> list[list[str]]:
    """metrics.csv without its header and without what a clock has measured."""
    timed = {COLUMNS.index("seconds"), COLUMNS.index("images_per_s")}
    with open(out / "metrics.csv", newline="") as file:
        header, *found = csv.reader(file)
    assert tuple(header) == (*COLUMNS, *ClassificationTask.columns), header
    return [[cell for i, cell in enumerate(row) if i not in timed] for row in found]


def results(out: Path) -> dict[str, Any]:
    """results.json without what a clock has measured."""
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    for name in ("seconds", "images_per_s", "environment", "command"):
        del found[name]
    return _without_seconds(found)


def _without_seconds(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_seconds(of) for key, of in value.items() if key != "seconds"}
    return [_without_seconds(of) for of in value] if isinstance(value, list) else value


def differs(out: Path, whole: Path) -> list[str]:
    """In what a finished run is not the unbroken one: weights by the bit, rows, scores, checkpoints, stale files."""
    faults = []
    for name, read in (
        ("model.safetensors", lambda path: (path / "model.safetensors").read_bytes()),
        ("metrics.csv", rows),
        ("results.json", results),
        ("checkpoints", lambda path: sorted(p.name for p in (path / "checkpoints").iterdir())),
    ):
        try:
            if read(out) != read(whole):
                faults.append(f"{name} differs")
        except (OSError, ValueError, KeyError, AssertionError) as error:
            faults.append(f"{name}: {type(error).__name__} {error}")
    faults += [f"left behind: {path.relative_to(out)}" for path in out.rglob("*tmp-*")]
    expected = {path.name for path in whole.iterdir()}
    faults += [f"beside the run's files: {path.name}" for path in out.iterdir() if path.name not in expected]
    for path in (out / "checkpoints").glob("step-*"):
        try:
            check(path)
        except Exception as error:
            faults.append(f"{path.name}: {error}")
    return faults
