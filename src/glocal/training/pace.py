"""What goes on step by step: the learning rate, the guards, tests, checkpoints, and the end of a run."""

import contextlib
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from glocal.data import Skipped
from glocal.errors import CheckpointError, GlocalError
from glocal.files import printable
from glocal.signals import StopRequest
from glocal.training.budget import Budget
from glocal.training.checkpoint import Checkpoints
from glocal.training.loader import Batch, Batched, Key, Share, evaluation_batch, evaluation_loader, num_batches
from glocal.training.objective import Objective, Score
from glocal.training.task import SCHEDULE_STEPS, Task, capture, make_schedule, restore

CURVE_POINTS = 10
"""In a comparison a model is evaluated after each epoch, but at most this often in its budget."""


class TrainingError(GlocalError):
    """A run that cannot go on; the other runs of a comparison can."""


class Stopped(Exception):  # noqa: N818 - not an error
    """A run that was asked to stop: everything is saved up to ``step``."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"stopped by {reason} after step {step}")
        self.step, self.reason = step, reason


@dataclass(frozen=True)
class CurvePoint:
    """Where a model stood: ``seconds`` of training, mean training loss since the point before, validation `Score`."""

    epoch: float
    step: int
    seconds: float
    train_loss: float
    val_loss: float | None
    val_score: float


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows of a run: ``done`` of its budget (0 to 1), smoothed loss, the last validation score."""

    done: float
    epoch: float
    step: int
    loss: float
    images_per_s: float
    seconds_left: float
    point: CurvePoint | None


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


@dataclass(frozen=True)
class Terms:
    """On what terms a model is trained; see `glocal.training.train`.

    Attributes:
        steps: of the whole run; None where the clock ends it.
        steps_per_epoch: steps that an epoch is cut into.
    """

    budget: Budget
    steps: int | None
    steps_per_epoch: int
    seed: int
    engine: Engine
    keeping: Keeping
    stop: StopRequest | None
    curve_points: int | None
    on_error: Literal["stop", "skip"]
    progress: Callable[[Progress], None]


class Pace(pl.Callback):
    """Sets the learning rate by the share of the budget used up, guards and keeps what is trained, and ends the run."""

    def __init__(self, task: Task, val_data: Batched, terms: Terms) -> None:
        self.task, self.val_data = task, val_data
        self.budget, self.steps, self.steps_per_epoch = terms.budget, terms.steps, terms.steps_per_epoch
        self.seed, self.engine, self.keeping, self.stop = terms.seed, terms.engine, terms.keeping, terms.stop
        self.on_error, self.progress = terms.on_error, terms.progress
        self.recipe = task.recipe
        every = self.recipe.evaluate_every_epochs * self.steps_per_epoch
        wanted = CURVE_POINTS if self.steps is None else max(1, round(self.steps / every))
        self.points = wanted if terms.curve_points is None else min(terms.curve_points, wanted)
        self.rank = 0
        self.stopped: str | None = None
        self.at_the_end: Any = None
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
        if self.keeping.resume is not None:
            self._resume(self.keeping.resume["pace"])

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
        """Share of the budget that is used up."""
        return min(1.0, self.trained / self.budget.amount if self.steps is None else self.step / self.steps)

    def on_fit_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Learn which process this is."""
        self.rank = trainer.global_rank

    def on_train_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Go on from the checkpoint, where there is one."""
        if self.keeping.resume is not None:
            restore(self.task, trainer.optimizers[0], dict(self.keeping.resume))
        self.schedule = make_schedule(trainer.optimizers[0], self.recipe)
        self.start = time.perf_counter() - self.trained - self.aside

    def on_train_batch_start(self, trainer: pl.Trainer, _: pl.LightningModule, __: Any, batch_idx: int) -> None:
        """Seed what is drawn, and set the learning rate at the start of a step."""
        part = batch_idx % self.recipe.accumulate
        _seed_step(self.seed, self.step * self.recipe.accumulate + part, self.rank, self.task.device)
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
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
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
        """At the end of a step: agree with the other processes, log, test, keep, and end the run."""
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
        numbers = [loss / self.engine.world, images, wish, seconds if self.rank == 0 else 0.0]
        mine = torch.tensor(numbers, dtype=torch.float64).to(self.task.device)  # in float32 a week has no seconds
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
                f"the recipe may help{self.last_good()}"
            )
        self.nan_skips += 1
        for buffer, before in self.statistics:
            buffer.copy_(before)
        return False

    def last_good(self) -> str:
        """Where the newest checkpoint is, for an error's message."""
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
            self.at_the_end, _ = self._test(device, None)
            self.final = dict(self.keeping.resume["state_dict"])
        else:
            self.at_the_end = self.evaluate(device, trainer)
            self.save(trainer)
            if self.task.sharded:
                self.final = capture(self.task, trainer.optimizers[0])["state_dict"]
        self.report()

    def evaluate(self, device: torch.device, trainer: pl.Trainer | None) -> Any:
        """Add a point to the curve; the time it takes is not time of training."""
        start = time.perf_counter()
        found, score = self._test(device, trainer)
        loss = self.loss_sum / self.loss_count if self.loss_count else self.smooth_loss
        epoch = self.step / self.steps_per_epoch
        self.curve.append(CurvePoint(epoch, self.step, self.trained, loss, score.loss, score.value))
        if score.value > self.best[1]:
            self.best = self.step, score.value
        self.loss_sum, self.loss_count = 0.0, 0
        self.aside += time.perf_counter() - start
        self._log(trainer, score.columns)
        return found

    def _test(self, device: torch.device, trainer: pl.Trainer | None) -> tuple[Any, Score]:
        share = Share(self.rank, self.engine.world if trainer is not None else 1)
        context = trainer.precision_plugin.forward_context() if trainer is not None else contextlib.nullcontext()
        objective, mine = self.task.objective, []
        with torch.no_grad(), context:
            if share.world > 1:  # each process has seen other images: test what the first one saves
                for buffer in self.task.tested.buffers():
                    torch.distributed.broadcast(buffer, 0)
            for part, batch in evaluations(objective, self.task.tested, self.val_data, device, share):
                if self.on_error == "stop" or objective.needs_every_image:
                    refuse_bad(batch)
                self.skipped |= dict.fromkeys(batch.skipped)
                mine.append(part)
        # the outermost parameters stay whole after a forward pass that no backward one follows
        for module in self.task.tested.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        if share.world > 1:
            everyone: list[Any] = [None] * share.world
            torch.distributed.all_gather_object(everyone, mine)
            total = sum(map(len, everyone))
            mine = [everyone[i % share.world][i // share.world] for i in range(total)]
        found = objective.join(mine)
        if not len(found):
            raise TrainingError("no image of the validation set can be read any more")
        score = objective.score(found)
        if score.loss is not None and not math.isfinite(score.loss):
            raise TrainingError(
                f"the model's outputs are not finite after step {self.step}; a lower lr may help{self.last_good()}"
            )
        return found, score

    def save(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint, once a step; the first process does, the others wait."""
        checkpoints = self.keeping.checkpoints
        if checkpoints is None or self.saved_step == self.step:
            return
        start = time.perf_counter()
        captured = capture(self.task, trainer.optimizers[0]) if self.rank == 0 or self.task.sharded else {}
        if self.rank == 0:
            checkpoint = {**captured, "pace": self._state(), "about": dict(self.keeping.about)}
            best = self.best[0] if self.best[1] >= 0 else None
            try:
                checkpoints.save(self.step, checkpoint, self.keeping.texts, best)
            except CheckpointError as error:
                raise TrainingError(f"{error}; a lower lr may help{self.last_good()}") from error
            except OSError as error:
                raise TrainingError(_disk_message(checkpoints, error, self.last_good())) from error
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
        """Tell of the progress, in the first process."""
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


def _seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed all generators by what is done next, so that nothing drawn before matters.

    Those of devices that are not used are left alone: `torch.manual_seed` keeps a stack trace for each of them.
    """
    drawn = int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]) >> 1
    torch.default_generator.manual_seed(drawn)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(drawn)
    random.seed(drawn)
    np.random.seed(drawn % 2**32)


def evaluations(
    objective: Objective, model: nn.Module, data: Batched, device: str | torch.device, share: Share
) -> Iterator[tuple[Any, Batch]]:
    """What the objective keeps of each batch that this process reads, and the batch.

    Each process calls the model equally often: where another has a batch more, one is done twice.
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


def refuse_bad(batch: Batch) -> None:
    """Raise TrainingError for a batch with an image that went bad."""
    if batch.skipped:
        bad = batch.skipped[0]
        raise TrainingError(f"{printable(bad.path)}: {bad.reason}")


def _disk_message(checkpoints: Checkpoints, error: OSError, last_good: str) -> str:
    free = shutil.disk_usage(checkpoints.folder).free
    return (
        f"cannot write a checkpoint to {checkpoints.folder} ({error.strerror or error}; {free / 2**20:,.0f} MiB free); "
        f"make room and go on with --resume{last_good}"
    )
