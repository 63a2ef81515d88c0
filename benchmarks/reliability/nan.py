"""Inject NaN into ten runs: no file ever has one, the last good state is named, and skipping goes by its count.

python benchmarks/reliability/nan.py
"""

import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from benchmarks.reliability import forked
from benchmarks.reliability.record import record
from safetensors.torch import load_file
from torch import nn

from glocal.data.transforms import Normalize
from glocal.models import io
from glocal.tasks import ClassificationTask
from glocal.training import checkpoint
from glocal.training.trainer import Trainer

SEED = 0
STEPS = 12
SKIPS = 3
STOP = forked.SMALL.replace(epochs=4)
SKIP = STOP.replace(nan_skips=SKIPS)
PLACES = ("inputs", "gradients", "loss", "weights", "statistics")
LASTING = ("weights", "statistics")
"""Where a NaN stays: skipping the step does not help."""


def plant(place: str, steps: frozenset[int]) -> None:
    """NaN into this process, in steps counted from 0."""
    due = False
    next_batch, clip_gradients = Trainer._next_batch, Trainer._clip_gradients
    loss, forward = ClassificationTask.loss, Normalize.forward

    def with_batch(running: Any, batches: Any, part: int) -> Any:
        nonlocal due
        batch = next_batch(running, batches, part)
        due = running.state.step in steps
        if due and place == "weights":
            weight = next(running.model.parameters()).data
            weight[(0,) * weight.ndim] = math.nan
        if due and place == "statistics":
            norm = next(m for m in running.model.modules() if isinstance(m, nn.BatchNorm2d))
            assert norm.running_var is not None
            norm.running_var[0] = math.nan
        return batch

    def with_gradients(running: Any) -> float:
        if due and place == "gradients":
            running.optimizer.param_groups[0]["params"][-1].grad.view(-1)[0] = math.nan
        return clip_gradients(running)

    def with_loss(module: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return loss(module, *args, **kwargs) * (math.nan if due and place == "loss" else 1)

    def inputs(module: Any, x: torch.Tensor) -> torch.Tensor:
        x = forward(module, x)
        if due and place == "inputs" and torch.is_grad_enabled():  # and not in an evaluation after the step
            x[0, 0, 0, 0] = math.nan
        return x

    Trainer._next_batch, Trainer._clip_gradients = with_batch, with_gradients  # type: ignore[method-assign]
    ClassificationTask.loss, Normalize.forward = with_loss, inputs  # type: ignore[method-assign]


def guard(out: Path) -> None:
    """Look into every file of this process's run after each checkpoint, and say so where one is not finite."""
    save = checkpoint.Checkpointer.save

    def looked_at(self: Any, *args: Any) -> None:
        save(self, *args)
        for path in bad_files(out):
            print(f"NOT FINITE: {path}")

    checkpoint.Checkpointer.save = looked_at  # type: ignore[method-assign]


def bad_files(out: Path) -> list[str]:
    """Files of a run that hold a value that is not finite."""
    bad = [
        str(path)
        for path in out.rglob("*.safetensors")
        if not all(bool(torch.isfinite(t).all()) for t in load_file(path).values() if t.is_floating_point())
    ]
    for path in out.rglob("results.json"):
        if any(word in path.read_text() for word in ("NaN", "Infinity")):
            bad.append(str(path))
    return bad


def injected(
    out: Path, whole: Path, place: str, steps: frozenset[int], skip: bool, also: Callable[[], Any] = lambda: None
) -> list[str]:
    """A run with NaN in it, and the one that goes on from it: what is wrong."""
    recipe = SKIP if skip else STOP
    log = out.with_name(f"{out.name}.log")

    def job() -> None:
        plant(place, steps)
        guard(out)
        also()
        forked.train(out, recipe)

    code = forked.run(job, log)
    said = log.read_text()
    faults = [line for line in said.splitlines() if line.startswith("NOT FINITE")]
    faults += [f"not finite at the end: {path}" for path in bad_files(out)]
    if skip and place not in LASTING and len(steps) <= SKIPS:
        if code != 0:
            return [*faults, f"did not go on: {said[-400:]}"]
        results = json.loads((out / "results.json").read_text())
        if (results["nan_skips"], results["steps"]) != (len(steps), STEPS):
            faults.append(f"{results['nan_skips']} skips in {results['steps']} steps are in results.json")
    else:
        if "TrainingError" not in said:
            return [*faults, f"did not stop ({code}): {said[-400:]}"]
        newest = max((out / "checkpoints").glob("step-*"))
        if f"the last good state is {newest}" not in said:
            faults.append(f"{newest} is not named: {said[-400:]}")
        # without the fault it goes on, to the end of the run that had none
        if forked.run(lambda: forked.train(out, recipe), log):
            faults.append(f"did not go on from it: {log.read_text()[-400:]}")
        if place in LASTING or not skip:
            mine = [fault for fault in forked.differs(out, whole) if "results.json" not in fault or not skip]
            faults += mine
    shutil.rmtree(out)
    return faults


def unguarded() -> None:
    """The control: nothing is looked at before it is written."""
    checkpoint.all_finite = lambda _: True  # type: ignore[assignment]
    io.first_not_finite = lambda _: ""  # type: ignore[assignment]


def main() -> None:
    """All of it, into docs/results/reliability.md."""
    start = time.monotonic()
    draw = random.Random(SEED)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        whole = place / "whole"
        assert forked.run(lambda: forked.train(whole, STOP), place / "log") == 0, (place / "log").read_text()
        # from step 3 on there is a checkpoint to name
        cases = [(where, frozenset([draw.randrange(3, STEPS - 1)]), skip) for where in PLACES for skip in (False, True)]
        counted = [
            ("inputs", frozenset(draw.sample(range(3, STEPS), SKIPS)), True),
            ("loss", frozenset(draw.sample(range(3, STEPS), SKIPS + 1)), True),
        ]
        both = [*cases, *counted]
        found = forked.side_by_side(
            lambda i: injected(place / f"run{i}", whole, *both[i]), range(len(both)), place / "found"
        )
        control = injected(place / "control", whole, "statistics", frozenset([3]), False, unguarded)
    seen = any(fault.startswith("NOT FINITE") for fault in control)
    bad = {f"{c[0]} at {sorted(c[1])}, {'skip' if c[2] else 'stop'}": f for c, f in zip(both, found, strict=True) if f}
    good = sum(not faults for faults in found[: len(cases)])
    exact = not any(found[len(cases) :])
    record(
        "nan",
        what="NaN injected at a random step into inputs, gradients, loss, weights and BatchNorm statistics, policies "
        f"stop and skip (nan_skips={SKIPS}): no file ever contains a NaN, the last good state is named, the resumed "
        "run equals the uninterrupted one; skippable steps are skipped and counted",
        asked="10 of 10",
        found=f"{good} of {len(cases)}; {SKIPS} skips continue and {SKIPS + 1} stop: {'yes' if exact else 'no'}; "
        f"control without guards detected: {'yes' if seen else 'no'}",
        holds=good == len(cases) and exact and seen,
        seed=SEED,
        seconds=time.monotonic() - start,
        faults=bad,
    )


if __name__ == "__main__":
    main()
