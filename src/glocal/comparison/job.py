"""A comparison from request to results."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

import glocal
from glocal.bench import describe_environment
from glocal.comparison.costs import measure_costs
from glocal.comparison.creation import create
from glocal.comparison.execution import Runner
from glocal.comparison.settings import Run, Settings
from glocal.comparison.statistics import CONFIDENCE
from glocal.comparison.store import Store, open_store
from glocal.comparison.verdict import COSTS, judge, summarise
from glocal.data import DataSource
from glocal.training import Progress, load_pixels

SCHEMA = "glocal.compare/1"
Results = dict[str, Any]


class Observer(Protocol):
    """Is told what a comparison is doing, to show it."""

    def say(self, text: str) -> None:
        """A note for the user."""

    def start(self, run: Run, number: int, total: int) -> None:
        """Run ``number`` of ``total``, counted from 1, begins."""

    def update(self, progress: Progress) -> None:
        """After each step of the run."""

    def finish(self, run: Run, entry: Mapping[str, Any]) -> None:
        """The run has its record: ``entry`` of the results."""

    def publish(self, results: Results) -> None:
        """Results so far: after each run, and at the end, be it by an error or Ctrl-C."""


class _Silent:
    """Shows nothing."""

    def say(self, text: str) -> None: ...
    def start(self, run: Run, number: int, total: int) -> None: ...
    def update(self, progress: Progress) -> None: ...
    def finish(self, run: Run, entry: Mapping[str, Any]) -> None: ...
    def publish(self, results: Results) -> None: ...


def compare(
    data: DataSource,
    settings: Settings,
    out: Path,
    *,
    resume: bool = False,
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
        command: what to call this in the results.
        observer: is told of progress; by default nobody is.

    Returns:
        What ``results.json`` holds, see docs/results-schema.md.

    Raises:
        GlocalError: if a model cannot be made, or ``out`` cannot be used.
    """
    observer = observer or _Silent()
    plan = {"schema": "glocal.plan/1", "data": data.fingerprint, **settings.describe()}
    models = {name: create(name, settings, len(data.classes), seed=0) for name in settings.models}
    with open_store(out, plan, resume=resume) as store:
        costs = store.costs()
        if costs is None:
            observer.say("Measuring parameters, multiply-accumulates, speed and memory side by side ...")
            costs = measure_costs(models, settings)
            store.save_costs(costs)
        entries = {run.id: entry for run in settings.runs() if (entry := store.record(run.id)) is not None}
        for run_id, reason in store.damaged.items():
            observer.say(f"The record of {run_id} is damaged ({reason}): it is run again.")
        missing = [run for run in settings.runs() if entries.get(run.id, {}).get("status") != "ok"]
        try:
            if missing:
                observer.say("Reading images ...")
                images = [load_pixels(part, settings.image_size) for part in (data.train, data.val)]
                runner = Runner(settings, data, images[0], images[1], {name: costs[name]["macs"] for name in costs})
            total = len(list(settings.runs()))
            for run in missing:
                observer.start(run, total - len(missing) + missing.index(run) + 1, total)
                entries[run.id] = runner.execute(run, store, observer.update)
                observer.finish(run, entries[run.id])
                observer.publish(_results(data, settings, store, entries, costs, command))
        finally:
            results = _results(data, settings, store, entries, costs, command)
            observer.publish(results)
    return results


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
    costs: Mapping[str, Mapping[str, Any]],
    command: str,
) -> Results:
    runs, went_bad, right = [], [], {}
    for run in settings.runs():
        if run.id not in entries:
            continue
        entry = dict(entries[run.id])
        went_bad += entry.pop("skipped")
        runs.append(entry | {name: costs[run.model][name] for name in COSTS})
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
        "settings": {**described, "confidence": CONFIDENCE},
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
        "environment": describe_environment(settings.device),
    }
