"""A model evaluated on a data set, batch by batch; of several processes each evaluates a part."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from glocal.files import printable
from glocal.training.errors import TrainingError
from glocal.training.loader import Batch, BatchDataset, BatchIndices, evaluation_loader, num_batches
from glocal.training.trainable import Trainable


def evaluate_batches(
    task: Trainable,
    model: nn.Module,
    data: BatchDataset,
    device: str | torch.device,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Any, Batch]]:
    """The task's outcomes of each batch that this process reads, and the batch.

    Each process calls the model equally often, as sharded parameters are gathered by all together: where another
    process has a batch more, one is evaluated twice.
    """
    device = torch.device(device)
    training = model.training
    model.to(device).eval()
    task.to(device)
    batch: Batch | None = None
    num = 0
    try:
        for batch in evaluation_loader(data, rank=rank, world_size=world_size):
            yield task.evaluate_batch(model, batch, device), batch
            num += 1
        if world_size > 1 and num < -(-num_batches(len(data), data.evaluation_batch) // world_size):
            task.evaluate_batch(model, data[BatchIndices(0, np.arange(1))] if batch is None else batch, device)
    finally:
        model.train(training)


@torch.no_grad()
def predict(
    model: nn.Module, prepare: nn.Module, data: BatchDataset, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """(N, K) outputs of a model for a data set, in its order, on the CPU; the mode of the model is left as it was."""
    training, outputs = model.training, []
    model.to(device).eval()
    prepare.to(device)
    try:
        for batch in evaluation_loader(data):
            refuse_bad(batch)
            outputs.append(model(prepare(batch.inputs.to(device))).float().cpu())
    finally:
        model.train(training)
    return torch.cat(outputs)


def refuse_bad(batch: Batch) -> None:
    """Raise TrainingError for a batch with an image that went bad."""
    if batch.skipped:
        bad = batch.skipped[0]
        raise TrainingError(f"{printable(bad.path)}: {bad.reason}")
