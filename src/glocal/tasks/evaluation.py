"""A saved model evaluated on labelled images."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from glocal.models.io import ModelConfig, SavedModel, TaskName
from glocal.tasks.base import Task
from glocal.tasks.classification import ClassificationTask
from glocal.tasks.detection import DetectionTask
from glocal.tasks.segmentation import SegmentationTask

TASKS: dict[TaskName, type[Task]] = {
    "classification": ClassificationTask,
    "detection": DetectionTask,
    "segmentation": SegmentationTask,
}


def task_of(config: ModelConfig) -> Task:
    """The task of a saved model."""
    return TASKS[config.task](config)


def evaluate(
    saved: SavedModel,
    images: Any,
    *,
    device: str = "cpu",
    on_error: Literal["stop", "skip"] = "stop",
    progress: Callable[[int, int], None] = lambda done, total: None,
    take: Callable[[Any], None] = lambda _: None,
) -> dict[str, Any]:
    """Metrics of a saved model on labelled images; arguments and errors as of `Task.evaluate`.

    Returns:
        JSON: ``images``, ``classes``, ``skipped`` and what `Task.results` has.
    """
    task = task_of(saved.config)
    outcomes, skipped = task.evaluate(
        saved.model, images, device=device, on_error=on_error, progress=progress, take=take
    )
    return {
        "images": len(outcomes),
        "classes": list(task.classes),
        "skipped": [asdict(bad) for bad in skipped],
        **task.results(outcomes),
    }
