"""One run: a model made from its seed, trained, tested, and its record."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch

from glocal.comparison.run_tasks import RunTasks
from glocal.comparison.settings import Run, Settings
from glocal.comparison.store import Store
from glocal.errors import GlocalError
from glocal.schema import CurveRow, RecordedRun, RunIdentity, RunScores, SkippedImage
from glocal.tasks import Task
from glocal.training import Progress
from glocal.training.trainer import Trainer, TrainResult


class Runner:
    """Executes the runs of one comparison.

    Args:
        settings: of the comparison.
        tasks: of its runs; their data are loaded.
        macs: by model, of a forward pass for one image.
    """

    def __init__(self, settings: Settings, tasks: RunTasks, macs: Mapping[str, int]) -> None:
        self.settings, self.tasks, self.macs = settings, tasks, macs

    def execute(self, run: Run, store: Store, progress: Callable[[Progress], None]) -> RecordedRun:
        """Train and evaluate a model and write its record; a run that fails has a record too, which says why.

        Returns:
            The run's entry in the results, without what its model costs.
        """
        try:
            task = self.tasks.of_run(run)
            result = self._train(run, task, progress)
        except Exception as error:  # whatever goes wrong in one run, the others go on
            entry = failed_entry(run, reason_of(error))
            store.write(run.id, entry, lambda folder: None)
            return entry
        metric = self.settings.metric
        entry = self._entry(run, result, metric.entry(task, result.outcomes))

        def write_files(folder: Path) -> None:
            task.save(result.model, folder)
            metric.save(task, result.outcomes, folder)

        store.write(run.id, entry, write_files)
        return entry

    def _train(self, run: Run, task: Task, progress: Callable[[Progress], None]) -> TrainResult:
        model = task.create_model()
        macs = task.count_macs(model) if self.settings.mode == "probe" else self.macs[run.model]
        trainer = Trainer(task, task.config, self.settings.budget, macs=macs, progress=progress)
        return trainer.fit(model, *task.datasets())

    def _entry(self, run: Run, result: TrainResult, scores: RunScores) -> RecordedRun:
        return {
            **_identity(run, "ok"),
            **scores,
            "train_images_per_s": result.images_per_s,
            "budget": {
                "asked": str(self.settings.budget),
                "epochs": result.epochs,
                "steps": result.state.step,
                "seconds": result.state.trained,
                "flop": result.flop,
                "seconds_to_budget": result.state.wall,
            },
            "curve": [cast(CurveRow, dataclasses.asdict(point)) for point in result.state.curve],
            "skipped": [cast(SkippedImage, dataclasses.asdict(skipped)) for skipped in result.state.skipped],
            "weights": f"runs/{run.id}/model.safetensors",
        }


def failed_entry(run: Run, reason: str) -> RecordedRun:
    """The entry of a run that has no result."""
    return cast(RecordedRun, _identity(run, "failed", reason))


def has_finished(entry: RecordedRun | None) -> bool:
    """Whether a run has a result."""
    return entry is not None and entry["status"] == "ok"


def _identity(run: Run, status: str, error: str | None = None) -> RunIdentity:
    return {
        "id": run.id, "model": run.model, "seed": run.seed, "fraction": run.fraction, "status": status, "error": error
    }  # fmt: skip


def reason_of(error: Exception) -> str:
    """Why something failed, in a line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory; a smaller batch_size in the recipe or a smaller --image-size needs less"
    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, GlocalError) else f"{type(error).__name__}: {first}"
