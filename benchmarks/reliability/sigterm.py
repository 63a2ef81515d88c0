"""Ask a run to stop, at any moment: exit code 75, nothing lost, and --resume gives the run that nobody stopped.

    python benchmarks/reliability/sigterm.py [SIGNALS]     20

Through the command, in a process of its own, from its start on. A process that has just been started and has not come
to our code is ended by a signal as any other: no handler can be there. Such moments are counted apart.
"""

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.reliability import forked
from benchmarks.reliability.record import record
from tests.shapes import write_folder

from glocal.training import TrainConfig

ROOT = Path(__file__).parents[2]
SEED = 0
LIMIT = 15.0
"""Seconds in which it must be gone."""
RECIPE = TrainConfig.of(epochs=75, batch_size=8, lr=1e-2, image_size=16, log_every_steps=1, evaluate_every_epochs=5)
"""Checkpoints are rare: what a signal does not save is lost."""


class Stopped(NamedTuple):
    """How a process ended that was asked to stop, and what it had done by then."""

    code: int
    seconds: float
    handled: bool
    logged: int
    saved: int
    said: str


def arguments(folder: Path, out: Path) -> list[str]:
    """Of the command."""
    here = ["train", str(folder / "data"), "--model", "resnet_micro", "--recipe", str(folder / "recipe.yaml")]
    return [*here, "--out", str(out), "--device", "cpu", "--workers", "0", "--resume"]


def start(folder: Path, out: Path) -> subprocess.Popen:
    """The command, in a process of its own."""
    with out.with_suffix(".said").open("a") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "glocal", *arguments(folder, out)],
            cwd=ROOT, stdout=said, stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def last_logged(out: Path) -> int:
    """The last step that has a row in metrics.csv."""
    if not (out / "metrics.csv").exists():
        return 0
    with open(out / "metrics.csv", newline="") as file:
        return max((int(row["step"]) for row in csv.DictReader(file)), default=0)


def last_saved(out: Path) -> int:
    """The last step that has a checkpoint."""
    return max((int(path.name[5:]) for path in (out / "checkpoints").glob("step-*")), default=0)


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def stop(folder: Path, out: Path, number: signal.Signals, moment: float) -> Stopped | None:
    """Start the command and signal it after some seconds; None if it had finished before."""
    process = start(folder, out)
    try:
        process.wait(moment)
        return None
    except subprocess.TimeoutExpired:
        pass
    # SIGINT's own handler, Python's, is there from the start; ours takes over both
    handled = handles(process.pid, signal.SIGTERM)
    sent = time.monotonic()
    process.send_signal(number)
    try:
        process.wait(2 * LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    seconds = time.monotonic() - sent
    said = out.with_suffix(".said").read_text()
    return Stopped(process.returncode, seconds, handled, last_logged(out), last_saved(out), said)


def wrong(found: Stopped, number: signal.Signals) -> list[str]:
    """What is not as asked."""
    faults = []
    if found.code != 75:
        faults.append(f"exit code {found.code}: {found.said[-300:]}")
    if found.seconds > LIMIT:
        faults.append(f"took {found.seconds:.1f} s")
    if found.logged != found.saved:
        faults.append(f"{found.logged - found.saved} steps lost: {found.logged} were done, {found.saved} are saved")
    if found.saved and f"Stopped by {number.name}: saved up to step {found.saved}" not in found.said:
        faults.append(f"does not say what is saved: {found.said[-300:]}")
    return faults


def resumes(folder: Path, out: Path, whole: Path) -> list[str]:
    """Resume a stopped run to its end: what is wrong."""
    code = forked.run(lambda: forked.command(*arguments(folder, out)), out.with_suffix(".said"))
    faults = [] if code == 0 else [f"did not resume ({code}): {out.with_suffix('.said').read_text()[-300:]}"]
    # one checkpoint more is right: that of the step it was stopped at, where it is among the newest
    return faults + [fault for fault in forked.differs(out, whole) if fault != "checkpoints differs"]


def main(num_signals: int = 20) -> None:
    """All of it, into docs/results/reliability.md."""
    start_ = time.monotonic()
    draw = random.Random(SEED)
    found: list[dict[str, Any]] = []
    too_late, too_early = 0, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder / "data")
        (folder / "recipe.yaml").write_text(RECIPE.to_yaml())
        whole = folder / "whole"
        began = time.time()
        process = start(folder, whole)
        assert process.wait(forked.LIMIT) == 0, whole.with_suffix(".said").read_text()
        took = (whole / "metrics.csv").stat().st_mtime - began  # to the last step
        steps = last_logged(whole)
        while len(found) < num_signals:
            i = len(found)
            out = folder / f"run{i}-{too_late}-{len(too_early)}"
            number = (signal.SIGTERM, signal.SIGINT)[i % 2]
            moment = draw.uniform(0, took)
            ended = stop(folder, out, number, moment)
            if ended is None or ended.logged == steps:  # it was faster this time: all steps were done
                too_late += 1
                continue
            faults = wrong(ended, number)
            if not ended.handled:
                too_early.append({"moment": moment, "code": ended.code, "signal": number.name, "logged": ended.logged})
                if ended.code < 0 or ended.code == 1 or ended.code == 130:
                    faults = resumes(folder, out, whole)
                    too_early[-1]["faults"] = faults
                    continue
            faults += resumes(folder, out, whole)
            found.append({
                "signal": number.name, "moment": round(moment, 2), "code": ended.code,
                "seconds": round(ended.seconds, 2), "step": ended.saved, "faults": faults,
            })  # fmt: skip
            shutil.rmtree(out, ignore_errors=True)
    good = sum(not one["faults"] for one in found)
    slowest = max(one["seconds"] for one in found)
    training = sum(one["step"] > 0 for one in found)
    record(
        "sigterm",
        what=f"SIGTERM and SIGINT, {num_signals} in turn at random moments from the start of `glocal train` to its "
        f"last step: exit code 75 within {LIMIT:.0f} s, no step lost, resumed bit-identically to an uninterrupted run",
        asked=f"{num_signals} of {num_signals}",
        found=f"{good} of {num_signals} ({training} in training, the others before), slowest {slowest:.1f} s",
        holds=good == num_signals,
        seed=SEED,
        seconds=time.monotonic() - start_,
        note=f"signals before our code runs end the process as usual, before the run starts; of the random moments "
        f"{len(too_early)} were that early, and {too_late} after the last step; they were replaced.",
        runs=found,
        before_our_code=too_early,
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
