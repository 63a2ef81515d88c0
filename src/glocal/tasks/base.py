"""`Task`: what a model is trained and evaluated for. Classification, detection and segmentation are the three."""

from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from glocal.data import Skipped
from glocal.errors import GlocalError, nearest
from glocal.models.io import ModelConfig, TaskName, save_model
from glocal.schema import ImageCounts, Scores, TaskDescription
from glocal.training.config import TrainConfig
from glocal.training.evaluation import evaluate_batches, refuse_bad
from glocal.training.loader import Batch, BatchDataset
from glocal.training.trainable import Score

__all__ = ["Score", "Task"]


class Task(nn.Module):
    """Data sets, model, loss, evaluation, and what is saved; every command uses the same object.

    A module, so that its tensors go to the device; it has no parameters.

    Attributes:
        name: ``classification``, ``detection`` or ``segmentation``.
        metric: what `Score.value` is, such as ``top1``.
        columns: of metrics.csv, those of `Score.columns`.
        needs_every_image: whether a validation image that cannot be read ends the run, whatever was asked for.

    Args:
        model_config: classes, preprocessing, head: what is saved beside the weights.
        config: how a model is trained.
        data: training and validation images; None for a task that only evaluates or predicts.
    """

    name: ClassVar[TaskName]
    metric: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    needs_every_image: bool = False

    def __init__(self, model_config: ModelConfig, config: TrainConfig = TrainConfig(), data: Any = None) -> None:  # noqa: B008
        super().__init__()
        self.model_config, self.config, self.data = model_config, config, data

    @classmethod
    def for_data(cls, data: Any, config: TrainConfig) -> Self:
        """The task of training a model on a data source.

        Raises:
            GlocalError: for a model, head or setting that the task or the data do not allow.
        """
        raise NotImplementedError

    # Data sets and model.

    def datasets(self) -> tuple[BatchDataset, BatchDataset]:
        """Training images as the recipe augments them, and validation images as they are."""
        raise NotImplementedError

    def eval_set(self, images: Any) -> BatchDataset:
        """Labelled images to evaluate a saved model on; their classes are found among the model's by name."""
        raise NotImplementedError

    def create_model(self) -> nn.Module:
        """The model: its weights drawn from the seed or loaded, and frozen as the recipe says."""
        raise NotImplementedError

    def count_macs(self, model: nn.Module) -> int:
        """Multiply-accumulates of a forward pass for one image."""
        raise NotImplementedError

    # Training.

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean loss over the images of a batch that is on the model's device."""
        raise NotImplementedError

    def has_unused_parameters(self, model: nn.Module, batch: Batch) -> bool:
        """Whether a step may leave a parameter without a gradient; DDP must know, and is slower then."""
        return True

    # Evaluation.

    def evaluate_batch(self, model: nn.Module, batch: Batch, device: torch.device) -> Any:
        """Outcomes of a batch: small, on the CPU, as they go from process to process.

        It calls the model once, also for a batch in which no image could be read: sharded parameters are gathered by
        all processes together.
        """
        raise NotImplementedError

    def join(self, parts: Sequence[Any]) -> Sized:
        """Outcomes of several batches, in their order, as those of one set; their length is the number of images."""
        raise NotImplementedError

    def score(self, outcomes: Any) -> Score:
        """Of what `join` gave for the validation set, which has at least one image."""
        raise NotImplementedError

    def results(self, outcomes: Any) -> Scores:
        """All metrics, as JSON."""
        raise NotImplementedError

    def evaluate(
        self,
        model: nn.Module,
        images: Any,
        *,
        device: str = "cpu",
        on_error: Literal["stop", "skip"] = "stop",
        progress: Callable[[int, int], None] = lambda done, total: None,
        take: Callable[[Any], None] = lambda _: None,
    ) -> tuple[Any, list[Skipped]]:
        """Evaluate a model on labelled images.

        Args:
            model: of this task's `model_config`.
            images: see `eval_set`.
            device: where it runs.
            on_error: what to do with an image that went bad since it was checked.
            progress: is told how many images are done, of how many.
            take: is given the outcomes of each batch.

        Returns:
            Outcomes, and images that were left out.

        Raises:
            GlocalError: for a class that the model does not know, or no image that can be read.
        """
        data, parts, skipped, done = self.eval_set(images), [], list[Skipped](), 0
        with torch.no_grad():
            for part, batch in evaluate_batches(self, model, data, device):
                if on_error == "stop":
                    refuse_bad(batch)
                done += len(batch.labels) + len(batch.skipped)
                progress(done, len(data))
                skipped += batch.skipped
                parts.append(part)
                take(part)
        outcomes = self.join(parts)
        if not len(outcomes):
            raise GlocalError("data: no image can be read any more")
        return outcomes, skipped

    # What is saved.

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of labels."""
        return self.model_config.classes

    @property
    def skipped(self) -> Sequence[Skipped]:
        """Files of the data that could not be used from the start."""
        return () if self.data is None else self.data.skipped

    def plan(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed, as JSON, beside the settings: the data."""
        data = self.data
        return {
            "data": {"fingerprint": data.fingerprint, "classes": list(data.classes), "images": len(data.train)},
        }

    def about(self) -> TaskDescription:
        """For results.json, beside the metrics: classes, and how many images there are."""
        data = self.data
        counts: ImageCounts = {"train": len(data.train), "val": len(data.val), "skipped": len(data.skipped)}
        return {"classes": list(self.classes), "images": counts}

    def notes(self) -> list[str]:
        """What to tell the user once the model is made."""
        return []

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a model of this task, as `glocal.models.io.load_model` reads it."""
        save_model(model, folder, self.model_config)


def labels_in_model(config: ModelConfig, classes: Sequence[str]) -> list[int]:
    """The label that each class of a data set has in a model, by name.

    Raises:
        GlocalError: for a class that the model does not know.
    """
    of_model = {name: label for label, name in enumerate(config.classes)}
    if unknown := [name for name in classes if name not in of_model]:
        raise GlocalError(
            f"data: expected classes of the model, got {len(unknown)} others: {', '.join(map(repr, unknown[:3]))}"
            f"{nearest(unknown[0], of_model)}; the model knows {', '.join(config.classes[:10])}"
            + (" ..." if len(config.classes) > 10 else "")
        )
    return [of_model[name] for name in classes]
