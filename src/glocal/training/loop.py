"""One model, one recipe, one budget: the training loop, on pytorch-lightning's engine."""

import contextlib
import logging
import math
import random
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Literal, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn

from glocal.bench import copy_on_meta
from glocal.data import Skipped
from glocal.errors import CheckpointError, GlocalError
from glocal.files import printable
from glocal.training.budget import Budget, training_flop
from glocal.training.checkpoint import Checkpoints
from glocal.training.loader import (
    EVALUATION_BATCH,
    Batch,
    Batched,
    Key,
    Share,
    evaluation_loader,
    num_batches,
    training_loader,
)
from glocal.training.metrics import Outcomes
from glocal.training.recipe import Recipe
from glocal.training.signals import StopRequest
from glocal.training.task import SCHEDULE_STEPS, Task, capture, make_schedule, plain_copy, restore

CURVE_POINTS = 10
"""In a comparison a model is evaluated after each epoch, but at most this often in its budget."""
TIMEOUT = timedelta(minutes=10)
"""How long processes wait for each other; one that dies is noticed at once, by its closed connections."""
PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class TrainingError(GlocalError):
    """A run that cannot go on; the other runs of a comparison can."""


class Stopped(Exception):  # noqa: N818 - not an error
    """A run that was asked to stop: everything is saved up to ``step``."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"stopped by {reason} after step {step}")
        self.step, self.reason = step, reason


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
        outcomes: of the validation set at the end.
        logits: (N, K) behind them, if they were asked for.
        curve: evaluations, the last at the end of the budget.
        steps: optimizer steps.
        epochs: passes over the training set.
        seconds: of training, evaluation not counted.
        seconds_to_budget: from the first step to the end of the budget, evaluation on the way counted.
        flop: floating-point operations of training.
        images_per_s: of training.
        skipped: training images that went bad and were left out.
        nan_skips: steps that were left out, as their loss or gradient was not finite.
        best_step: the step of the evaluation with the highest top-1.
    """

    model: nn.Module
    outcomes: Outcomes
    logits: np.ndarray
    curve: tuple[CurvePoint, ...]
    steps: int
    epochs: float
    seconds: float
    seconds_to_budget: float
    flop: float
    images_per_s: float
    skipped: tuple[Skipped, ...]
    nan_skips: int
    best_step: int


@dataclass(frozen=True)
class Engine:
    """On what a run is trained.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        devices: processes of a node, one a device.
        num_nodes: machines.
        strategy: ``ddp``: each process has the whole model; ``fsdp``: the parameters are split over the processes.
        precision: ``32``, ``bf16`` or ``fp16`` (both mixed).
    """

    device: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    precision: str = "32"

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.devices * self.num_nodes


@dataclass(frozen=True)
class Keeping:
    """What is kept of a run while it goes on.

    Attributes:
        checkpoints: where they are written.
        texts: files written beside each, by name.
        about: what a checkpoint says of its run, as JSON.
        resume: the checkpoint to go on from.
        log: is given each row of metrics.
    """

    checkpoints: Checkpoints | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    resume: Mapping[str, Any] | None = None
    log: Callable[[Mapping[str, float]], None] = lambda _: None


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
    engine: Engine = Engine(),
    keeping: Keeping = Keeping(),
    stop: StopRequest | None = None,
    num_workers: int | None = None,
    curve_points: int | None = CURVE_POINTS,
    on_error: Literal["stop", "skip"] = "stop",
    progress: Callable[[Progress], None] = lambda _: None,
) -> TrainResult:
    """Train a classifier until its budget is used up.

    Everything random comes from ``seed``, whatever ran before in this process, and the generators are put back after.
    What is drawn at a step depends on the seed and the number of the step, so a run that is stopped and resumed is the
    run that was not.

    Args:
        model: (B, ...) inputs -> (B, K) logits; its trainable parameters are changed in place.
        train_data: what it learns from.
        val_data: what it is tested on, without augmentation.
        recipe: learning rate, loss and the like.
        budget: when to stop.
        seed: of order, augmentation and whatever the model draws.
        macs: multiply-accumulates of a forward pass for one image.
        prepare: batches as they are read -> inputs of the model, such as `Normalize`.
        engine: devices, processes and precision.
        keeping: checkpoints and rows of metrics; by default nothing is written.
        stop: is looked at after each step; where it is requested, a checkpoint is written and the run ends.
        num_workers: processes that read images; by default one a processor, where images are decoded.
        curve_points: how often the model is evaluated at most; None for as often as the recipe says.
        on_error: what to do with a training image that went bad since it was checked: ``stop``, or ``skip`` and report.
        progress: called after each step, in the first process.

    Raises:
        TrainingError: when the loss is not finite, memory or the disk is full, a process died, or an image went bad.
        Stopped: when ``stop`` was requested.
    """
    device = torch.device(engine.device)
    model = model.to(memory_format=torch.channels_last).train()
    sharded = engine.strategy == "fsdp" and engine.world > 1
    plain = plain_copy(model, model.state_dict()) if sharded else None
    with _quiet_engine(), isolate_rng(), _own_interrupt():
        pl.seed_everything(seed, verbose=False)
        steps_per_epoch = num_batches(len(train_data), recipe.batch_size)
        steps = budget.steps(len(train_data), steps_per_epoch, macs)
        task = Task(model, prepare, recipe, train_data.labels, train_data.num_classes, sharded)
        pace = _Pace(
            task, val_data, budget, steps, steps_per_epoch, seed, engine, keeping, stop, curve_points, progress
        )

        def loader() -> Iterable[Batch]:  # asked for by each process, when it knows which one it is
            return training_loader(
                train_data,
                recipe.batch_size,
                seed,
                num_workers,
                repeats=recipe.repeats,
                share=pace.share,
                start=pace.step,
            )

        batches = _Readable(loader, on_error, pace)
        with _explained(recipe, engine, pace):
            if pace.done < 1:
                trainer = _trainer(engine, device, recipe, pace, task, train_data)
                trainer.fit(task, batches)
            else:
                pace.finish(device)
    if pace.stopped is not None:
        raise Stopped(pace.step, pace.stopped)
    result = task.tested if plain is None else plain
    if plain is not None:
        plain.load_state_dict(pace.final)
    result.to("cpu").eval()
    outcomes, logits = pace.at_the_end
    return TrainResult(
        model=result,
        outcomes=outcomes,
        logits=logits,
        curve=tuple(pace.curve),
        steps=pace.step,
        epochs=pace.step / steps_per_epoch,
        seconds=pace.trained,
        seconds_to_budget=pace.wall,
        flop=training_flop(macs, pace.images),
        images_per_s=pace.images / pace.trained,
        skipped=tuple(pace.skipped),
        nan_skips=pace.nan_skips,
        best_step=pace.best[0],
    )


def _trainer(
    engine: Engine, device: torch.device, recipe: Recipe, pace: "_Pace", task: Task, data: Batched
) -> pl.Trainer:
    devices: Any = engine.devices
    if engine.world == 1:
        devices = 1 if device.index is None or device.type == "cpu" else [device.index]
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=devices,
        num_nodes=engine.num_nodes,
        strategy=_strategy(engine, device, task, data),
        precision=PRECISIONS[engine.precision],
        sync_batchnorm=recipe.sync_batchnorm and engine.world > 1,
        max_epochs=1,  # the loader has no end: the budget ends the run
        accumulate_grad_batches=recipe.accumulate,
        callbacks=[pace],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _strategy(engine: Engine, device: torch.device, task: Task, data: Batched) -> Any:
    if engine.world == 1:
        return "auto"
    backend = "nccl" if device.type == "cuda" else "gloo"
    if engine.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=engine.world, tensor_parallel_size=1, process_group_backend=backend, timeout=TIMEOUT
        )
    return DDPStrategy(
        process_group_backend=backend,
        timeout=TIMEOUT,
        find_unused_parameters=_has_idle_parameters(task, data),
        gradient_as_bucket_view=True,
    )


def _has_idle_parameters(task: Task, data: Batched) -> bool:
    """Whether some parameter gets no gradient, which DDP must be told: found by a step without storage."""
    try:
        inputs = data[next(iter(training_loader(data, 2, 0, 0).sampler))].inputs
        model: Any = copy_on_meta(task.model).train()
        image = torch.empty((2, *inputs.shape[1:]), device="meta")
        target = torch.zeros(2, dtype=torch.long, device="meta")
        criterion = torch.nn.functional.cross_entropy
        own = getattr(model, "training_loss", None)
        loss = criterion(model(image), target) if own is None else own(image, target, criterion)
        loss.backward()
        return any(p.requires_grad and p.grad is None for p in model.parameters())
    except (RuntimeError, NotImplementedError):  # an operator that asks for values
        return True


@torch.no_grad()
def predict(model: nn.Module, prepare: nn.Module, data: Batched, device: str | torch.device = "cpu") -> torch.Tensor:
    """(N, K) outputs of a model for a set, in its order, on the CPU; the mode of the model is left as it was."""
    return torch.cat(list(_outputs(model, prepare, data, device, Share())))


def _outputs(
    model: nn.Module, prepare: nn.Module, data: Batched, device: str | torch.device, share: Share
) -> Iterator[torch.Tensor]:
    """Outputs of each batch that this process reads; where another one has a batch more, the last is done twice."""
    training = model.training
    model.to(device).eval()
    prepare.to(device)
    batch: Batch | None = None
    num = 0
    try:
        loader = evaluation_loader(data, share=share)
        for batch in loader:
            _refuse_bad(batch)
            yield model(prepare(batch.inputs.to(device))).float().cpu()
            num += 1
        if share.world > 1 and num < -(-num_batches(len(data), EVALUATION_BATCH) // share.world):
            inputs = batch.inputs if batch is not None else data[Key(0, np.arange(1))].inputs
            model(prepare(inputs.to(device)))  # parameters that are split are gathered by all processes together
    finally:
        model.train(training)


def _refuse_bad(batch: Batch) -> None:
    if batch.skipped:
        bad = batch.skipped[0]
        raise TrainingError(f"{printable(bad.path)}: {bad.reason}")


class _Readable:
    """Batches whose bad images, which have no place in them, end the run or are noted."""

    def __init__(self, loader: Callable[[], Iterable[Batch]], on_error: Literal["stop", "skip"], pace: "_Pace") -> None:
        self.loader, self.on_error, self.pace = loader, on_error, pace

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader():
            if self.on_error == "stop" or not len(batch.labels):
                _refuse_bad(batch)  # a whole batch gone bad is no matter of single images
            self.pace.skipped |= dict.fromkeys(batch.skipped)
            yield batch._replace(skipped=())  # the engine moves a batch to its device and knows tensors only


class _Pace(pl.Callback):
    """Sets the learning rate by the share of the budget used up, guards and keeps what is trained, and ends the run."""

    def __init__(
        self,
        task: Task,
        val_data: Batched,
        budget: Budget,
        steps: int | None,
        steps_per_epoch: int,
        seed: int,
        engine: Engine,
        keeping: Keeping,
        stop: StopRequest | None,
        curve_points: int | None,
        progress: Callable[[Progress], None],
    ) -> None:
        self.task, self.val_data, self.budget, self.progress = task, val_data, budget, progress
        self.steps, self.steps_per_epoch, self.seed, self.engine = steps, steps_per_epoch, seed, engine
        self.keeping, self.stop = keeping, stop
        self.recipe = task.recipe
        every = self.recipe.evaluate_every_epochs * steps_per_epoch
        wanted = CURVE_POINTS if steps is None else max(1, round(steps / every))
        self.points = wanted if curve_points is None else min(curve_points, wanted)
        self.rank = 0
        self.stopped: str | None = None
        self.at_the_end: tuple[Outcomes, np.ndarray]
        self.final: dict[str, torch.Tensor] = {}
        self.saved_step = -1
        self.good = True  # the last step's loss and gradient were finite
        self.norm = math.nan
        self.loss_of_step = 0.0
        self.images_of_step = 0
        self.statistics: list[tuple[torch.Tensor, torch.Tensor]] = []
        # what a checkpoint says of the run so far
        self.step = self.images = self.nan_skips = 0
        self.aside = 0.0  # seconds of tests and checkpoints
        self.trained = self.wall = 0.0
        self.loss_sum, self.loss_count = 0.0, 0
        self.row_sum, self.row_count = 0.0, 0
        self.smooth_loss = math.nan
        self.curve: list[CurvePoint] = []
        self.best: tuple[int, float] = (0, -1.0)
        self.skipped: dict[Skipped, None] = {}  # each once, though epochs repeat
        if keeping.resume is not None:
            self._resume(keeping.resume["pace"])

    _SAVED = (
        "step", "images", "nan_skips", "aside", "trained", "wall", "loss_sum", "loss_count", "row_sum",
        "row_count", "smooth_loss", "best",
    )  # fmt: skip

    def _state(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in self._SAVED},
            "curve": [asdict(point) for point in self.curve],
            "skipped": [asdict(skipped) for skipped in self.skipped],
        }

    def _resume(self, state: Mapping[str, Any]) -> None:
        for name in self._SAVED:
            setattr(self, name, state[name])
        self.curve = [CurvePoint(**point) for point in state["curve"]]
        self.skipped = {Skipped(**skipped): None for skipped in state["skipped"]}
        self.saved_step = self.step

    @property
    def share(self) -> Share:
        """Which part of each step this process reads."""
        return Share(self.rank, self.engine.world, self.recipe.accumulate)

    @property
    def done(self) -> float:
        return min(1.0, self.trained / self.budget.amount if self.steps is None else self.step / self.steps)

    def on_fit_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        self.rank = trainer.global_rank
        if self.stop is not None:
            self.stop.install()  # over the engine's own handlers, which it puts back in the end

    def on_train_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        if self.keeping.resume is not None:
            restore(self.task, trainer.optimizers[0], dict(self.keeping.resume))
        self.schedule = make_schedule(trainer.optimizers[0], self.recipe)
        self.start = time.perf_counter() - self.trained - self.aside

    def on_train_batch_start(self, trainer: pl.Trainer, _: pl.LightningModule, __: Any, batch_idx: int) -> None:
        part = batch_idx % self.recipe.accumulate
        _seed_step(self.seed, self.step * self.recipe.accumulate + part, self.rank)
        for module in self.task.frozen:
            module.training = False
        if part == 0:
            self.schedule.step_update(round(self.done * SCHEDULE_STEPS))
            self.loss_of_step = 0.0
            self.images_of_step = 0
            if self.recipe.nan_skips:
                buffers = [b for b in self.task.model.buffers() if b.is_floating_point()]
                self.statistics = [(b, b.clone()) for b in buffers]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, _: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Clip the gradient; a step whose gradient is not finite is not taken."""
        parameters = [p for p in self.task.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])  # type: ignore[misc]
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        self.norm = norm.item()
        self.good = math.isfinite(self.norm)
        if not self.good:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self.good = scaler is not None  # fp16 finds its scale by such steps, and leaves them out itself
            if scaler is None:
                optimizer.zero_grad(set_to_none=True)
        elif self.recipe.clip_grad:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.recipe.clip_grad, norm)

    def on_train_batch_end(
        self, trainer: pl.Trainer, _: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        # the engine divides the loss by the number of parts; `.item()` waits for the device, so the clock is right too
        self.loss_of_step += outputs["loss"].item()
        self.images_of_step += len(batch.labels)
        if (batch_idx + 1) % self.recipe.accumulate:
            return
        now = time.perf_counter() - self.start
        wish = float(self.stop is not None and self.stop.requested is not None)
        loss, images, wish, seconds = self._agreed(self.loss_of_step, self.images_of_step, wish, now)
        self.step += 1
        self.images += round(images)
        self.wall = seconds
        self.trained = self.wall - self.aside
        if self._counts(loss):
            self.loss_sum, self.loss_count = self.loss_sum + loss, self.loss_count + 1
            self.row_sum, self.row_count = self.row_sum + loss, self.row_count + 1
            self.smooth_loss = loss if math.isnan(self.smooth_loss) else 0.95 * self.smooth_loss + 0.05 * loss
            if self.task.ema is not None:
                self.task.ema.update(self.task.model, self.step)
        if self.step % self.recipe.log_every_steps == 0:
            self._log(trainer)
        self._go_on_or_end(trainer, bool(wish))

    def _agreed(self, loss: float, images: float, wish: float, seconds: float) -> tuple[float, ...]:
        """The same numbers for all processes: mean loss, images of the step, whether one was asked to stop, a clock."""
        if self.engine.world == 1:
            return loss, images, wish, seconds
        mine = torch.tensor([loss / self.engine.world, images, wish, seconds if self.rank == 0 else 0.0])
        mine = mine.double().to(self.task.device if self.task.device.type != "mps" else "cpu")
        torch.distributed.all_reduce(mine)
        return tuple(mine.tolist())

    def _counts(self, loss: float) -> bool:
        """Whether a step was taken; where it was not, running statistics go back to what they were.

        Raises:
            TrainingError: when there were too many such steps.
        """
        if self.good and math.isfinite(loss):
            return True
        what = f"the loss became {loss}" if not math.isfinite(loss) else f"the gradient's norm became {self.norm}"
        epoch = self.step / self.steps_per_epoch
        if self.good or self.nan_skips >= self.recipe.nan_skips:
            after = f" after {self.nan_skips} steps that were left out" if self.nan_skips else ""
            raise TrainingError(
                f"{what} at step {self.step} (epoch {epoch:.2f}){after}; a lower lr, a longer warmup or clip_grad in "
                f"the recipe may help{self._last_good()}"
            )
        self.nan_skips += 1
        for buffer, before in self.statistics:
            buffer.copy_(before)
        return False

    def _last_good(self) -> str:
        if self.keeping.checkpoints is None or self.saved_step < 0:
            return ""
        return f"; the last good state is {self.keeping.checkpoints.path(self.saved_step)}"

    def _go_on_or_end(self, trainer: pl.Trainer, wish: bool) -> None:
        every = self.recipe.checkpoint_every_steps
        if self.done >= 1:
            trainer.should_stop = True
            self.finish(self.task.device, trainer)
            return
        if self.done >= (len(self.curve) + 1) / self.points:
            self.evaluate(self.task.device, trainer)
            self.save(trainer)
        elif wish or (every and self.step % every == 0):
            self.save(trainer)
        if wish:
            self.stopped = (self.stop.requested if self.stop else None) or "a signal to another process"
            trainer.should_stop = True
        self.report()

    def finish(self, device: torch.device, trainer: pl.Trainer | None = None) -> None:
        """Test what was trained, and keep it; without a trainer what was resumed is at its end already."""
        if trainer is None:
            assert self.keeping.resume is not None
            self.task.tested.load_state_dict(self.keeping.resume["state_dict"])
            self.at_the_end = self._test(device, None)
        else:
            self.at_the_end = self.evaluate(device, trainer)
            self.save(trainer)
            if self.task.sharded:
                self.final = capture(self.task, trainer.optimizers[0])["state_dict"]
        self.report()

    def evaluate(self, device: torch.device, trainer: pl.Trainer | None) -> tuple[Outcomes, np.ndarray]:
        """Add a point to the curve; the time it takes is not time of training."""
        start = time.perf_counter()
        outcomes, logits = self._test(device, trainer)
        scores = outcomes.score(self.val_data.num_classes)
        loss = self.loss_sum / self.loss_count if self.loss_count else self.smooth_loss
        epoch = self.step / self.steps_per_epoch
        self.curve.append(CurvePoint(epoch, self.step, self.trained, loss, scores.nll, scores.top1))
        if scores.top1 > self.best[1]:
            self.best = self.step, scores.top1
        self.loss_sum, self.loss_count = 0.0, 0
        self.aside += time.perf_counter() - start
        self._log(trainer, {"val_loss": scores.nll, "val_top1": scores.top1, "val_top5": scores.top5})
        return outcomes, logits

    def _test(self, device: torch.device, trainer: pl.Trainer | None) -> tuple[Outcomes, np.ndarray]:
        share = Share(self.rank, self.engine.world if trainer is not None else 1)
        context = trainer.precision_plugin.forward_context() if trainer is not None else contextlib.nullcontext()
        with torch.no_grad(), context:
            outputs = [o.numpy() for o in _outputs(self.task.tested, self.task.prepare, self.val_data, device, share)]
        if share.world > 1:
            everyone: list[Any] = [None] * share.world
            torch.distributed.all_gather_object(everyone, outputs)
            total = sum(map(len, everyone))
            outputs = [everyone[i % share.world][i // share.world] for i in range(total)]
        logits = np.concatenate(outputs)
        if not np.isfinite(logits).all():
            raise TrainingError(
                f"the model's outputs are not finite after step {self.step}; a lower lr may help{self._last_good()}"
            )
        return Outcomes.of(logits, self.val_data.labels), logits

    def save(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint, once a step; the first process does, the others wait."""
        checkpoints = self.keeping.checkpoints
        if checkpoints is None or self.saved_step == self.step:
            return
        start = time.perf_counter()
        captured = capture(self.task, trainer.optimizers[0])
        if self.rank == 0:
            checkpoint = {**captured, "pace": self._state(), "about": dict(self.keeping.about)}
            best = self.best[0] if self.best[1] >= 0 else None
            try:
                checkpoints.save(self.step, checkpoint, self.keeping.texts, best)
            except CheckpointError as error:
                raise TrainingError(f"{error}; a lower lr may help{self._last_good()}") from error
            except OSError as error:
                raise TrainingError(_disk_message(checkpoints, error, self._last_good())) from error
        self.saved_step = self.step
        trainer.strategy.barrier()
        self.aside += time.perf_counter() - start

    def _log(self, trainer: pl.Trainer | None, scores: Mapping[str, float | None] | None = None) -> None:
        if self.rank == 0 and trainer is not None:
            mean = self.row_sum / self.row_count if self.row_count else math.nan
            row = {
                "step": self.step,
                "epoch": self.step / self.steps_per_epoch,
                "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
                "train_loss": mean,
                "grad_norm": self.norm,
                "images_per_s": self.images / self.trained,
                "seconds": self.trained,
                **(scores or {}),
            }
            self.keeping.log(cast("Mapping[str, float]", row))
        self.row_sum, self.row_count = 0.0, 0

    def report(self) -> None:
        if self.rank:
            return
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


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Seed all generators by what is done next, so that nothing drawn before matters."""
    drawn = int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]) >> 1
    torch.manual_seed(drawn)
    random.seed(drawn)
    np.random.seed(drawn % 2**32)


def _disk_message(checkpoints: Checkpoints, error: OSError, last_good: str) -> str:
    import shutil

    free = shutil.disk_usage(checkpoints.folder).free
    return (
        f"cannot write a checkpoint to {checkpoints.folder} ({error.strerror or error}; {free / 2**20:,.0f} MiB free); "
        f"make room and go on with --resume{last_good}"
    )


@contextmanager
def _explained(recipe: Recipe, engine: Engine, pace: _Pace) -> Iterator[None]:
    """Errors of the machine as messages: what happened and what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrainingError(_memory_message(recipe, engine, pace)) from error
    except RuntimeError as error:
        text = str(error)
        if "can't allocate memory" in text or "out of memory" in text:
            raise TrainingError(_memory_message(recipe, engine, pace)) from error
        if "DataLoader worker" in text:
            raise TrainingError(
                f"a process that reads images has died after step {pace.step} ({text.splitlines()[0]}); was there not "
                f"enough memory? fewer --workers need less{pace._last_good()}"
            ) from error
        if engine.world > 1 and any(word in text for word in ("Connection", "gloo", "NCCL", "timed out", "peer")):
            raise TrainingError(
                f"process {pace.rank} lost another one after step {pace.step} ({text.splitlines()[0][:200]}); "
                f"--resume goes on{pace._last_good()}"
            ) from error
        raise


def _memory_message(recipe: Recipe, engine: Engine, pace: _Pace) -> str:
    at_a_time = -(-recipe.batch_size // (engine.world * recipe.accumulate))
    advice = (
        f"accumulate={2 * recipe.accumulate} keeps it and takes {-(-at_a_time // 2)} at a time, or lower batch_size"
        if at_a_time > 1
        else "a smaller image_size needs less"
    )
    peak = f" (peak {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB)" if torch.cuda.is_available() else ""
    return (
        f"out of memory{peak} with a batch_size of {recipe.batch_size}, {at_a_time} images at a time on each device: "
        f"{advice}{pace._last_good()}"
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
            # The average of the weights is only ever tested.
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training")
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
