"""Classification, detection and segmentation: each a `Task`, which every command uses."""

from dataclasses import asdict
from typing import Any

from glocal.models.io import ModelConfig, SavedModel, TaskName
from glocal.tasks.base import Task
from glocal.tasks.classification import ClassificationTask
from glocal.tasks.detection import DetectionTask
from glocal.tasks.heads import read_options
from glocal.tasks.segmentation import SegmentationTask
from glocal.training.loader import evaluation_loader

__all__ = [
    "TASKS",
    "ClassificationTask",
    "DetectionTask",
    "SegmentationTask",
    "Task",
    "evaluate",
    "read_options",
    "task_of",
]

TASKS: dict[TaskName, type[Task]] = {
    "classification": ClassificationTask,
    "detection": DetectionTask,
    "segmentation": SegmentationTask,
}


def task_of(config: ModelConfig) -> Task:
    """The task of a saved model."""
    return TASKS[config.task](config)


def evaluate(saved: SavedModel, images: Any, **options: Any) -> dict[str, Any]:
    """Metrics of a saved model on labelled images.

    Args:
        saved: the model.
        images: see `Task.eval_set`.
        options: those of `Task.evaluate`.

    Returns:
        JSON: ``images``, ``classes``, ``skipped`` and what `Task.results` has.

    Raises:
        GlocalError: for a class that the model does not know, or as `Task.evaluate`.
    """
    task = task_of(saved.config)
    data = task.eval_set(images)
    outcomes, skipped = task.evaluate(saved.model, evaluation_loader(data), len(data), **options)
    return {
        "images": len(outcomes),
        "classes": list(task.classes),
        "skipped": [asdict(bad) for bad in skipped],
        **task.results(outcomes),
    }
