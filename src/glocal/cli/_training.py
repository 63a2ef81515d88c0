"""A training run from the command line: `glocal train`, `glocal detect train` and `glocal segment train`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glocal.cli._command_line import command_line, default_folder, resume_command
from glocal.errors import GlocalError, check_choice
from glocal.files import printable
from glocal.run_dir import check_writable
from glocal.signals import RESUMABLE, StopRequest

if TYPE_CHECKING:
    from glocal.models.io import TaskName
    from glocal.training import HeadConfig, TrainConfig

COMMANDS = {"classification": "train", "detection": "detect", "segmentation": "segment"}


def run_training(task: "TaskName", options: Mapping[str, Any]) -> None:
    """Start or resume a run, and end the process with one of the exit codes of `_options.TRAIN_CODES`.

    Args:
        task: of the command.
        options: of the command, by their names; ``head`` is the detector or segmenter.
    """
    # A signal may come while libraries are loaded; a process that others wait for agrees with them after a step.
    with StopRequest(at_once=os.environ.get("LOCAL_RANK", "0") == "0").installed() as stop:
        from glocal.cli._display import TrainWatcher
        from glocal.tasks import TASKS
        from glocal.training.hardware import is_first_process

        config = train_config(task, options)
        out, first = _run_folder(task, options, config), is_first_process()
        if first:
            check_writable(out)
        source = load(
            task,
            options["data"],
            on_error=options["on_error"],
            split_seed=options["split_seed"],
            follow_links=options["follow_links"],
            progress=first,
        )
        watcher = TrainWatcher(task, shown=first)
        trained = TASKS[task].for_data(source, config)
        watcher.introduce(source, config, out)
        _train(trained, out, stop, watcher, first)


def train_config(task: "TaskName", options: Mapping[str, Any]) -> "TrainConfig":
    """The configuration of a command's options.

    Raises:
        GlocalError: for an option that is out of range.
    """
    from glocal.models.creation import check_model
    from glocal.training import HardwareConfig, resolve_device

    head = None if task == "classification" else head_config(task, options["head"], options)
    model = options["model"]
    check_model(model, with_keywords=task == "classification")
    weights = _weights(task, model, options["weights"])
    hardware = HardwareConfig(
        resolve_device(options["device"]),
        options["devices"],
        options["num_nodes"],
        options.get("strategy", "ddp"),
        options["precision"],
    ).placed()
    hardware.check()
    recipe = _recipe(task, options, has_weights=weights is not None)
    return recipe.replace(
        name=model,
        weights=weights,
        head=head,
        seed=options["seed"],
        device=hardware.device,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=hardware.strategy,
        precision=hardware.precision,
        num_workers=options["workers"],
        on_error=options["on_error"],
        resume=options["resume"],
        allow_changed=options["allow_changed"],
        tensorboard=options["tensorboard"],
        command=command_line(),
    )


def head_config(task: "TaskName", head: str, options: Mapping[str, Any]) -> "HeadConfig":
    """A detector or segmenter, with the options of its command.

    Raises:
        GlocalError: for an unknown head, or an option that is unknown or out of range.
    """
    from glocal.heads.settings import HEADS
    from glocal.tasks import read_options
    from glocal.training import HeadConfig

    check_choice("detector" if task == "detection" else "segmenter", head, HEADS[task])
    return HeadConfig(
        head,
        options["preset"] or "",
        options["frozen_norm"],
        options["frozen_stages"],
        read_options(task, options["option"] or ()),
    )


def _weights(task: "TaskName", model: str, weights: str | None) -> Any:
    """A file, ``pretrained``, or None."""
    from glocal.models.creation import has_weights
    from glocal.models.io import find_model

    is_head = task != "classification"
    if weights == "pretrained":
        if not has_weights(model):
            advice = (
                "give a classifier that glocal has trained: --weights RUN" if is_head else "give a file: --weights FILE"
            )
            raise GlocalError(f"weights: timm has no weights of {model}; {advice}")
        return "pretrained"
    if weights is None:
        return None
    path = find_model(Path(weights)) if is_head else Path(weights)
    if not path.is_file():
        expected = "the folder of a run, its file or pretrained" if is_head else "a file or pretrained"
        which = "none" if is_head else "neither"
        raise GlocalError(f"weights: expected {expected}, got {printable(weights)}, which is {which}")
    return path


def _recipe(task: "TaskName", options: Mapping[str, Any], *, has_weights: bool) -> "TrainConfig":
    from glocal.training import DEFAULT_RECIPES, load_recipe

    freeze = options["freeze"] or []
    settings = [*(options["settings"] or []), *([f"freeze=[{','.join(freeze)}]"] if freeze else [])]
    if task != "classification":
        default = DEFAULT_RECIPES[task]
        return load_recipe(options["recipe"] or default, base=default, settings=settings)
    mode = "probe" if freeze == ["backbone"] else "finetune" if has_weights else "scratch"
    return load_recipe(options["recipe"] or DEFAULT_RECIPES[mode], settings=settings)


def _run_folder(task: "TaskName", options: Mapping[str, Any], config: "TrainConfig") -> Path:
    out: Path | None = options["out"]
    if out is not None:
        return out
    if options["resume"] or config.hardware.world_size > 1:
        raise GlocalError(
            f"{'--resume' if options['resume'] else 'several processes'} need --out: the folder of the run"
        )
    data = options["data"] if task == "classification" else options["data"].partition(":")[0]
    return default_folder(f"{COMMANDS[task]}-{options['model']}", data)


def load(task: "TaskName", data: str, **options: Any) -> Any:
    """The train and val images of a data set, by `load_data`, `load_detection` or `load_segmentation`."""
    from glocal.data import load_data, load_detection, load_segmentation

    loaders: Any = {"classification": load_data, "detection": load_detection, "segmentation": load_segmentation}
    return loaders[task](data, **options)


def _train(task: Any, out: Path, stop: StopRequest, watcher: Any, first: bool) -> None:
    from glocal.training import Stopped, TrainingError
    from glocal.training.run import train_run

    try:
        results = train_run(task, out, stop=stop, say=watcher.say, progress=watcher.update)
    except Stopped as stopped:
        watcher.close()
        watcher.say(
            f"Stopped by {stopped.reason}: saved up to step {stopped.step}; to resume:\n  {resume_command(out)}"
        )
        raise typer.Exit(RESUMABLE if first else 0) from None
    except (TrainingError, OSError) as error:
        watcher.close()
        kept = "; saved checkpoints are kept and --resume continues" if isinstance(error, OSError) else ""
        watcher.fail(f"{error}{kept}")
        raise typer.Exit(1) from None
    finally:
        watcher.close()
    watcher.conclude(results, out)
