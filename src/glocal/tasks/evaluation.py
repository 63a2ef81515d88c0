"""A saved model evaluated on labelled images."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

import torch

from glocal.data import Skipped
from glocal.errors import GlocalError
from glocal.models.io import ModelConfig, SavedModel, TaskName
from glocal.tasks.base import Task
from glocal.tasks.classification import ClassificationTask
from glocal.tasks.detection import DetectionTask
from glocal.tasks.segmentation import SegmentationTask
from glocal.training.evaluation import evaluate_batches, refuse_bad

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
    """Metrics of a saved model on labelled images.

    Args:
        saved: the model.
        images: see `Task.eval_set`.
        device: where it runs.
        on_error: what to do with an image that went bad since it was checked.
        progress: is told how many images are done, of how many.
        take: is given the outcomes of each batch.

    Returns:
        JSON: ``images``, ``classes``, ``skipped`` and what `Task.results` has.

    Raises:
        GlocalError: for a class that the model does not know, or no image that can be read.
    """
    task = task_of(saved.config)
    data, parts, skipped, done = task.eval_set(images), [], list[Skipped](), 0
    with torch.no_grad():
        for part, batch in evaluate_batches(task, saved.model, data, device):
            if on_error == "stop":
                refuse_bad(batch)
            done += len(batch.labels) + len(batch.skipped)
            progress(done, len(data))
            skipped += batch.skipped
            parts.append(part)
            take(part)
    outcomes = task.join(parts)
    if not len(outcomes):
        raise GlocalError("data: no image can be read any more")
    return {
        "images": len(outcomes),
        "classes": list(task.classes),
        "skipped": [asdict(bad) for bad in skipped],
        **task.results(outcomes),
    }
