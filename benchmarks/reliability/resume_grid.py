"""Kill a run at every fifth batch of an epoch, with 0 and 2 workers, and resume it: the same images, the same weights.

    python benchmarks/reliability/resume_grid.py

The recipe has everything that draws. Checkpoints are rare, so that after a kill steps are done again.
"""

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from benchmarks.reliability import forked, watched
from benchmarks.reliability.kill import die
from benchmarks.reliability.record import record
from tests.shapes import data_source

from glocal.training import loader, trainer

IMAGES, BATCHES, EPOCHS, EVERY = 120, 30, 2, 7
HARD = forked.SMALL.replace(
    epochs=EPOCHS, batch_size=IMAGES // BATCHES, augment="randaugment", mixup=0.2, cutmix=1.0, ema=0.9,
    grad_accum_steps=2, layer_decay=0.8, class_balance=0.5, checkpoint_every_steps=EVERY, log_every_steps=5,
)  # fmt: skip

Order = dict[int, list[dict[str, Any]]]
"""By step: its parts."""


def job(out: Path, log: Path, workers: int, stop: int = 0, plant: Callable[[], Any] = lambda: None) -> Any:
    """A run of the grid, killed at the end of a step, before that could be saved."""

    def work() -> None:
        plant()
        watched.watch(log)
        if stop:
            took_step = trainer.Trainer._took_step
            trainer.Trainer._took_step = lambda self, *step: (  # type: ignore[method-assign]
                die() if self.state.step == stop else took_step(self, *step)
            )
        forked.train(out, HARD, data_source(IMAGES, 30), num_workers=workers)

    return work


def order(lines: list[dict[str, Any]], first: int = 0) -> Order:
    """The parts of each step; steps must follow each other, and each has all its parts."""
    found: Order = {}
    for line in lines:
        found.setdefault(line["step"], []).append({key: line[key] for key in ("seeds", "pixels")})
    assert list(found) == list(range(first, first + len(found))), list(found)
    return found


def covers_each_epoch(found: Order, seed: int = 0) -> bool:
    """Whether each epoch has every image exactly once."""
    for epoch in range(EPOCHS):
        names = watched.drawn(seed, epoch, IMAGES)
        steps = range(epoch * BATCHES, (epoch + 1) * BATCHES)
        seen = [names.get(number, -1) for step in steps for part in found[step] for number in part["seeds"]]
        if sorted(seen) != list(range(IMAGES)):
            return False
    return True


def resumed(
    out: Path, whole: Path, expected: Order, workers: int, stop: int, plant: Callable[[], Any] = lambda: None
) -> tuple[float, list[str]]:
    """Kill and resume a run: seconds that its folder was held, and what is wrong."""
    said, first, second = (out.with_name(f"{out.name}.{name}") for name in ("log", "first", "second"))
    pid = forked.fork(job(out, first, workers, stop, plant), said)
    if (code := forked.wait(pid)) != -signal.SIGKILL:
        return 0.0, [f"was not killed ({code}): {said.read_text()[-300:]}"]
    began = time.monotonic()
    held = 0.0
    while (code := forked.run(job(out, second, workers, 0, plant), said)) and held < 60:
        if "is in use" not in said.read_text():  # by workers, who notice within seconds that they have no parent
            break
        held = time.monotonic() - began
        said.write_text("")
        time.sleep(0.2)
    faults = [] if code == 0 else [f"did not resume ({code}): {said.read_text()[-300:]}"]
    before, after = watched.read(first), watched.read(second)
    start = max(step for step in range(stop) if step % EVERY == 0 or step % BATCHES == 0)
    try:
        done, again = order(before), order(after, start)
        if len(done) != stop or any(done[step] != expected[step] for step in done):
            faults.append("before the kill other images were trained on")
        if any(again[step] != expected[step] for step in again) or len(again) + start != len(expected):
            faults.append("after it other images were trained on")
        if not covers_each_epoch({**done, **again}):
            faults.append("an epoch has not every image exactly once")
    except (AssertionError, KeyError) as error:
        faults.append(f"steps: {error}")
    faults += forked.differs(out, whole)
    shutil.rmtree(out, ignore_errors=True)
    return held, faults


def forgets_its_place() -> None:
    """A planted fault: a resumed run begins the epoch anew."""
    make = trainer.training_loader
    trainer.training_loader = lambda *args, **kwargs: make(*args, **{**kwargs, "start": 0})  # type: ignore[assignment]


def asks_its_workers() -> None:
    """A planted fault: augmentation depends on the process that reads."""
    draw = loader.draws

    def drawn(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        return draw(seed + (0 if worker is None else 1 + worker.id), epoch, indices)

    loader.draws = drawn  # type: ignore[assignment]


def unbroken(folder: Path) -> tuple[Path, Order]:
    """The run that nobody kills, without workers."""
    whole, log = folder / "whole", folder / "whole.order"
    code = forked.run(job(whole, log, 0), folder / "whole.log")
    assert code == 0, (folder / "whole.log").read_text()
    return whole, order(watched.read(log))


def main() -> None:
    """All of it, into docs/results/reliability.md."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, expected = unbroken(folder)
        once = covers_each_epoch(expected)
        cases = [(workers, stop) for workers in (0, 2) for stop in range(5, BATCHES + 1, 5)]
        found = forked.side_by_side(
            lambda case: resumed(folder / f"w{case[0]}s{case[1]}", whole, expected, *case), cases, folder / "found"
        )
        controls = {
            plant.__name__: bool(resumed(folder / plant.__name__, whole, expected, 2, 10, plant)[1])
            for plant in (forgets_its_place, asks_its_workers)
        }
    bad = {f"{workers} workers, batch {stop}": f for (workers, stop), (_, f) in zip(cases, found, strict=True) if f}
    record(
        "resume-grid",
        what=f"killed at every fifth of the {BATCHES} batches of an epoch, with 0 and with 2 workers, all random "
        "augmentation on: final weights bit-identical, every image exactly once per epoch, the same pixels in the "
        "same order",
        asked=f"{len(cases)} of {len(cases)}",
        found=f"{len(cases) - len(bad)} of {len(cases)}; planted faults detected: {sum(controls.values())} of "
        f"{len(controls)}",
        holds=not bad and once and all(controls.values()),
        seed=0,
        seconds=time.monotonic() - start,
        faults=bad,
        controls=controls,
        folder_held_s=max(held for held, _ in found),
    )


if __name__ == "__main__":
    main()
