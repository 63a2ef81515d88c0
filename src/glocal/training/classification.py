"""Classification: cross-entropy with what a recipe asks for, and the outcomes of a validation set."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import nn

from glocal.bench import copy_on_meta
from glocal.data.transforms import RandomErasing
from glocal.metrics.classification import Outcomes
from glocal.training.config import TrainConfig
from glocal.training.loader import Batch, Batched
from glocal.training.objective import Objective, Score


class Classification(Objective):
    """One of K classes for each image.

    Args:
        prepare: batches as they are read -> inputs of the model, such as `Normalize`.
        recipe: mixing, erasing, label smoothing, class balance.
        data: the training set, for the weights of its classes.
        keep_logits: keep those of the validation set; images that go bad there end the run then.
    """

    metric: ClassVar[str] = "top1"
    columns: ClassVar[tuple[str, ...]] = ("val_loss", "val_top1", "val_top5")
    class_weights: torch.Tensor | None

    def __init__(self, prepare: nn.Module, recipe: TrainConfig, data: Batched, *, keep_logits: bool = False) -> None:
        super().__init__()
        self.prepare, self.num_classes, self.needs_every_image = prepare, data.num_classes, keep_logits
        self.label_smoothing, self.mixes = recipe.loss.label_smoothing, bool(recipe.loss.mixup or recipe.loss.cutmix)
        self.mixup = Mixup(
            recipe.loss.mixup,
            recipe.loss.cutmix,
            label_smoothing=recipe.loss.label_smoothing,
            num_classes=data.num_classes,
        )
        self.erasing = RandomErasing(recipe.data.random_erasing) if recipe.data.random_erasing else None
        self.register_buffer("class_weights", class_weights(data.labels, data.num_classes, recipe.loss.class_balance))

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Cross-entropy; a model of several heads has a loss of its own."""
        inputs, labels = self.prepare(batch.inputs), batch.labels
        if self.erasing is not None:
            inputs = self.erasing(inputs, batch.seeds)
        if not self.mixes:
            return self.loss_of(model, inputs, labels, self.label_smoothing)
        even = max(2, len(inputs) // 2 * 2)  # timm's Mixup pairs images
        inputs, targets = self.mixup(inputs[:even], labels[:even])
        return self.loss_of(model, inputs, targets, 0.0)

    def loss_of(
        self, model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, label_smoothing: float
    ) -> torch.Tensor:
        """Of (B, ...) inputs and their (B,) labels or (B, K) mixed targets."""
        criterion = partial(_cross_entropy, label_smoothing=label_smoothing, weights=self.class_weights)
        own: Any = getattr(model, "training_loss", None)
        return criterion(model(inputs), targets) if own is None else own(inputs, targets, criterion)

    def test(self, model: nn.Module, batch: Batch, device: torch.device) -> Outcomes:
        """Outcomes of the images that could be read."""
        logits = logits_of(model, self.prepare, batch, device).numpy()
        return Outcomes.of(logits, batch.labels.numpy(), keep=self.needs_every_image)

    def join(self, parts: Sequence[Outcomes]) -> Outcomes:
        """Outcomes of all parts."""
        return Outcomes.join(parts)

    def score(self, found: Outcomes) -> Score:
        """Top-1, and the mean negative log-likelihood as the loss."""
        scores = found.score(self.num_classes)
        return Score(
            scores.top1, scores.nll, {"val_loss": scores.nll, "val_top1": scores.top1, "val_top5": scores.top5}
        )

    def may_leave_idle(self, model: nn.Module, batch: Batch) -> bool:
        """Found by a step without storage."""
        try:
            shell: Any = copy_on_meta(model).train()
            image = torch.empty((2, *batch.inputs.shape[1:]), device="meta")
            target = torch.zeros(2, dtype=torch.long, device="meta")
            own = getattr(shell, "training_loss", None)
            loss = F.cross_entropy(shell(image), target) if own is None else own(image, target, F.cross_entropy)
            loss.backward()
            return any(p.requires_grad and p.grad is None for p in shell.parameters())
        except (RuntimeError, NotImplementedError):  # an operator that asks for values
            return True


def logits_of(model: nn.Module, prepare: nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
    """(B, K) outputs of a model for a batch, on the CPU; for no image the model runs too, see `Objective.test`."""
    inputs = batch.inputs if len(batch.inputs) else batch.inputs.new_zeros(1, *batch.inputs.shape[1:])
    return model(prepare(inputs.to(device))).float().cpu()[: len(batch.labels)]


def class_weights(labels: np.ndarray, num_classes: int, balance: float) -> torch.Tensor | None:
    """(K,) weights of classes in the loss, share of the images ** -balance, whose mean over images is 1."""
    if balance == 0:
        return None
    shares = np.bincount(labels, minlength=num_classes) / len(labels)
    weights = np.where(shares > 0, np.maximum(shares, 1e-12) ** -balance, 0)
    return torch.from_numpy(weights / (weights * shares).sum()).float()


def _cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, *, label_smoothing: float, weights: torch.Tensor | None
) -> torch.Tensor:
    """Mean over images; weights are those of their classes, of (B, K) mixed targets those of their parts."""
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if targets.ndim == 1:
        per_image = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
        return (per_image * weights[targets]).mean()
    return F.cross_entropy(logits, targets, weight=weights)
