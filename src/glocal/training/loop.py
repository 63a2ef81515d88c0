"""One model, one recipe, one budget: the training loop, on pytorch-lightning's engine.

Models and losses are plain modules and know nothing of the engine.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.seed import isolate_rng
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from glocal.data import Skipped
from glocal.errors import GlocalError
from glocal.files import printable
from glocal.training.budget import Budget, training_flop
from glocal.training.loader import Batch, Batched, evaluation_loader, num_batches, training_loader
from glocal.training.metrics import score
from glocal.training.recipe import Recipe

CURVE_POINTS = 10
"""A model is evaluated after each epoch, but at most this often in its budget."""
SCHEDULE_STEPS = 100_000
"""The schedule is a function of the share of the budget that is used up; timm's takes whole updates, so many in all."""


class TrainingError(GlocalError):
    """A run that cannot go on; the other runs of a comparison can."""


@dataclass(frozen=True)
class CurvePoint:
    """Where a model stood: ``seconds`` of training, mean training loss since the point before, validation scores."""

    epoch: float
    step: int
    seconds: float
    train_loss: float
    val_loss: float
    val_top1: float


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows of a run: ``done`` of its budget (0 to 1), smoothed loss, the last validation top-1."""

    done: float
    epoch: float
    step: int
    loss: float
    images_per_s: float
    seconds_left: float
    point: CurvePoint | None


@dataclass(frozen=True)
class TrainResult:
    """A trained model.

    Attributes:
        model: the module that was given, trained, on the CPU, in eval mode.
        logits: (N, K) of the validation set at the end.
        curve: evaluations, the last at the end of the budget.
        steps: optimizer steps.
        epochs: passes over the training set.
        seconds: of training, evaluation not counted.
        seconds_to_budget: from the first step to the end of the budget, evaluation on the way counted.
        flop: floating-point operations of training.
        images_per_s: of training.
        skipped: training images that went bad and were left out.
    """

    model: nn.Module
    logits: np.ndarray
    curve: tuple[CurvePoint, ...]
    steps: int
    epochs: float
    seconds: float
    seconds_to_budget: float
    flop: float
    images_per_s: float
    skipped: tuple[Skipped, ...]


class Normalize(nn.Module):
    """uint8 pixels -> (x / 255 - mean) / std, by channel."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(-1, 1, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) uint8 -> float32."""
        return (x - self.mean) * self.scale


def train(
    model: nn.Module,
    train_data: Batched,
    val_data: Batched,
    *,
    recipe: Recipe,
    budget: Budget,
    seed: int,
    macs: int,
    prepare: nn.Module,
    device: str | torch.device = "cpu",
    on_error: Literal["stop", "skip"] = "stop",
    progress: Callable[[Progress], None] = lambda _: None,
) -> TrainResult:
    """Train a classifier until its budget is used up.

    Everything random comes from ``seed``, whatever ran before in this process, and the generators are put back after.

    Args:
        model: (B, ...) inputs -> (B, K) logits; its trainable parameters are changed in place.
        train_data: what it learns from.
        val_data: what it is tested on, without augmentation.
        recipe: learning rate, loss and the like.
        budget: when to stop.
        seed: of order, augmentation and whatever the model draws.
        macs: multiply-accumulates of a forward pass for one image.
        prepare: batches as they are read -> inputs of the model, such as `Normalize`.
        device: where to train.
        on_error: what to do with a training image that went bad since it was checked: ``stop``, or ``skip`` and report.
        progress: called after each step.

    Raises:
        TrainingError: when the loss is not finite, or an image went bad.
    """
    device = torch.device(device)
    with _quiet_engine(), isolate_rng(), _own_interrupt():
        pl.seed_everything(seed, verbose=False)
        steps_per_epoch = num_batches(len(train_data), recipe.batch_size)
        steps = budget.steps(len(train_data), steps_per_epoch, macs)
        task = _Task(model.to(memory_format=torch.channels_last), prepare, recipe, train_data.num_classes)
        pace = _Pace(task, val_data, budget, steps, steps_per_epoch, progress)
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=1 if device.index is None or device.type == "cpu" else [device.index],
            max_epochs=1,  # the loader has no end: the budget ends the run
            max_steps=-1 if steps is None else steps,
            gradient_clip_val=recipe.clip_grad or None,
            callbacks=[pace],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        batches = _Readable(training_loader(train_data, recipe.batch_size, seed), on_error)
        trainer.fit(task, batches)
    logits = pace.evaluate(device)
    model.to("cpu").eval()
    return TrainResult(
        model=model,
        logits=logits,
        curve=tuple(pace.curve),
        steps=pace.step,
        epochs=pace.step / steps_per_epoch,
        seconds=pace.trained,
        seconds_to_budget=pace.wall,
        flop=training_flop(macs, pace.images),
        images_per_s=pace.images / pace.trained,
        skipped=tuple(batches.skipped),
    )


@torch.no_grad()
def predict(model: nn.Module, prepare: nn.Module, data: Batched, device: str | torch.device = "cpu") -> torch.Tensor:
    """(N, K) outputs of a model for a set, in its order, on the CPU; the mode of the model is left as it was."""
    training = model.training
    model.to(device).eval()
    prepare.to(device)
    try:
        batches = _Readable(evaluation_loader(data), "stop")
        return torch.cat([model(prepare(batch.inputs.to(device))).float().cpu() for batch in batches])
    finally:
        model.train(training)


class _Readable:
    """Batches whose bad images, which have no place in them, end the run or are noted."""

    def __init__(self, loader: Iterable[Batch], on_error: Literal["stop", "skip"]) -> None:
        self.loader, self.on_error = loader, on_error
        self.skipped: dict[Skipped, None] = {}  # each once, though epochs repeat

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if batch.skipped and self.on_error == "stop":
                bad = batch.skipped[0]
                raise TrainingError(f"{printable(bad.path)}: {bad.reason}")
            self.skipped |= dict.fromkeys(batch.skipped)
            if len(batch.labels):
                yield batch._replace(skipped=())  # the engine moves a batch to its device and knows tensors only


class _Task(pl.LightningModule):
    """Model, loss and optimizer as the engine wants them."""

    def __init__(self, model: nn.Module, prepare: nn.Module, recipe: Recipe, num_classes: int) -> None:
        super().__init__()
        self.model, self.prepare, self.recipe = model, prepare, recipe
        self.mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes)

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        inputs, labels = self.prepare(batch.inputs), batch.labels
        if not (self.recipe.mixup or self.recipe.cutmix):
            return self.loss(inputs, labels, label_smoothing=self.recipe.label_smoothing)
        even = len(inputs) // 2 * 2  # timm's Mixup pairs images
        inputs, targets = self.mixup(inputs[:even], labels[:even])
        return self.loss(inputs, targets)

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """Cross-entropy; a model of several heads has a loss of its own."""
        criterion = partial(F.cross_entropy, label_smoothing=label_smoothing)
        own: Any = getattr(self.model, "training_loss", None)
        return criterion(self.model(inputs), targets) if own is None else own(inputs, targets, criterion)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        options: dict[str, Any] = {"fused": True} if recipe.optimizer == "adamw" else {}
        if recipe.layer_decay < 1:
            options["layer_decay"] = recipe.layer_decay
        return create_optimizer_v2(
            self.model, opt=recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay, **options
        )


class _Pace(pl.Callback):
    """Sets the learning rate by the share of the budget used up, follows the curve, and ends the run."""

    def __init__(
        self,
        task: _Task,
        val_data: Batched,
        budget: Budget,
        steps: int | None,
        steps_per_epoch: int,
        progress: Callable[[Progress], None],
    ) -> None:
        self.task, self.val_data, self.budget, self.progress = task, val_data, budget, progress
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.points = CURVE_POINTS if steps is None else min(CURVE_POINTS, max(1, round(steps / steps_per_epoch)))
        self.step = self.images = 0
        self.evaluating = 0.0  # seconds
        self.trained = self.wall = 0.0
        self.losses: list[float] = []
        self.smooth_loss = math.nan
        self.curve: list[CurvePoint] = []

    @property
    def done(self) -> float:
        return min(1.0, self.trained / self.budget.amount if self.steps is None else self.step / self.steps)

    def on_train_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        self.schedule = cosine_schedule(trainer.optimizers[0], self.task.recipe)
        self.start = time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        self.schedule.step_update(round(self.done * SCHEDULE_STEPS))

    def on_train_batch_end(
        self, trainer: pl.Trainer, _: pl.LightningModule, outputs: Any, batch: Batch, __: int
    ) -> None:
        loss = outputs["loss"].item()  # waits for the device, so the clock is right too
        self.step += 1
        self.images += len(batch.labels)
        self.wall = time.perf_counter() - self.start
        self.trained = self.wall - self.evaluating
        if not math.isfinite(loss):
            epoch = self.step / self.steps_per_epoch
            raise TrainingError(
                f"the loss became {loss} at step {self.step} (epoch {epoch:.2f}); a lower lr, a longer warmup or "
                "clip_grad in the recipe may help"
            )
        self.losses.append(loss)
        self.smooth_loss = loss if self.step == 1 else 0.95 * self.smooth_loss + 0.05 * loss
        if self.done >= 1:
            trainer.should_stop = True
        else:
            if self.done >= (len(self.curve) + 1) / self.points:
                self.evaluate(trainer.strategy.root_device)
            self.report()

    def evaluate(self, device: torch.device) -> np.ndarray:
        """Add a point to the curve; the time it takes is not time of training."""
        start = time.perf_counter()
        logits = predict(self.task.model, self.task.prepare, self.val_data, device).numpy()
        if not np.isfinite(logits).all():
            raise TrainingError(f"the model's outputs are not finite after step {self.step}; a lower lr may help")
        scores = score(logits, self.val_data.labels)
        loss = sum(self.losses) / len(self.losses) if self.losses else self.smooth_loss
        epoch = self.step / self.steps_per_epoch
        self.curve.append(CurvePoint(epoch, self.step, self.trained, loss, scores.nll, scores.top1))
        self.losses.clear()
        self.evaluating += time.perf_counter() - start
        self.report()
        return logits

    def report(self) -> None:
        left = self.trained / self.done * (1 - self.done) if self.done else math.nan
        self.progress(
            Progress(
                done=self.done,
                epoch=self.step / self.steps_per_epoch,
                step=self.step,
                loss=self.smooth_loss,
                images_per_s=self.images / self.trained,
                seconds_left=left,
                point=self.curve[-1] if self.curve else None,
            )
        )


def cosine_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> CosineLRScheduler:
    """Linear warm-up and cosine over `SCHEDULE_STEPS` virtual updates, which are the whole budget whatever its unit."""
    warmup = round(recipe.warmup * SCHEDULE_STEPS)
    return CosineLRScheduler(
        optimizer,
        t_initial=SCHEDULE_STEPS - warmup,
        lr_min=recipe.min_lr,
        warmup_t=warmup,
        warmup_prefix=True,
        t_in_epochs=False,
    )


@contextmanager
def _quiet_engine() -> Iterator[None]:
    """Without the engine's banners ("GPU available: False ...") and its advice on loaders that we do not follow."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Batches are made from pixels in memory: workers would only copy them.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*is deprecated")  # the engine's own
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Ctrl-C stays KeyboardInterrupt, where the engine would exit the process."""
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
