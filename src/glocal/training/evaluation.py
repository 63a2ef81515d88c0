"""Evaluation of a model on a data set, batch by batch; each of several processes evaluates a part."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from glocal.files import printable
from glocal.training.errors import TrainingError
from glocal.training.loader import Batch, BatchDataset, evaluation_loader
from glocal.training.trainable import Trainable


def evaluate_batches(
    task: Trainable, model: nn.Module, batches: Iterable[Batch], device: str | torch.device
) -> Iterator[tuple[Any, Batch]]:
    """The task's outcomes of each batch, and the batch."""
    device = torch.device(device)
    training = model.training
    model.to(device).eval()
    task.to(device)
    try:
        for batch in batches:
            yield task.evaluate_batch(model, batch, device), batch
    finally:
        model.train(training)


@torch.no_grad()
def predict(
    model: nn.Module,
    prepare: nn.Module,
    data: BatchDataset,
    device: str | torch.device = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """(N, K) outputs of a model for a data set, in its order, on the CPU; the mode of the model is restored.

    ``progress`` is told how many images are done.
    """
    done = 0
    training, outputs = model.training, []
    model.to(device).eval()
    prepare.to(device)
    try:
        for batch in evaluation_loader(data):
            refuse_bad(batch)
            outputs.append(model(prepare(batch.inputs.to(device))).float().cpu())
            done += len(batch.inputs)
            progress(done)
    finally:
        model.train(training)
    return torch.cat(outputs)


def refuse_bad(batch: Batch) -> None:
    """Raise TrainingError for a batch with an image that became unreadable."""
    if batch.skipped:
        bad = batch.skipped[0]
        raise TrainingError(f"{printable(bad.path)}: {bad.reason}")
