"""One run: a model made from its seed, trained, tested, and its record."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from glocal.comparison.settings import Run, Settings
from glocal.comparison.store import Store
from glocal.comparison.task import ComparedTask
from glocal.errors import GlocalError
from glocal.training import HardwareConfig, Progress
from glocal.training.trainer import Trainer, TrainResult


class Runner:
    """Executes the runs of one comparison.

    Args:
        settings: of the comparison.
        task: what is compared; its data are loaded.
        macs: by model, of a forward pass for one image.
    """

    def __init__(self, settings: Settings, task: ComparedTask, macs: Mapping[str, int]) -> None:
        self.settings, self.task, self.macs = settings, task, macs

    def execute(self, run: Run, store: Store, progress: Callable[[Progress], None]) -> dict[str, Any]:
        """Train and test a model and write its record; a run that fails has a record too, which says why.

        Returns:
            The run's entry in the results, without what its model costs.
        """
        try:
            result = self._train(run, progress)
        except Exception as error:  # whatever goes wrong in one run, the others go on
            entry = failed_entry(run, reason_of(error))
            store.write(run.id, entry, lambda folder: None)
        else:
            entry = self._entry(run, result)
            store.write(run.id, entry, lambda folder: self.task.write_files(run, result, folder))
        return entry

    def _train(self, run: Run, progress: Callable[[Progress], None]) -> TrainResult:
        settings = self.settings
        setup = self.task.setup(run, self.macs[run.model])
        trainer = Trainer(
            setup.objective,
            settings.recipe,
            settings.budget,
            seed=run.seed,
            macs=setup.macs,
            hardware=HardwareConfig(settings.device),
            on_error=settings.on_error,
            progress=progress,
        )
        result = trainer.fit(setup.model, setup.learned, setup.tested)
        return result if setup.whole is None else dataclasses.replace(result, model=setup.whole.cpu().eval())

    def _entry(self, run: Run, result: TrainResult) -> dict[str, Any]:
        scores = self.task.entry(run, result)
        return {
            **_identity(run),
            "status": "ok",
            "error": None,
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
            "curve": [dataclasses.asdict(point) for point in result.state.curve],
            "skipped": [dataclasses.asdict(skipped) for skipped in result.state.skipped],
            "weights": f"runs/{run.id}/model.safetensors",
        }


def failed_entry(run: Run, reason: str) -> dict[str, Any]:
    """The entry of a run that has no result."""
    return _identity(run) | {"status": "failed", "error": reason}


def _identity(run: Run) -> dict[str, Any]:
    return {"id": run.id, "model": run.model, "seed": run.seed, "fraction": run.fraction}


def reason_of(error: Exception) -> str:
    """Why something failed, in a line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory; a smaller batch_size in the recipe or a smaller --image-size needs less"
    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, GlocalError) else f"{type(error).__name__}: {first}"
