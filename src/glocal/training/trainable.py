"""What the training loop asks of a task; `glocal.tasks.Task` is what it gets."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

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
    """The part of a task that a loop and a run's folder use; see `glocal.tasks.Task`."""

    metric: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    needs_every_image: bool
    config: TrainConfig

    def to(self, device: Any) -> Any: ...
    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor: ...
    def has_unused_parameters(self, model: nn.Module, batch: Batch) -> bool: ...
    def evaluate_batch(self, model: nn.Module, batch: Batch, device: torch.device) -> Any: ...
    def join(self, parts: Sequence[Any]) -> Sized: ...
    def score(self, outcomes: Any) -> Score: ...
    def results(self, outcomes: Any) -> Scores: ...

    @property
    def skipped(self) -> Sequence[Skipped]: ...
    def datasets(self) -> tuple[BatchDataset, BatchDataset]: ...
    def create_model(self) -> nn.Module: ...
    def count_macs(self, model: nn.Module) -> int: ...
    def plan(self) -> dict[str, Any]: ...
    def about(self) -> TaskDescription: ...
    def notes(self) -> list[str]: ...
    def save(self, model: nn.Module, folder: Path) -> None: ...
