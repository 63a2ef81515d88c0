"""`Task`: what a model is trained and evaluated for. Classification, detection and segmentation are the three."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import nn

from glocal.data import Skipped
from glocal.errors import GlocalError, nearest
from glocal.files import printable
from glocal.models.io import ModelConfig, TaskName, save_model
from glocal.schema import ImageCounts, TaskDescription
from glocal.training.config import TrainConfig
from glocal.training.loader import BatchDataset
from glocal.training.trainable import Trainable


class Task(nn.Module, Trainable):
    """Datasets, model, loss, evaluation and saving; every command uses the same object.

    A module, so that its tensors go to the device; it has no parameters. What a loop asks of it is documented in
    `Trainable`.

    Args:
        model_config: classes, preprocessing and head, saved beside the weights.
        config: how a model is trained.
        data: training and validation images; None for a task that only evaluates or predicts.
    """

    name: ClassVar[TaskName]

    def __init__(self, model_config: ModelConfig, config: TrainConfig = TrainConfig(), data: Any = None) -> None:  # noqa: B008
        super().__init__()
        self.model_config, self.config, self.data = model_config, config, data

    @classmethod
    @abstractmethod
    def for_data(cls, data: Any, config: TrainConfig) -> Self:
        """The task of training a model on a data source.

        Raises:
            GlocalError: for a model, head or setting that the task or the data do not allow.
        """

    @abstractmethod
    def eval_set(self, images: Any) -> BatchDataset:
        """Labelled images to evaluate a saved model on; their classes are found among the model's by name."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of labels."""
        return self.model_config.classes

    @property
    def skipped(self) -> Sequence[Skipped]:
        """None for a task without data."""
        return () if self.data is None else self.data.skipped

    def plan(self) -> dict[str, Any]:
        """The data."""
        data = self.data
        return {"data": {"fingerprint": data.fingerprint, "classes": list(data.classes), "images": len(data.train)}}

    def about(self) -> TaskDescription:
        """Classes, and how many images there are."""
        data = self.data
        counts: ImageCounts = {"train": len(data.train), "val": len(data.val), "skipped": len(data.skipped)}
        return {"classes": list(self.classes), "images": counts}

    def save(self, model: nn.Module, folder: Path) -> None:
        """With its configuration."""
        save_model(model, folder, self.model_config)


def labels_in_model(known: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The label that each class of a data set has among the classes that a model knows, by name.

    Raises:
        GlocalError: naming those that the model does not know.
    """
    of_model = {name: label for label, name in enumerate(known)}
    if unknown := [name for name in classes if name not in of_model]:
        shown = "; ".join(f"{printable(name)}{printable(nearest(name, known))}" for name in unknown[:5])
        more = f"; and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise GlocalError(
            f"data: expected classes that the model knows, got {shown}{more}; rename them, or leave them out. "
            f"It knows {', '.join(map(printable, known[:10]))}{' ...' if len(known) > 10 else ''}"
        )
    return [of_model[name] for name in classes]
