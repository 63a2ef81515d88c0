"""The training loop: `Trainer.fit`, on Lightning Fabric, which handles devices, processes and precision."""

import copy
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from glocal.models.creation import frozen_norms
from glocal.rng import isolated_rng, seed_all
from glocal.signals import StopRequest
from glocal.training.budget import Budget, training_flop
from glocal.training.checkpoint import Checkpointer
from glocal.training.config import TrainConfig
from glocal.training.errors import Stopped, TrainingError
from glocal.training.evaluation import evaluate_batches, refuse_bad
from glocal.training.fabric import grad_scaler, make_fabric, quiet_fabric, shard
from glocal.training.faults import explained
from glocal.training.hardware import check_bf16_convolutions
from glocal.training.loader import (
    Batch,
    BatchDataset,
    BatchIndices,
    evaluation_loader,
    num_batches,
    training_loader,
)
from glocal.training.nan_guard import NaNGuard
from glocal.training.optimizer import create_optimizer
from glocal.training.schedule import LRSchedule
from glocal.training.train_state import TrainingProgress, TrainState, capture, restore, whole_state_dict
from glocal.training.trainable import Score, Trainable

CURVE_POINTS, POINTS_PER_EPOCH = 10, 2
"""Evaluations within the budget of a comparison: at most so many, and so many per epoch."""


@dataclass(frozen=True)
class TrainResult:
    """A trained model.

    Attributes:
        model: the trained module, on the CPU, in eval mode.
        outcomes: of the validation set at the end, as the task joins them.
        state: counters, curve and best evaluation.
        epochs: passes over the training set.
        flop: floating-point operations of training.
        images_per_s: of training.
        done: fraction of the budget that is used up: below 1 for a run that pauses.
        paused: the checkpoint of such a run, to resume from.
    """

    model: nn.Module
    outcomes: Any
    state: TrainState
    epochs: float
    flop: float
    images_per_s: float
    done: float = 1.0
    paused: Mapping[str, Any] | None = None


class Trainer:
    """Trains one model for one task until a budget is used up.

    All random numbers depend only on ``seed`` and the number of the step, so a stopped and resumed run is bit-identical
    to an uninterrupted one. The global random generators are restored after training.

    Args:
        task: loss and evaluation.
        config: learning rate, optimizer, EMA, hardware and the like.
        budget: when to stop; default: after the epochs of the recipe.
        macs: multiply-accumulates of a forward pass for one image.
        checkpointer: writes checkpoints; default: none.
        resume: the checkpoint to continue from.
        log: called with each row of metrics.
        stop: checked after each step; when requested, a checkpoint is written and the run ends.
        curve_points: maximum number of evaluations; None: as in the recipe.
        until: pause at the first evaluation after this fraction of the budget; 1 for the whole.
        progress: called after each step, in the first process.
    """

    def __init__(
        self,
        task: Trainable,
        config: TrainConfig,
        budget: Budget | None = None,
        *,
        macs: int,
        checkpointer: Checkpointer | None = None,
        resume: Mapping[str, Any] | None = None,
        log: Callable[[Mapping[str, float | None]], None] = lambda _: None,
        stop: StopRequest | None = None,
        curve_points: int | None = CURVE_POINTS,
        until: float = 1.0,
        progress: Callable[[TrainingProgress], None] = lambda _: None,
    ) -> None:
        self.task, self.config, self.macs, self.stop = task, config, macs, stop
        self.budget = budget or Budget(config.schedule.epochs, "ep")
        self.checkpointer, self.resume, self.log = checkpointer, resume, log
        self.curve_points, self.until, self.progress = curve_points, until, progress
        self.state = TrainState() if resume is None else TrainState.from_dict(resume["train_state"])
        self.saved_step = -1 if resume is None else self.state.step
        self.rank = 0

    def fit(self, model: nn.Module, train_set: BatchDataset, val_set: BatchDataset) -> TrainResult:
        """Train a model; its parameters are changed in place.

        Args:
            model: the model to train.
            train_set: batches with augmentation.
            val_set: batches without.

        Raises:
            TrainingError: when the loss is not finite, memory or the disk is full, a process died, or an image went
                bad.
            Stopped: when ``stop`` was requested.
        """
        config, state, accum = self.config, self.state, self.config.optimizer.grad_accum_steps
        outcomes, stopped, sharded = None, None, config.hardware.is_sharded
        unsharded = copy.deepcopy(model) if sharded else model
        with isolated_rng(), explained(self), closing(self._batches(train_set)) as batches:
            self._setup(model, train_set)
            while self.done < self.until and stopped is None:
                self.schedule.step(self.done)
                self.nan_guard.start_step()
                loss, images = 0.0, 0.0
                for part in range(accum):
                    batch = self._next_batch(batches, part)
                    # DDP adds up the gradients of all processes once a step, in its last part
                    with self.fabric.no_backward_sync(self.criterion, enabled=part + 1 < accum and not sharded):
                        part_loss = self.criterion(batch) * batch.weight / accum
                        self.fabric.backward(part_loss)
                    loss += part_loss.item()
                    images += len(batch.labels)
                self.grad_norm = self._clip_gradients()
                stepped = self.nan_guard.allows_step(self.grad_norm)
                if stepped:
                    self.optimizer.step()
                self.optimizer.zero_grad()
                loss, images, stop_votes, seconds = self._all_reduce(loss, images)
                state.add_step(round(images), seconds)
                if self._took_step(loss, stepped):
                    state.add_loss(loss)
                    if self.ema is not None:
                        self.ema.update(self.model, state.step)
                if state.step % config.checkpoint.log_every_steps == 0:
                    self._log_row()
                if self.done >= 1 or self.done >= (len(state.curve) + 1) / self.points:
                    outcomes = self._evaluate(val_set)
                    self._save()
                elif stop_votes or self._is_checkpoint_step():
                    self._save()
                if stop_votes and self.done < 1:
                    stopped = (self.stop.requested if self.stop else None) or "a signal to another process"
                self._report()
            if stopped is not None:
                raise Stopped(state.step, stopped)
            if outcomes is None:  # resumed where it was to end
                outcomes, _ = self._outcomes(val_set)
                self._report()
            return self._result(unsharded, outcomes)

    @property
    def done(self) -> float:
        """Fraction of the budget that is used up."""
        if self.steps is None:
            return min(1.0, self.state.trained / self.budget.amount)
        return min(1.0, self.state.step / self.steps)

    @property
    def epoch(self) -> float:
        """Passes over the training set so far."""
        return self.state.step / self.steps_per_epoch

    @property
    def evaluated(self) -> nn.Module:
        """The evaluated and saved model: the EMA of the weights, if the recipe has one."""
        return self.model if self.ema is None else self.ema.module

    def last_good(self) -> str:
        """Where the newest checkpoint is, for an error's message."""
        return "" if self.checkpointer is None else self.checkpointer.last_good()

    # The parts of a step, in the order of the loop.

    def _setup(self, model: nn.Module, train_set: BatchDataset) -> None:
        """Model, optimizer and schedule on their devices, restored from the checkpoint."""
        config, hardware = self.config, self.config.hardware
        self.steps_per_epoch = num_batches(len(train_set), config.data.batch_size)
        self.steps = self.budget.steps(len(train_set), self.steps_per_epoch, self.macs)
        every = config.checkpoint.evaluate_every_epochs * self.steps_per_epoch
        if self.curve_points is None:
            self.points = CURVE_POINTS if self.steps is None else max(1, round(self.steps / every))
        else:
            self.points = self.curve_points
            if self.steps is not None:
                self.points = max(1, min(self.points, POINTS_PER_EPOCH * self.steps // self.steps_per_epoch))
        self.until = math.ceil(self.until * self.points - 1e-9) / self.points
        if config.hardware.sync_batchnorm and hardware.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if hardware.precision == "bf16" and hardware.device == "cpu":
            check_bf16_convolutions(model)
        layout = torch.contiguous_format if hardware.is_sharded else torch.channels_last  # FSDP2 takes plain tensors
        self.model = model.to(memory_format=layout).train()
        self.ema = ModelEmaV3(self.model, decay=config.optimizer.ema) if config.optimizer.ema else None
        self.frozen_norms = frozen_norms(self.model)
        with quiet_fabric():
            self.fabric = make_fabric(hardware, lambda: self._find_unused(train_set), self._shard)
            self.fabric.launch()
        self.rank = self.fabric.global_rank
        seed_all(self.config.seed, self.fabric.device)
        self.task.to(self.fabric.device)
        if self.ema is not None and not hardware.is_sharded:
            self.ema.to(self.fabric.device)
        self.criterion = self.fabric.setup_module(Criterion(self.model, self.task))
        self.scaler = grad_scaler(self.fabric)
        fused = self.scaler is None and not hardware.is_sharded
        optimizer = create_optimizer(self.model, config, fused=fused)
        self.optimizer: Any = self.fabric.setup_optimizers(optimizer)
        if self.resume is not None:
            restore(self.resume, *self._trained())
        self.schedule = LRSchedule(optimizer, config)
        self.nan_guard = NaNGuard(
            self.model, config.optimizer.nan_skips, self.state.nan_skips, has_scaler=self.scaler is not None
        )
        self.state.start_clock()

    def _batches(self, train_set: BatchDataset) -> Generator[Batch]:
        """Endless batches of this process from the next step on; unreadable images end the run or are listed."""
        config = self.config
        for batch in training_loader(
            train_set,
            config.data.batch_size,
            self.config.seed,
            self.config.data.num_workers,
            repeats=config.data.aug_repeats,
            rank=self.rank,
            world_size=config.hardware.world_size,
            grad_accum_steps=config.optimizer.grad_accum_steps,
            start=self.state.step,
        ):
            if self.config.data.on_error == "stop" or not len(batch.labels):
                refuse_bad(batch)  # a whole batch gone bad is no matter of single images
            self.state.skipped |= dict.fromkeys(batch.skipped)
            yield batch._replace(skipped=())  # Fabric moves tensors to the device, and copies dataclasses

    def _next_batch(self, batches: Iterator[Batch], part: int) -> Batch:
        """A micro-batch, on the device; its random augmentation depends only on its number."""
        batch: Batch = self.fabric.to_device(next(batches))
        step = self.state.step * self.config.optimizer.grad_accum_steps + part
        drawn = np.random.SeedSequence((self.config.seed, step, self.rank)).generate_state(1, np.uint64)
        seed_all(int(drawn[0]) >> 1, self.fabric.device)
        for module in self.frozen_norms:
            module.eval()  # frozen modules keep their running statistics
        return batch

    def _clip_gradients(self) -> float:
        """Unscale, measure the norm, clip; the norm before clipping."""
        self.fabric.strategy.precision.unscale_gradients(self.optimizer.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if self.config.optimizer.clip_grad and math.isfinite(norm.item()):
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optimizer.clip_grad, norm)
        return norm.item()

    def _all_reduce(self, loss: float, images: float) -> tuple[float, float, float, float]:
        """Reduce over all processes: mean loss, images of the step, requests to stop, seconds so far."""
        votes = float(self.stop is not None and self.stop.requested is not None)
        seconds, world_size = self.state.seconds(), self.config.hardware.world_size
        if world_size == 1:
            return loss, images, votes, seconds
        numbers = [loss / world_size, images, votes, seconds if self.rank == 0 else 0.0]
        mine = torch.tensor(numbers, dtype=torch.float64, device=self.fabric.device)  # in float32 a week has no seconds
        torch.distributed.all_reduce(mine)
        loss, images, votes, seconds = mine.tolist()
        return loss, images, votes, seconds

    def _took_step(self, loss: float, stepped: bool) -> bool:
        """Whether the step counts: its loss is finite, and the optimizer took it."""
        took = self.nan_guard.is_finite(
            loss,
            self.grad_norm,
            stepped=stepped,
            when=f"step {self.state.step} (epoch {self.epoch:.2f})",
            advice=self.last_good(),
        )
        self.state.nan_skips = self.nan_guard.skipped
        return took

    def _is_checkpoint_step(self) -> bool:
        every = self.config.checkpoint.checkpoint_every_steps
        return bool(every) and self.state.step % every == 0

    def _evaluate(self, val_set: BatchDataset) -> Any:
        """Add a point to the curve; its time does not count as training."""
        start = self.state.seconds()
        outcomes, score = self._outcomes(val_set)
        self.state.add_evaluation(self.epoch, score.loss, score.value)
        self.state.aside += self.state.seconds() - start
        self._log_row(score.columns)
        return outcomes

    def _outcomes(self, val_set: BatchDataset) -> tuple[Any, Score]:
        """Outcomes and score of the validation set; each process evaluates a part."""
        task, world_size, mine = self.task, self.config.hardware.world_size, []
        with torch.no_grad(), self.fabric.autocast():
            if world_size > 1:  # each process has seen other images: evaluate what the first one saves
                for buffer in self.evaluated.buffers():
                    torch.distributed.broadcast(buffer, 0)
            batches = evaluation_loader(val_set, rank=self.rank, world_size=world_size)
            for part, batch in evaluate_batches(task, self.evaluated, batches, self.fabric.device):
                if self.config.data.on_error == "stop" or task.needs_every_image:
                    refuse_bad(batch)
                self.state.skipped |= dict.fromkeys(batch.skipped)
                mine.append(part)
        # the outermost parameters stay whole after a forward pass that no backward one follows
        for module in self.evaluated.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        if world_size > 1:
            everyone: list[Any] = [None] * world_size
            torch.distributed.all_gather_object(everyone, mine)
            mine = [everyone[i % world_size][i // world_size] for i in range(sum(map(len, everyone)))]
        outcomes = task.join(mine)
        if not len(outcomes):
            raise TrainingError("expected readable validation images, got none")
        score = task.score(outcomes)
        if score.loss is not None and not math.isfinite(score.loss):
            raise TrainingError(
                f"the model's outputs are not finite after step {self.state.step}; a lower lr may help"
                f"{self.last_good()}"
            )
        return outcomes, score

    def _save(self) -> None:
        """Write a checkpoint, at most one per step; the first process writes, the others wait."""
        if self.checkpointer is None or self.saved_step == self.state.step:
            return
        start = self.state.seconds()
        tensors = capture(*self._trained()) if self.rank == 0 or self.config.hardware.is_sharded else {}
        if self.rank == 0:
            best = self.state.best[0] if self.state.best[1] >= 0 else None
            self.checkpointer.save(self.state.step, {**tensors, "train_state": self.state.to_dict()}, best)
        self.saved_step = self.state.step
        self.checkpointer.newest = self.checkpointer.path(self.saved_step)
        self.fabric.barrier()
        self.state.aside += self.state.seconds() - start

    def _trained(self) -> tuple[nn.Module, nn.Module | None, torch.optim.Optimizer, Any]:
        """Everything with tensors."""
        return self.model, None if self.ema is None else self.ema.module, self.optimizer.optimizer, self.scaler

    def _log_row(self, scores: Mapping[str, float | None] | None = None) -> None:
        """A row of metrics, from the first process."""
        state = self.state
        row = {
            "step": state.step,
            "epoch": self.epoch,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "train_loss": state.row_loss(),
            "grad_norm": self.grad_norm,
            "images_per_s": state.images / state.trained,
            "seconds": state.trained,
            **(scores or {}),
        }
        if self.rank == 0:
            self.log(row)

    def _report(self) -> None:
        """Show the progress, from the first process."""
        if self.rank:
            return
        state, done = self.state, self.done
        self.progress(
            TrainingProgress(
                done=done,
                epoch=self.epoch,
                step=state.step,
                loss=state.smooth_loss,
                images_per_s=state.images / state.trained,
                seconds_left=state.trained / done * (1 - done) if done else math.nan,
                point=state.curve[-1] if state.curve else None,
            )
        )

    def _result(self, unsharded: nn.Module, outcomes: Any) -> TrainResult:
        """The model on the CPU; sharded parameters are gathered into an unsharded copy."""
        model, paused = self.evaluated, None
        if self.done < 1:
            paused = {**capture(*self._trained()), "train_state": self.state.to_dict()}
        if self.config.hardware.is_sharded:
            unsharded.load_state_dict(whole_state_dict(model))
            model = unsharded
        state = self.state
        return TrainResult(
            model=model.to("cpu").eval(),
            outcomes=outcomes,
            state=state,
            epochs=self.epoch,
            flop=training_flop(self.macs, state.images),
            images_per_s=state.images / state.trained,
            done=self.done,
            paused=paused,
        )

    def _find_unused(self, train_set: BatchDataset) -> bool:
        return self.task.has_unused_parameters(self.model, train_set[BatchIndices(0, np.arange(1))])

    def _shard(self, criterion: "Criterion", mesh: Any) -> nn.Module:
        """FSDP2: model and EMA over the processes."""
        shard(criterion.model, mesh["data_parallel"])
        if self.ema is not None:
            shard(self.ema.module, mesh["data_parallel"])
        return criterion


class Criterion(nn.Module):
    """The loss of a batch of uint8 images: the module that Fabric wraps, so that DDP sees every forward pass."""

    def __init__(self, model: nn.Module, task: Trainable) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Batch) -> torch.Tensor:
        """Mean over the images of the batch."""
        return self.task.loss(self.model, batch)
