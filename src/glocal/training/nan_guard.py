"""Steps with a non-finite loss or gradient: skipped up to a limit, then the run ends."""

import math

import torch
from torch import nn

from glocal.training.errors import TrainingError


class NaNGuard:
    """Count non-finite steps, and undo their changes of running statistics.

    Args:
        model: its floating-point buffers (BatchNorm's running statistics) are restored.
        limit: maximum number of skipped steps; one more ends the run.
        skipped: steps skipped before a resume.
        has_scaler: fp16 finds its loss scale by overflowing steps, which its scaler skips itself.
    """

    def __init__(self, model: nn.Module, limit: int, skipped: int = 0, *, has_scaler: bool = False) -> None:
        self.model, self.limit, self.skipped, self.has_scaler = model, limit, skipped, has_scaler
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def start_step(self) -> None:
        """Remember the running statistics."""
        if self.limit:
            self.before = [(b, b.clone()) for b in self.model.buffers() if b.is_floating_point()]

    def allows_step(self, grad_norm: float) -> bool:
        """Whether the optimizer may take a step with this gradient norm, measured before clipping."""
        return self.has_scaler or math.isfinite(grad_norm)

    def is_finite(self, loss: float, grad_norm: float, *, stepped: bool, when: str, advice: str) -> bool:
        """Whether this step counts; if the optimizer did not take it, running statistics are restored.

        Args:
            loss: mean over the processes.
            grad_norm: before clipping.
            stepped: the answer of `allows_step`, which the optimizer followed.
            when: the step, for the message.
            advice: appended to the message, such as where the last checkpoint is.

        Raises:
            TrainingError: if the limit is reached, or the loss is not finite though the gradient is.
        """
        if stepped and math.isfinite(loss):
            return True
        if stepped or self.skipped >= self.limit:
            what = f"the loss became {loss}" if not math.isfinite(loss) else f"the gradient's norm became {grad_norm}"
            after = f" after {self.skipped} skipped steps" if self.skipped else ""
            raise TrainingError(
                f"{what} at {when}{after}; a lower lr, a longer warmup or clip_grad in the recipe may help{advice}"
            )
        self.skipped += 1
        for buffer, value in self.before:
            buffer.copy_(value)
        return False
