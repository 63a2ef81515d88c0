"""One run: create a model from its seed, train and evaluate it, write its record."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch

from glocal.comparison.probe import ProbeTask
from glocal.comparison.run_tasks import RunTasks
from glocal.comparison.settings import ComparisonSettings, Run
from glocal.comparison.store import Store
from glocal.errors import GlocalError
from glocal.schema import CurveRow, RecordedRun, RunIdentity, RunScores, SkippedImage
from glocal.tasks import Task
from glocal.training import TrainingProgress
from glocal.training.trainer import Trainer, TrainResult


class Runner:
    """Executes the runs of one comparison.

    Args:
        settings: of the comparison.
        tasks: of its runs, with loaded data.
        macs: by model, of a forward pass for one image.
    """

    def __init__(self, settings: ComparisonSettings, tasks: RunTasks, macs: Mapping[str, int]) -> None:
        self.settings, self.tasks, self.macs = settings, tasks, macs

    def execute(self, run: Run, store: Store, progress: Callable[[TrainingProgress], None]) -> RecordedRun:
        """Train and evaluate a model and write its record; a failed run has a record with the reason.

        Returns:
            The run's entry in the results, without the costs of its model.
        """
        try:
            task = self.tasks.of_run(run)
            result = self._train(run, task, progress)
        except Exception as error:  # a failed run does not stop the others
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

    def _train(self, run: Run, task: Task, progress: Callable[[TrainingProgress], None]) -> TrainResult:
        if isinstance(task, ProbeTask):
            return task.fit(progress)
        trainer = Trainer(task, task.config, self.settings.budget, macs=self.macs[run.model], progress=progress)
        return trainer.fit(task.create_model(), *task.datasets())

    def _entry(self, run: Run, result: TrainResult, scores: RunScores) -> RecordedRun:
        return {
            **_identity(run, "ok"),
            **scores,
            "train_images_per_s": result.images_per_s,
            "budget": {
                "asked": self.settings.asked,
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
    """The entry of a failed run."""
    return cast(RecordedRun, _identity(run, "failed", reason))


def has_finished(entry: RecordedRun | None) -> bool:
    """Whether a run has a result."""
    return entry is not None and entry["status"] == "ok"


def _identity(run: Run, status: str, error: str | None = None) -> RunIdentity:
    return {
        "id": run.id, "model": run.model, "seed": run.seed, "fraction": run.fraction, "status": status, "error": error
    }  # fmt: skip


def reason_of(error: Exception) -> str:
    """The reason of a failure in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory; try a smaller batch_size in the recipe or a smaller --image-size"
    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, GlocalError) else f"{type(error).__name__}: {first}"
