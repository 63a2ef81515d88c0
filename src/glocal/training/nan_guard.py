"""Steps whose loss or gradient is not finite: left out up to a limit, then the end of the run."""

import math

import torch
from torch import nn

from glocal.training.errors import TrainingError


class NaNGuard:
    """Counts steps that are not finite and undoes what they did to running statistics.

    Args:
        model: whose floating-point buffers (BatchNorm's running statistics) are put back.
        limit: steps that may be left out; one more ends the run.
        skipped: steps that were left out before a resume.
        has_scaler: fp16 finds its loss scale by steps that overflow, and its scaler leaves them out by itself.
    """

    def __init__(self, model: nn.Module, limit: int, skipped: int = 0, *, has_scaler: bool = False) -> None:
        self.model, self.limit, self.skipped, self.has_scaler = model, limit, skipped, has_scaler
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def start_step(self) -> None:
        """Remember the running statistics."""
        if self.limit:
            self.before = [(b, b.clone()) for b in self.model.buffers() if b.is_floating_point()]

    def allows_step(self, grad_norm: float) -> bool:
        """Whether the optimizer may take a step of this gradient, by its norm before clipping."""
        return self.has_scaler or math.isfinite(grad_norm)

    def is_finite(self, loss: float, grad_norm: float, *, stepped: bool, when: str, advice: str) -> bool:
        """Whether this step counts; if the optimizer did not take it, running statistics are put back.

        Args:
            loss: mean over the processes.
            grad_norm: before clipping.
            stepped: what `allows_step` said, and the optimizer did.
            when: the step, for the message.
            advice: appended to the message, such as where the last checkpoint is.

        Raises:
            TrainingError: if the limit is reached, or the loss is not finite though the gradient is.
        """
        if stepped and math.isfinite(loss):
            return True
        if stepped or self.skipped >= self.limit:
            what = f"the loss became {loss}" if not math.isfinite(loss) else f"the gradient's norm became {grad_norm}"
            after = f" after {self.skipped} steps that were left out" if self.skipped else ""
            raise TrainingError(
                f"{what} at {when}{after}; a lower lr, a longer warmup or clip_grad in the recipe may help{advice}"
            )
        self.skipped += 1
        for buffer, value in self.before:
            buffer.copy_(value)
        return False
