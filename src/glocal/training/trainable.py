"""The interface between the training loop and a task; `glocal.tasks.Task` implements it."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import nn

from glocal.data import Skipped
from glocal.schema import Scores, TaskDescription
from glocal.training.config import TrainConfig
from glocal.training.loader import Batch, BatchDataset


@dataclass(frozen=True)
class Score:
    """An evaluation in numbers.

    Attributes:
        value: what the best checkpoint goes by, from 0 to 1, higher is better.
        loss: on the validation set; None where the task has none there.
        columns: entries of metrics.csv, by their names.
    """

    value: float
    loss: float | None = None
    columns: Mapping[str, float | None] = field(default_factory=dict)


class Trainable(Protocol):
    """The part of a task that the loop and the run folder use; `glocal.tasks.Task` adds the rest.

    Attributes:
        metric: what `Score.value` is, such as ``top1``.
        columns: of metrics.csv, those of `Score.columns`.
        needs_every_image: whether an unreadable validation image ends the run, whatever on_error says.
        config: how a model is trained.
    """

    metric: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    needs_every_image: bool
    config: TrainConfig

    @property
    @abstractmethod
    def skipped(self) -> Sequence[Skipped]:
        """Unusable files of the data, found before training."""

    @abstractmethod
    def datasets(self) -> tuple[BatchDataset, BatchDataset]:
        """Training set with the recipe's augmentation, and validation set without."""

    @abstractmethod
    def create_model(self) -> nn.Module:
        """The model: weights random from the seed or loaded, frozen as in the recipe."""

    @abstractmethod
    def count_macs(self, model: nn.Module) -> int:
        """Multiply-accumulates of a forward pass for one image."""

    @abstractmethod
    def to(self, device: Any) -> Any:
        """Bring the tensors of the task to a device."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean loss over the images of a batch that is on the model's device."""

    def has_unused_parameters(self, model: nn.Module, batch: Batch) -> bool:
        """Whether a step may leave a parameter without a gradient; DDP must know, and is slower then."""
        return True

    @abstractmethod
    def evaluate_batch(self, model: nn.Module, batch: Batch, device: torch.device) -> Any:
        """Outcomes of a batch: small and on the CPU, as they are gathered over processes.

        It calls the model once, also for a batch in which no image could be read: sharded parameters are gathered by
        all processes together.
        """

    @abstractmethod
    def join(self, parts: Sequence[Any]) -> Sized:
        """Outcomes of several batches, in their order, as those of one set; their length is the number of images."""

    @abstractmethod
    def score(self, outcomes: Any) -> Score:
        """The score of the output of `join` for the validation set, which has at least one image."""

    @abstractmethod
    def results(self, outcomes: Any) -> Scores:
        """All metrics, as JSON."""

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """What must not change before a resume, as JSON, beside the settings: the data."""

    @abstractmethod
    def about(self) -> TaskDescription:
        """For results.json, beside the metrics: classes, and numbers of images."""

    def notes(self) -> list[str]:
        """Messages for the user once the model is created."""
        return []

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a model of this task, as `glocal.models.io.load_model` reads it."""


@runtime_checkable
class TrainsItself(Protocol):
    """A classifier with a loss of its own, such as that of two heads."""

    def training_loss(
        self, x: torch.Tensor, target: torch.Tensor, criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """From (B, C, H, W) images, (B,) labels or (B, K) mixed targets, and the loss of (B, K) logits."""


def training_loss(
    model: nn.Module,
    x: torch.Tensor,
    target: torch.Tensor,
    criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The model's own loss where it has one, else that of its logits; arguments as in `TrainsItself`."""
    if isinstance(model, TrainsItself):
        return model.training_loss(x, target, criterion)
    return criterion(model(x), target)
