"""A comparison from request to results."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

import glocal
from glocal.bench import describe_environment
from glocal.comparison.costs import Costs, count_costs, time_inference
from glocal.comparison.execution import Runner, create_for
from glocal.comparison.processes import Event, run_side_by_side, share_cores
from glocal.comparison.settings import Run, Settings
from glocal.comparison.statistics import CONFIDENCE
from glocal.comparison.store import Store, open_store
from glocal.comparison.verdict import COSTS, judge, summarise
from glocal.data import DataSource
from glocal.training import CACHE_BYTES, Progress, load_pixels

SCHEMA = "glocal.compare/1"
Results = dict[str, Any]


class Observer(Protocol):
    """Is told what a comparison is doing, to show it."""

    def say(self, text: str) -> None:
        """A note for the user."""

    def start(self, run: Run, number: int, total: int) -> None:
        """Run ``number`` of ``total``, counted from 1, begins; others may be going."""

    def update(self, run: Run, progress: Progress) -> None:
        """After steps of the run."""

    def finish(self, run: Run, entry: Mapping[str, Any]) -> None:
        """The run has its record: ``entry`` of the results."""

    def publish(self, results: Results) -> None:
        """Results so far: after each run, and at the end, be it by an error or Ctrl-C."""


class _Silent:
    """Shows nothing."""

    def say(self, text: str) -> None: ...
    def start(self, run: Run, number: int, total: int) -> None: ...
    def update(self, run: Run, progress: Progress) -> None: ...
    def finish(self, run: Run, entry: Mapping[str, Any]) -> None: ...
    def publish(self, results: Results) -> None: ...


def compare(
    data: DataSource,
    settings: Settings,
    out: Path,
    *,
    resume: bool = False,
    side_by_side: bool = False,
    command: str = "glocal.comparison.compare",
    observer: Observer | None = None,
) -> Results:
    """Train and measure models under one recipe and budget and say which to take.

    Each finished run is a record in ``out`` that is there whole or not at all. After a stop, ``resume`` runs what is
    missing or failed; on a CPU, with a budget in epochs or FLOP, scores are the same as without the stop.

    Args:
        data: from `glocal.data.load_data`.
        settings: from `make_settings`.
        out: folder of the comparison.
        resume: go on with what is in ``out``; a folder without a comparison is begun.
        side_by_side: on a CPU, share its cores among runs, each in its own process; the calling script must then be
            safe to import (``if __name__ == "__main__"``).
        command: what to call this in the results.
        observer: is told of progress; by default nobody is.

    Returns:
        What ``results.json`` holds, see docs/results-schema.md.

    Raises:
        GlocalError: if a model cannot be made, or ``out`` cannot be used.
    """
    observer = observer or _Silent()
    plan = {"schema": "glocal.plan/1", "data": data.fingerprint, **settings.describe()}
    models = {name: create_for(name, settings, len(data.classes), seed=0) for name in settings.models}
    with open_store(out, plan, resume=resume) as store:
        side_by_side = side_by_side and settings.device == "cpu" and settings.mode != "probe"
        measured = _measure(models, settings, data, store, side_by_side, observer)
        entries = {run.id: entry for run in settings.runs() if (entry := store.record(run.id)) is not None}
        for run_id, reason in store.damaged.items():
            observer.say(f"The record of {run_id} is damaged ({reason}): it is run again.")
        every = list(settings.runs())
        missing = [run for run in every if entries.get(run.id, {}).get("status") != "ok"]
        results = _results(data, settings, store, entries, measured, command)
        if not missing:
            observer.publish(results)

        def tell(run: Run, event: Event) -> None:
            nonlocal results
            if event is None:
                observer.start(run, len(every) - len(missing) + missing.index(run) + 1, len(every))
            elif isinstance(event, Progress):
                observer.update(run, event)
            else:
                entries[run.id] = event
                observer.finish(run, event)
                results = _results(data, settings, store, entries, measured, command)
                observer.publish(results)

        if missing:
            _execute(missing, settings, data, store, measured, side_by_side, tell)
    return results


class _Measured(NamedTuple):
    """Costs by model, and how the cores are shared: ``jobs`` runs at a time with ``threads`` each."""

    costs: Costs
    jobs: int
    threads: int


def _measure(
    models: Mapping[str, Any],
    settings: Settings,
    data: DataSource,
    store: Store,
    side_by_side: bool,
    observer: Observer,
) -> _Measured:
    """Measure, or read what was measured: a run must have as many threads after a stop as before, to be the same."""
    saved = store.costs()
    if saved is not None:
        return _Measured(**saved)
    observer.say("Measuring parameters, multiply-accumulates, memory and speed side by side ...")
    costs = count_costs(models, settings)
    jobs, threads = 1, torch.get_num_threads()
    if side_by_side:
        machine = describe_environment()
        pixels = (len(data.train) + len(data.val)) * 3 * settings.image_size**2
        run_mib = max(cost["peak_memory_mib"] for cost in costs.values()) + min(pixels, 2 * CACHE_BYTES) / 2**20
        num_runs = len(list(settings.runs()))
        jobs, threads = share_cores(num_runs, machine["cores"], machine["memory_gib"] * 1024, run_mib)
    with _threads(threads):
        for name, times in time_inference(models, settings).items():
            costs[name] |= times
    measured = _Measured(costs, jobs, threads)
    store.save_costs(measured._asdict())
    return measured


def _execute(
    runs: Sequence[Run],
    settings: Settings,
    data: DataSource,
    store: Store,
    measured: _Measured,
    side_by_side: bool,
    tell: Callable[[Run, Event], None],
) -> None:
    load = partial(load_pixels, size=settings.image_size, crop_pct=settings.recipe.crop_pct)
    train_images, val_images = (load(part) for part in (data.train, data.val))
    macs = {name: cost["macs"] for name, cost in measured.costs.items()}
    runner = Runner(settings, data, train_images, val_images, macs)
    if side_by_side:
        run_side_by_side(runner, runs, store, measured.jobs, measured.threads, tell)
        return
    with _threads(measured.threads):
        for run in runs:
            tell(run, None)
            tell(run, runner.execute(run, store, partial(tell, run)))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Torch's threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pictures_of_mistakes(results: Results, data: DataSource) -> dict[str, Image.Image]:
    """The images that ``mistakes`` of the results name, by their key."""
    position = {path: i for i, path in enumerate(data.val.paths)}
    keys = {mistake["picture"] for run in results["runs"] for mistake in run["mistakes"]}
    return {key: data.val.image(position[key]) for key in sorted(keys)}


def _results(
    data: DataSource,
    settings: Settings,
    store: Store,
    entries: Mapping[str, Mapping[str, Any]],
    measured: _Measured,
    command: str,
) -> Results:
    runs, went_bad, right = [], [], {}
    for run in settings.runs():
        if run.id not in entries:
            continue
        entry = dict(entries[run.id])
        went_bad += entry.pop("skipped")
        runs.append(entry | {name: measured.costs[run.model][name] for name in COSTS})
        if entry["status"] == "ok":
            predictions = load_file(store.runs / run.id / "predictions.safetensors")
            right[run.id] = predictions["logits"].argmax(1) == predictions["labels"]
    summary = summarise(runs, right)
    described = settings.describe()
    del described["weights"]
    skipped = [{"path": s.path, "reason": s.reason} for s in data.skipped]
    skipped += [s for i, s in enumerate(went_bad) if s not in went_bad[:i]]
    num_classes = len(data.classes)
    return {
        "schema": SCHEMA,
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "glocal": glocal.__version__,
        "settings": {**described, "confidence": CONFIDENCE, "jobs": measured.jobs},
        "data": {
            "name": data.name,
            "classes": list(data.classes),
            "train": len(data.train),
            "val": len(data.val),
            "train_per_class": np.bincount(data.train.labels, minlength=num_classes).tolist(),
            "val_per_class": np.bincount(data.val.labels, minlength=num_classes).tolist(),
            "split": data.split,
            "fingerprint": data.fingerprint,
            "skipped": skipped,
            "warnings": list(data.warnings),
        },
        "runs": runs,
        "summary": summary,
        "verdict": judge(summary, runs, len(data.val), len(list(settings.runs()))),
        "environment": describe_environment(settings.device) | {"threads": measured.threads},
    }
