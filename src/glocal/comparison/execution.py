"""One run: create a model from its seed, train and evaluate it, write its record."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from glocal.comparison.probe import ProbeTask
from glocal.comparison.run_tasks import RunTasks
from glocal.comparison.settings import ComparisonSettings, Run
from glocal.comparison.store import Store
from glocal.comparison.trials import trial_budget
from glocal.errors import GlocalError
from glocal.schema import CurveRow, RecordedRun, RunIdentity, RunScores, SkippedImage
from glocal.tasks import Task
from glocal.training import TrainingProgress
from glocal.training.trainer import CURVE_POINTS, Trainer, TrainResult


class Runner:
    """Executes the runs of one comparison.

    Args:
        settings: of the comparison.
        tasks: of its runs, with loaded data.
        macs: by model, of a forward pass for one image.
    """

    def __init__(self, settings: ComparisonSettings, tasks: RunTasks, macs: Mapping[str, int]) -> None:
        self.settings, self.tasks, self.macs = settings, tasks, macs

    def execute(
        self, run: Run, store: Store, progress: Callable[[TrainingProgress], None], until: float = 1.0
    ) -> RecordedRun:
        """Train and evaluate a model and write its record; a failed run has a record with the reason.

        A run that paused before goes on.

        Args:
            run: the run.
            store: where it is recorded.
            progress: called after each step.
            until: pause after this fraction of the budget.

        Returns:
            The run's entry in the results, without the costs of its model; that of a run that pauses is not in them.
        """
        try:
            task = self.tasks.of_run(run)
            result = self._train(run, task, store.checkpoint(run.id), until, progress)
        except Exception as error:  # a failed run does not stop the others
            entry = failed_entry(run, reason_of(error))
            store.write(run.id, entry, lambda folder: None)
            return entry
        metric = self.settings.metric
        entry = self._entry(run, result, metric.entry(task, result.outcomes))
        if run.rate is not None:  # of a trial the scores are enough
            store.write(run.id, entry, lambda folder: None)
            return entry

        def write_predictions(folder: Path) -> None:
            metric.save(task, result.outcomes, folder)

        if result.paused is not None:
            store.write_pause(run.id, until, entry, write_predictions, result.paused)
            return entry

        def write_files(folder: Path) -> None:
            task.save(result.model, folder)
            write_predictions(folder)

        store.write(run.id, entry, write_files)
        store.drop_checkpoint(run.id)
        return entry

    def _train(
        self,
        run: Run,
        task: Task,
        paused: Mapping[str, Any] | None,
        until: float,
        progress: Callable[[TrainingProgress], None],
    ) -> TrainResult:
        if isinstance(task, ProbeTask):
            return task.fit(progress)
        budget, points = self.settings.budget, CURVE_POINTS
        if run.rate is not None:
            budget, points = trial_budget(budget), 1
        trainer = Trainer(
            task, task.config, budget, macs=self.macs[run.model], resume=paused, until=until, curve_points=points,
            progress=progress,
        )  # fmt: skip
        return trainer.fit(task.create_model(), *task.datasets())

    def _entry(self, run: Run, result: TrainResult, scores: RunScores) -> RecordedRun:
        return {
            **_identity(run, "ok" if result.paused is None else "paused"),
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
    """Whether a run has a final result."""
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
