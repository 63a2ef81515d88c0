"""One model, one recipe, one budget: the training loop, on pytorch-lightning's engine."""

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn

from glocal.data import Skipped
from glocal.data.workers import LOST, worker_died
from glocal.signals import StopRequest
from glocal.training.budget import Budget, training_flop
from glocal.training.classification import logits_of
from glocal.training.loader import (
    Batch,
    Batched,
    Key,
    Share,
    num_batches,
    training_loader,
)
from glocal.training.objective import Objective
from glocal.training.pace import (
    CURVE_POINTS,
    CurvePoint,
    Engine,
    Keeping,
    Pace,
    Progress,
    Stopped,
    Terms,
    TrainingError,
    evaluations,
    refuse_bad,
)
from glocal.training.recipe import Recipe
from glocal.training.task import Task, plain_copy

TIMEOUT = timedelta(minutes=10)
"""How long processes wait for each other; one that dies is noticed at once, by its closed connections."""
PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class TrainResult:
    """A trained model.

    Attributes:
        model: the module that was given, trained, on the CPU, in eval mode.
        outcomes: of the validation set at the end, as the objective joins them.
        curve: evaluations, the last at the end of the budget.
        steps: optimizer steps.
        epochs: passes over the training set.
        seconds: of training, evaluation not counted.
        seconds_to_budget: from the first step to the end of the budget, evaluation on the way counted.
        flop: floating-point operations of training.
        images_per_s: of training.
        skipped: training images that went bad and were left out.
        nan_skips: steps that were left out, as their loss or gradient was not finite.
        best_step: the step of the evaluation with the highest score.
    """

    model: nn.Module
    outcomes: Any
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


def train(
    model: nn.Module,
    train_data: Batched,
    val_data: Batched,
    *,
    objective: Objective,
    recipe: Recipe,
    budget: Budget,
    seed: int,
    macs: int,
    engine: Engine = Engine(),  # noqa: B008 - immutable
    keeping: Keeping = Keeping(),  # noqa: B008 - immutable
    stop: StopRequest | None = None,
    num_workers: int | None = None,
    curve_points: int | None = CURVE_POINTS,
    on_error: Literal["stop", "skip"] = "stop",
    progress: Callable[[Progress], None] = lambda _: None,
) -> TrainResult:
    """Train a model until its budget is used up.

    Everything random comes from ``seed``, whatever ran before in this process, and the generators are put back after.
    What is drawn at a step depends on the seed and the number of the step, so a run that is stopped and resumed is the
    run that was not.

    Args:
        model: its trainable parameters are changed in place.
        train_data: what it learns from.
        val_data: what it is tested on, without augmentation.
        objective: what for: `Classification`, or another task.
        recipe: learning rate, loss and the like.
        budget: when to stop.
        seed: of order, augmentation and whatever the model draws.
        macs: multiply-accumulates of a forward pass for one image.
        engine: devices, processes and precision.
        keeping: checkpoints and rows of metrics; by default nothing is written.
        stop: is looked at after each step; where it is requested, a checkpoint is written and the run ends.
        num_workers: processes that read images; by default one a processor, where images are decoded.
        curve_points: how often the model is evaluated at most; None for as often as the recipe says.
        on_error: what to do with an image that went bad since it was checked: ``stop``, or ``skip`` and report.
        progress: called after each step, in the first process.

    Raises:
        TrainingError: when the loss is not finite, memory or the disk is full, a process died, or an image went bad.
        Stopped: when ``stop`` was requested.
    """
    device = torch.device(engine.device)
    sharded = engine.strategy == "fsdp" and engine.world > 1
    layout = torch.contiguous_format if sharded else torch.channels_last  # FSDP2 takes plain tensors
    model = model.to(memory_format=layout).train()
    plain = plain_copy(model, model.state_dict()) if sharded else None
    with _quiet_engine(), isolate_rng(), _own_interrupt():
        pl.seed_everything(seed, verbose=False)
        steps_per_epoch = num_batches(len(train_data), recipe.batch_size)
        steps = budget.steps(len(train_data), steps_per_epoch, macs)
        task = Task(model, objective, recipe, sharded)
        terms = Terms(budget, steps, steps_per_epoch, seed, engine, keeping, stop, curve_points, on_error, progress)
        pace = Pace(task, val_data, terms)

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
    return TrainResult(
        model=result,
        outcomes=pace.at_the_end,
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
    engine: Engine, device: torch.device, recipe: Recipe, pace: "Pace", task: Task, data: Batched
) -> pl.Trainer:
    devices: Any = engine.devices
    if engine.world == 1:
        devices = 1 if device.index is None or device.type == "cpu" else [device.index]
    trainer = pl.Trainer(
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
    # the engine's own handlers would raise in the middle of a step, or ask SLURM to start the job again
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


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
        find_unused_parameters=task.objective.may_leave_idle(task.model, data[Key(0, np.arange(1))]),
        gradient_as_bucket_view=True,
    )


@torch.no_grad()
def predict(model: nn.Module, prepare: nn.Module, data: Batched, device: str | torch.device = "cpu") -> torch.Tensor:
    """(N, K) outputs of a model for a set, in its order, on the CPU; the mode of the model is left as it was."""
    found = []
    for output, batch in evaluations(_Outputs(prepare), model, data, device, Share()):
        refuse_bad(batch)
        found.append(output)
    return torch.cat(found)


class _Outputs(Objective):
    """Nothing is learned: what a model gives for a batch is kept as it is."""

    def __init__(self, prepare: nn.Module) -> None:
        super().__init__()
        self.prepare = prepare

    def test(self, model: nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
        return logits_of(model, self.prepare, batch, device)


class _Readable:
    """Batches whose bad images, which have no place in them, end the run or are noted."""

    def __init__(self, loader: Callable[[], Iterable[Batch]], on_error: Literal["stop", "skip"], pace: "Pace") -> None:
        self.loader, self.on_error, self.pace = loader, on_error, pace

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader():
            if self.on_error == "stop" or not len(batch.labels):
                refuse_bad(batch)  # a whole batch gone bad is no matter of single images
            self.pace.skipped |= dict.fromkeys(batch.skipped)
            yield batch._replace(skipped=())  # the engine moves a batch to its device and knows tensors only


@contextmanager
def _explained(recipe: Recipe, engine: Engine, pace: Pace) -> Iterator[None]:
    """Errors of the machine as messages: what happened and what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrainingError(_memory_message(recipe, engine, pace)) from error
    except ValueError as error:  # and whatever else is one, as it is
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            f"BatchNorm has nothing to normalise with in step {pace.step + 1}: one image, and one pixel of it; raise "
            f"batch_size or image_size, lower --devices or accumulate, or take a model without{pace.last_good()}"
        ) from error
    except LOST as error:
        text = str(error) or type(error).__name__
        if "can't allocate memory" in text or "out of memory" in text:
            raise TrainingError(_memory_message(recipe, engine, pace)) from error
        if worker_died(error):
            raise TrainingError(
                f"a process that reads images has died after step {pace.step} ({text.splitlines()[0]}); was there not "
                f"enough memory? fewer --workers need less{pace.last_good()}"
            ) from error
        if engine.world > 1 and any(word in text for word in ("Connection", "gloo", "NCCL", "timed out", "peer")):
            raise TrainingError(
                f"process {pace.rank} lost another one after step {pace.step} ({text.splitlines()[0][:200]}); "
                f"--resume goes on{pace.last_good()}"
            ) from error
        raise


def _memory_message(recipe: Recipe, engine: Engine, pace: Pace) -> str:
    at_a_time = -(-recipe.batch_size // (engine.world * recipe.accumulate))
    advice = (
        f"accumulate={2 * recipe.accumulate} keeps it and takes {-(-at_a_time // 2)} at a time, or lower batch_size"
        if at_a_time > 1
        else "a smaller image_size needs less"
    )
    peak = f" (peak {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB)" if torch.cuda.is_available() else ""
    return (
        f"out of memory{peak} with a batch_size of {recipe.batch_size}, {at_a_time} images at a time on each device: "
        f"{advice}{pace.last_good()}"
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
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
