"""What a model is trained for: the loss of a step, and what is measured on the validation set.

The engine knows nothing else of a task; `Classification` is one, detection and segmentation are others.
"""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from glocal.training.loader import Batch


@dataclass(frozen=True)
class Score:
    """What an evaluation found.

    Attributes:
        value: what the best checkpoint goes by, from 0 to 1, higher is better.
        loss: on the validation set; None where the task has none there.
        columns: entries of metrics.csv, by their names.
    """

    value: float
    loss: float | None = None
    columns: Mapping[str, float | None] = field(default_factory=dict)


class Objective(nn.Module):
    """A task. A module, so that its tensors go to the device; it has no parameters.

    Attributes:
        metric: what `Score.value` is, such as ``top1``.
        columns: of metrics.csv, those of `Score.columns`.
        needs_every_image: whether one that cannot be read ends the run, whatever was asked for.
    """

    metric: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    needs_every_image: bool = False

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean loss over the images of a batch that is on the model's device."""
        raise NotImplementedError

    def test(self, model: nn.Module, batch: Batch, device: torch.device) -> Any:
        """What is kept of a batch: small, on the CPU, as it goes from process to process.

        It calls the model once, also for a batch in which no image could be read: parameters that are split are
        gathered by all processes together.
        """
        raise NotImplementedError

    def join(self, parts: Sequence[Any]) -> Sized:
        """What is kept of several batches, in their order, as that of one set; its length is the number of images."""
        raise NotImplementedError

    def score(self, found: Any) -> Score:
        """Of what `join` gave for the validation set, which has at least one image."""
        raise NotImplementedError

    def may_leave_idle(self, model: nn.Module, batch: Batch) -> bool:
        """Whether a step may leave a parameter without a gradient; DDP must know, and is slower then."""
        return True
