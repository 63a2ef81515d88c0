"""A model evaluated on a data set, batch by batch; of several processes each evaluates a part."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from glocal.files import printable
from glocal.training.classification import logits_of
from glocal.training.errors import TrainingError
from glocal.training.loader import Batch, Batched, Key, Share, evaluation_batch, evaluation_loader, num_batches
from glocal.training.objective import Objective


def evaluate_batches(
    objective: Objective, model: nn.Module, data: Batched, device: str | torch.device, share: Share
) -> Iterator[tuple[Any, Batch]]:
    """What the objective keeps of each batch that this process reads, and the batch.

    Each process calls the model equally often, as sharded parameters are gathered by all together: where another
    process has a batch more, one is evaluated twice.
    """
    device = torch.device(device)
    training = model.training
    model.to(device).eval()
    objective.to(device)
    batch: Batch | None = None
    num = 0
    try:
        for batch in evaluation_loader(data, share=share):
            yield objective.test(model, batch, device), batch
            num += 1
        if share.world > 1 and num < -(-num_batches(len(data), evaluation_batch(data)) // share.world):
            objective.test(model, data[Key(0, np.arange(1))] if batch is None else batch, device)
    finally:
        model.train(training)


@torch.no_grad()
def predict(model: nn.Module, prepare: nn.Module, data: Batched, device: str | torch.device = "cpu") -> torch.Tensor:
    """(N, K) outputs of a model for a data set, in its order, on the CPU; the mode of the model is left as it was."""
    outputs = []
    for output, batch in evaluate_batches(_Outputs(prepare), model, data, device, Share()):
        refuse_bad(batch)
        outputs.append(output)
    return torch.cat(outputs)


class _Outputs(Objective):
    """The model's outputs as they are."""

    def __init__(self, prepare: nn.Module) -> None:
        super().__init__()
        self.prepare = prepare

    def test(self, model: nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
        return logits_of(model, self.prepare, batch, device)


def refuse_bad(batch: Batch) -> None:
    """Raise TrainingError for a batch with an image that went bad."""
    if batch.skipped:
        bad = batch.skipped[0]
        raise TrainingError(f"{printable(bad.path)}: {bad.reason}")
