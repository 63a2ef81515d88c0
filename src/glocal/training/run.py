"""A training run and its folder: start, resume after any stop, finish.

OUT/plan.json             what was asked; a resumed run must ask the same
OUT/recipe.yaml           the recipe, every setting
OUT/metrics.csv           a row each log_every_steps and each evaluation
OUT/checkpoints/step-*/   the newest two and the best, each with its recipe
OUT/model.safetensors     the final weights, and config.json beside them
OUT/results.json          scores, written last: its being there means that the run is finished
"""

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from glocal.bench import copy_on_meta, count_params, describe_environment
from glocal.errors import CheckpointError, GlocalError
from glocal.files import atomic_write_text, printable, sha256
from glocal.run_dir import agree_on_plan, clean, hold_folder, refuse_existing
from glocal.schema import CurveRow, RunResults, SkippedImage
from glocal.signals import LAUNCHER, StopRequest, end_with_parent
from glocal.training.checkpoint import Checkpointer
from glocal.training.config import TrainConfig, upgraded
from glocal.training.hardware import is_first_process
from glocal.training.train_state import TrainingProgress
from glocal.training.trainable import Trainable
from glocal.training.trainer import Trainer, TrainResult

SCHEMA = "glocal.train/1"
PLAN, RECIPE, METRICS, RESULTS = "plan.json", "recipe.yaml", "metrics.csv", "results.json"
COLUMNS = ("step", "epoch", "lr", "train_loss", "grad_norm", "images_per_s", "seconds")
SPARE_BYTES = 64 * 2**20
"""Free space that a run wants beside its checkpoints."""


def train_run(
    task: Trainable,
    out: Path,
    *,
    stop: StopRequest | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[TrainingProgress], None] = lambda _: None,
) -> RunResults:
    """Train a model for a task, with everything about the run in a folder.

    Args:
        task: a task with its data and configuration, such as `glocal.tasks.ClassificationTask`.
        out: the run's folder.
        stop: checked after each step; see `glocal.training.trainer.Trainer`.
        say: is given notes for the user.
        progress: called after each step.

    Returns:
        What ``results.json`` holds.

    Raises:
        GlocalError: for a folder that is in use, has a run already, or one with other settings; for a model that
            cannot be made.
        TrainingError: see `glocal.training.trainer.Trainer`.
        Stopped: when ``stop`` was requested; the run can be resumed.
    """
    first, config = is_first_process(), task.config
    if os.environ.get("LOCAL_RANK", "0") != "0" and not {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & set(os.environ):
        end_with_parent()  # started by the first process of this node
    elif config.hardware.world_size > 1:
        os.environ[LAUNCHER] = str(os.getpid())
    plan = _plan(task)
    with hold_folder(out) if first else nullcontext():
        if first:
            finished = _begin(out, plan, config, say)
            if finished is not None:
                return finished
        return _train(task, out, plan, first, stop, say, progress)


def _plan(task: Trainable) -> dict[str, Any]:
    config = task.config
    weights = config.model.weights
    return {
        "schema": SCHEMA,
        "model": config.model.name,
        "weights": sha256(weights) if isinstance(weights, Path) else weights,
        "seed": config.seed,
        "precision": config.hardware.precision,
        "image_size": config.image_size,
        "recipe": config.to_recipe(),
        **task.plan(),
    }


def _begin(out: Path, plan: dict[str, Any], config: TrainConfig, say: Callable[[str], None]) -> RunResults | None:
    """Write or compare the plan; return the results if the run is already finished."""
    path, checkpoint = out / PLAN, config.checkpoint
    if path.exists() and _trained_nothing(out):
        path.unlink()
    if not path.exists() and any(out.glob("checkpoints/step-*")):
        raise GlocalError(f"out: {printable(out)} has checkpoints but no {PLAN}; choose another --out")
    if path.exists() and not checkpoint.resume:
        refuse_existing(out, "a run")
    changes = agree_on_plan(path, plan, upgrade=upgraded, allow_changed=checkpoint.allow_changed)
    for change in changes:
        say(f"Changed since the run began: {change}")
    results = out / RESULTS
    if results.exists() and not changes:
        try:
            finished: RunResults = json.loads(results.read_text(encoding="utf-8"))
        except ValueError as error:
            raise GlocalError(f"out: {results} is damaged ({error}); delete it and resume to write it again") from error
        return finished
    results.unlink(missing_ok=True)
    atomic_write_text(path, json.dumps(plan, indent=1))
    atomic_write_text(out / RECIPE, config.to_yaml())
    return None


def _trained_nothing(out: Path) -> bool:
    """Whether a run was started without any progress, for example because the model could not be created."""
    try:
        ours = json.loads((out / PLAN).read_text(encoding="utf-8")).get("schema") == SCHEMA
    except (OSError, ValueError, AttributeError):
        return False
    return ours and not (out / RESULTS).exists() and not any(out.glob("checkpoints/step-*"))


def _train(
    task: Trainable,
    out: Path,
    plan: dict[str, Any],
    first: bool,
    stop: StopRequest | None,
    say: Callable[[str], None],
    progress: Callable[[TrainingProgress], None],
) -> RunResults:
    config = task.config
    model = task.create_model()
    for note in task.notes():
        say(note)
    macs = task.count_macs(model)
    write = partial(_write_model, copy_on_meta(model), task)
    checkpointer = Checkpointer(out / "checkpoints", write, about=plan, texts={RECIPE: config.to_yaml()})
    if first:
        clean(checkpointer.folder)
        clean(out)
        _check_space(out, model, config)
    resumed = checkpointer.load_newest(say) if config.checkpoint.resume else None
    if config.checkpoint.resume and resumed is None:
        say("No checkpoint found: starting at step 0.")
    if resumed is not None:
        say(f"Resuming from step {resumed[0]}.")
        _check_names(checkpointer.path(resumed[0]), model, resumed[1])
    train_set, val_set = task.datasets()
    columns, start = (*COLUMNS, *task.columns), resumed[0] if resumed else 0
    rows = _logging(out, columns, start, config.checkpoint.tensorboard) if first else nullcontext(lambda _: None)
    with rows as log:
        if stop is not None:
            stop.at_once = False
        trainer = Trainer(
            task,
            config,
            macs=macs,
            checkpointer=checkpointer,
            resume=resumed[1] if resumed else None,
            log=log,
            stop=stop,
            curve_points=None,
            progress=progress,
        )
        result = trainer.fit(model, train_set, val_set)
    results = _results(task, plan, result, macs)
    if first:
        checkpointer.prune(result.state.step, result.state.best[0])  # it may have been killed after its last checkpoint
        task.save(result.model, out)
        atomic_write_text(out / RESULTS, json.dumps(results, indent=1, allow_nan=False))
    return results


def _write_model(shell: nn.Module, task: Trainable, folder: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """Write weights as a model file; ``shell`` is the model on the meta device."""
    shell.load_state_dict(state_dict, assign=True)
    task.save(shell, folder)


def _check_space(out: Path, model: nn.Module, config: TrainConfig) -> None:
    """Check for free disk space: two checkpoints, the best one, one being written, the final model.

    Raises:
        GlocalError: naming needed and free space.
    """
    tensors = (1 if config.optimizer.ema == 0 else 2) + 2  # weights, their average, two moments of the optimizer
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    needed = size * (4 * tensors + 1) + SPARE_BYTES
    free = shutil.disk_usage(out).free
    if free < needed:
        raise GlocalError(
            f"out: checkpoints need {needed / 2**20:,.0f} MiB in {printable(out)}, {free / 2**20:,.0f} MiB are free; "
            "free some space or choose another --out"
        )


def _check_names(path: Path, model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
    if changes := [name for name in expected | found if expected.get(name) != found.get(name)]:
        raise CheckpointError(
            f"{printable(path)}: not of this model: {len(changes)} tensors differ, such as {', '.join(changes[:3])}; "
            "choose another --out"
        )


@contextmanager
def _logging(
    out: Path, columns: Sequence[str], start: int, tensorboard: bool
) -> Iterator[Callable[[Mapping[str, float | None]], None]]:
    """Write rows of metrics to metrics.csv, truncated to the step of the resume, and to TensorBoard's events."""
    path = out / METRICS
    _cut(path, columns, start)
    events: Any = None
    if tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter

            events = SummaryWriter(out / "tensorboard", purge_step=start + 1)
        except ModuleNotFoundError as error:
            raise GlocalError("tensorboard: not installed; pip install 'glocal[tensorboard]'") from error
    with open(path, "a", encoding="utf-8", newline="") as file:

        def log(row: Mapping[str, float | None]) -> None:
            csv.writer(file, lineterminator="\n").writerow(_cell(row.get(name)) for name in columns)
            file.flush()
            os.fsync(file.fileno())
            if events is not None:
                for key, value in row.items():
                    if value is not None and key != "step":
                        events.add_scalar(key, value, int(row["step"] or 0))

        try:
            yield log
        finally:
            if events is not None:
                events.close()


def _cut(path: Path, columns: Sequence[str], start: int) -> None:
    """Keep the complete rows up to a step, and the header."""
    kept = io.StringIO()
    csv.writer(kept, lineterminator="\n").writerow(columns)
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]:
            step = line.partition(",")[0]
            if line.endswith("\n") and line.count(",") == len(columns) - 1 and step.isdigit() and int(step) <= start:
                kept.write(line)
    atomic_write_text(path, kept.getvalue())


def _cell(value: float | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def _results(task: Trainable, plan: dict[str, Any], result: TrainResult, macs: int) -> RunResults:
    hardware, metric = task.config.hardware, task.metric
    return {
        "schema": SCHEMA,
        "command": task.config.command,
        "plan": plan,
        "device": hardware.device,
        "processes": hardware.world_size,
        "environment": describe_environment(),
        "params": count_params(result.model),
        "macs": macs,
        **task.about(),
        **task.results(result.outcomes),
        "metric": metric,
        "best": {"step": result.state.best[0], metric: max(point.val_score for point in result.state.curve)},
        "steps": result.state.step,
        "epochs": result.epochs,
        "seconds": result.state.trained,
        "flop": result.flop,
        "images_per_s": result.images_per_s,
        "nan_skips": result.state.nan_skips,
        "curve": [cast(CurveRow, _finite(asdict(point))) for point in result.state.curve],
        "skipped": [cast(SkippedImage, asdict(skipped)) for skipped in (*task.skipped, *result.state.skipped)],
    }


def _finite(row: Mapping[str, float]) -> dict[str, float | None]:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
