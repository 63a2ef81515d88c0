"""The folder of a comparison: its plan, its lock, and an atomically written record of each finished run.

    OUT/plan.json                 the settings; those of a resumed comparison must be the same
    OUT/costs.json                parameters, MACs, speed and memory of each model, and what limits need beside them
    OUT/features/                 what a probe's classifier is given, by model; may be deleted
    OUT/runs/ID/record.json       scores and curve of a run, and the SHA-256 of the files beside it
    OUT/runs/ID/model.safetensors, config.json    loads by timm.create_model("local-dir:OUT/runs/ID", pretrained=True)
    OUT/runs/ID/predictions.safetensors           logits and labels of the validation images
    OUT/runs/ID/analysis.json                     analysis of the model, with --analyze
    OUT/runs/ID/test.json         predictions for the test images, of the chosen models (final_test.py)
    OUT/trials/ID/record.json     scores of a learning rate tried for a model
    OUT/paused/ID/DONE/           record and predictions of a run in a race at a fraction of its budget
    OUT/paused/ID/checkpoint/     where it goes on; may be deleted

A record is written under a temporary name and renamed when it is complete on disk.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from glocal.errors import CheckpointError, GlocalError, short
from glocal.files import atomic_write_text, sha256
from glocal.run_dir import agree_on_plan, clean, hold_folder, refuse_existing, remove, replacing
from glocal.schema import ModelAnalysis, Record, RecordedRun
from glocal.training.checkpoint import load_checkpoint, save_checkpoint
from glocal.training.config import upgraded

PLAN, COSTS, RECORD, ANALYSIS, FEATURES = "plan.json", "costs.json", "record.json", "analysis.json", "features"
CHECKPOINT = "checkpoint"
ANALYSIS_SCHEMA = "glocal.compare.analysis/1"
COSTS_HOLD = ("costs", "jobs", "threads")
DEPLOYMENT = "deployment"
"""Further key of the costs: those in a runtime, once a limit has needed them."""


class Store:
    """A comparison's folder, held by this process; see `open_store`."""

    def __init__(self, out: Path, runs: str = "runs") -> None:
        self.out = out
        self.runs, self.paused = out / runs, out / "paused"
        self.damaged: dict[str, str] = {}
        """Runs with a damaged record, with the reason."""
        self.damaged_analyses: dict[str, str] = {}
        """Likewise, with a damaged analysis."""

    @property
    def trials(self) -> "Store":
        """The trials of the comparison, by the names of their runs."""
        return Store(self.out, "trials")

    def record(self, run_id: str) -> RecordedRun | None:
        """The record of a run; None if it is missing or damaged."""
        return self._record(self.runs / run_id, run_id)

    def write(self, run_id: str, run: RecordedRun, write_files: Callable[[Path], None]) -> None:
        """Write a record atomically, replacing an earlier one of the same run.

        Args:
            run_id: name of its folder.
            run: its entry in the results.
            write_files: writes the other files into the folder it is given.

        Raises:
            GlocalError: if it cannot be written, for example on a full disk; the folder is then unchanged.
        """
        self._write(run_id, self.runs / run_id, run, write_files)

    def at(self, run_id: str, done: float) -> Path:
        """Folder of a paused run."""
        return self.paused / run_id / f"{done:g}"

    def pause(self, run_id: str, done: float) -> RecordedRun | None:
        """The record of a run at a fraction of its budget; None if it is missing or damaged."""
        return self._record(self.at(run_id, done), run_id)

    def write_pause(
        self, run_id: str, done: float, run: RecordedRun, write_files: Callable[[Path], None], state: Mapping[str, Any]
    ) -> None:
        """Write where a run goes on, then its record at a fraction of its budget, each atomically.

        Raises:
            GlocalError: as for `write`.
        """
        try:
            save_checkpoint(self.paused / run_id / CHECKPOINT, state)
        except OSError as error:
            raise GlocalError(f"out: cannot write a checkpoint of {run_id} to {self.paused} ({error})") from error
        self._write(run_id, self.at(run_id, done), run, write_files)

    def checkpoint(self, run_id: str) -> dict[str, Any] | None:
        """Where a paused run goes on; None if it is missing or damaged, so that it starts again."""
        path = self.paused / run_id / CHECKPOINT
        try:
            return load_checkpoint(path) if path.exists() else None
        except CheckpointError:
            return None

    def drop_checkpoint(self, run_id: str) -> None:
        """Delete where a run goes on."""
        remove(self.paused / run_id / CHECKPOINT)

    def _record(self, folder: Path, run_id: str) -> RecordedRun | None:
        if not folder.exists():
            return None
        try:
            record: Record = json.loads((folder / RECORD).read_text())
            for name, digest in record["files"].items():
                if sha256(folder / name) != digest:
                    raise ValueError(f"{name} has changed")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            self.damaged[run_id] = str(error)
            return None
        return record["run"]

    def _write(self, run_id: str, path: Path, run: RecordedRun, write_files: Callable[[Path], None]) -> None:
        try:
            with replacing(path) as folder:
                write_files(folder)
                files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
                record: Record = {"run": run, "files": files}
                (folder / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False))
        except (OSError, SafetensorError) as error:  # safetensors raises its own error on a full disk
            raise GlocalError(f"out: cannot write the record of {run_id} to {path.parent} ({error})") from error

    def analysis(self, run_id: str) -> ModelAnalysis | None:
        """The saved analysis of a run; None if it is missing or damaged."""
        file = self.runs / run_id / ANALYSIS
        if not file.exists():
            return None
        try:
            kept = json.loads(file.read_text())
            if kept["schema"] != ANALYSIS_SCHEMA:
                raise ValueError(f"expected schema {ANALYSIS_SCHEMA}, got {short(kept['schema'])}")
            return kept["analysis"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.damaged_analyses[run_id] = str(error)
            return None

    def save_analysis(self, run_id: str, analysis: ModelAnalysis) -> None:
        """Save the analysis of a run in its folder."""
        kept = {"schema": ANALYSIS_SCHEMA, "analysis": analysis}
        atomic_write_text(self.runs / run_id / ANALYSIS, json.dumps(kept, indent=1, allow_nan=False))

    def costs(self) -> dict[str, Any] | None:
        """The saved costs, or None.

        Raises:
            GlocalError: if the file is damaged.
        """
        path = self.out / COSTS
        if not path.exists():
            return None
        try:
            costs = json.loads(path.read_text())
            if not isinstance(costs, dict) or set(costs) - {DEPLOYMENT} != set(COSTS_HOLD):
                raise ValueError(f"expected an object of {', '.join(COSTS_HOLD)}")
        except ValueError as error:
            raise GlocalError(f"out: {path} is damaged ({error}); remove it: costs are then measured again") from error
        return costs

    def save_costs(self, costs: Mapping[str, Any]) -> None:
        """Save the costs, so that a resumed comparison does not measure again."""
        atomic_write_text(self.out / COSTS, json.dumps(costs, indent=1))


@contextmanager
def open_store(out: Path, plan: Mapping[str, Any], *, resume: bool) -> Iterator[Store]:
    """Context that holds the folder of a comparison, for one process at a time.

    A new or empty folder gets the plan. One with a plan is continued if ``resume`` is set and the plan is the same.

    Raises:
        GlocalError: for a folder that is not writable, is in use, has a comparison while ``resume`` is not set, or
            was started with another plan; the differences are listed.
    """
    with hold_folder(out):
        path, store = out / PLAN, Store(out)
        if not path.exists() and store.runs.exists() and any(store.runs.iterdir()):
            raise GlocalError(f"out: {out} has runs but no {PLAN}; choose another --out")
        if path.exists() and not resume:
            refuse_existing(out, "a comparison")
        agree_on_plan(path, plan, upgrade=upgraded)
        store.runs.mkdir(exist_ok=True)
        for records in (store.runs, store.trials.runs):
            clean(records)
        for folder in store.paused.glob("*"):
            clean(folder)
        clean(out / FEATURES)
        clean(out)
        yield store
