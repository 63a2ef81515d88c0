"""What the commands of detection and segmentation share: options, a run, a measurement, a job."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glocal.errors import GlocalError, check_choice
from glocal.files import atomic_write_text, printable
from glocal.signals import RESUMABLE, StopRequest

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from glocal.models.io import TaskName

CODES = """\b
Exit codes:
  0 finished
  1 training failed: the message says why; what was saved is kept
  2 the call is wrong
  75 stopped by SIGTERM or Ctrl-C after a saved step: --resume goes on
"""

Model = Annotated[str, typer.Option(help="Backbone: name of a glocal or timm model.")]
RecipeOption = Annotated[str, typer.Option(metavar="FILE|NAME", help="A shipped recipe, or a file of settings.")]
Settings = Annotated[
    list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="A setting of the recipe: -s lr=0.001.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="RUN|FILE|pretrained",
        help="Weights of the backbone: a classifier of glocal, or timm's; default: random ones.",
    ),
]
Freeze = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Not trained: backbone, or a module's name; repeatable."),
]
FrozenNorm = Annotated[
    bool, typer.Option("--frozen-norm", help="Keep the statistics of the backbone's BatchNorm; needs trained weights.")
]
FrozenStages = Annotated[int, typer.Option(min=0, help="Stages of the backbone, its stem first, that are not trained.")]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="A keyword of the head; docs/tasks.md.")
]
Out = Annotated[
    Path | None, typer.Option(help="The run's folder; default: runs/TASK-MODEL-DATA-TIME.", show_default=False)
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with --out; begins if nothing is there.")]
AllowChanged = Annotated[bool, typer.Option("--allow-changed", help="Resume although data or settings have changed.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Devices = Annotated[int, typer.Option(min=1, help="Processes of a node, one a device.")]
NumNodes = Annotated[int, typer.Option(min=1, help="Machines; see docs/training.md.")]
PrecisionOption = Annotated[str, typer.Option(help="32, bf16 or fp16 (mixed).")]
Seed = Annotated[int, typer.Option(min=0, help="Of weights, order, augmentation and all other draws.")]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes that read images; default: one a processor, where needed.")
]
OnError = Annotated[str, typer.Option(help="At images and objects that cannot be used: stop, or skip and list them.")]
FollowLinks = Annotated[bool, typer.Option("--follow-links", help="Follow links in the folder.")]
SplitSeed = Annotated[int, typer.Option(help="Picks the test images of data that has no val part.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write events for TensorBoard too.")]
RunOrFile = Annotated[Path, typer.Argument(metavar="RUN|FILE", help="Folder of a run, or its model.safetensors.")]
Part = Annotated[str, typer.Option(help="val or train.")]
Json = Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write the results as JSON.")]
Inputs = Annotated[list[str], typer.Argument(metavar="INPUT...", help="Images, folders of them, or .tar shards.")]
Folder = Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write the results.")]
Draw = Annotated[bool, typer.Option("--draw", help="Write pictures with what was found.")]


@dataclass(frozen=True)
class Call:
    """What a person asks of a run, as `train` takes it."""

    task: "TaskName"
    data: str
    model: str
    head: str
    preset: str = ""
    recipe: str = ""
    settings: Sequence[str] = ()
    weights: str | None = None
    freeze: Sequence[str] = ()
    frozen_norm: bool = False
    frozen_stages: int = 0
    options: Sequence[str] = ()
    out: Path | None = None
    resume: bool = False
    allow_changed: bool = False
    device: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "32"
    seed: int = 0
    workers: int | None = None
    on_error: str = "stop"
    follow_links: bool = False
    split_seed: int = 0
    tensorboard: bool = False


def train(call: Call) -> None:
    """Begin or resume a run, and end the process as `CODES` says."""
    # A signal may come while libraries are loaded; a process that others wait for agrees with them after a step.
    with StopRequest(at_once=os.environ.get("LOCAL_RANK", "0") == "0").installed() as stop:
        from glocal.data import load_detection, load_segmentation
        from glocal.files import check_writable
        from glocal.heads.settings import HEADS
        from glocal.models.creation import check_model, has_weights
        from glocal.models.io import find_model
        from glocal.tasks import DetectObjects, HeadSettings, SegmentImages, read_options
        from glocal.tasks.settings import DEFAULT_RECIPES
        from glocal.training import HardwareConfig, Stopped, TrainingError, load_recipe, resolve_device
        from glocal.training.hardware import is_first_process
        from glocal.training.request import Request
        from glocal.training.run import train_run

        detects = call.task == "detection"
        check_choice("detector" if detects else "segmenter", call.head, HEADS[call.task])
        check_choice("precision", call.precision, ("32", "bf16", "fp16"))
        check_choice("on-error", call.on_error, ("stop", "skip"))
        check_model(call.model)
        start: Any = None
        if call.weights == "pretrained":
            if not has_weights(call.model):
                raise GlocalError(
                    f"weights: timm has none of {call.model}; give a classifier that glocal has trained: --weights RUN"
                )
            start = "pretrained"
        elif call.weights is not None:
            start = find_model(Path(call.weights))
            if not start.is_file():
                got = printable(call.weights)
                raise GlocalError(
                    f"weights: expected the folder of a run, its file or pretrained, got {got}, which is none"
                )
        hardware = HardwareConfig(
            resolve_device(call.device), call.devices, call.num_nodes, "ddp", call.precision
        ).placed()
        hardware.check()
        out = call.out
        if out is None:
            if call.resume or hardware.world_size > 1:
                raise GlocalError(
                    f"{'--resume' if call.resume else 'several processes'} need --out: the folder of the run"
                )
            name = Path(call.data.partition(":")[0]).name or "data"
            out = Path("runs") / f"{_word(call.task)}-{call.model}-{name}-{datetime.now():%Y%m%d-%H%M%S}"
        given = [*call.settings, *([f"freeze=[{','.join(call.freeze)}]"] if call.freeze else [])]
        usual = DEFAULT_RECIPES[call.task]
        request = Request(
            model=call.model,
            recipe=load_recipe(call.recipe or usual, base=usual, settings=given),
            weights=start,
            seed=call.seed,
            hardware=hardware,
            num_workers=call.workers,
            on_error=call.on_error,  # type: ignore[arg-type]
            resume=call.resume,
            allow_changed=call.allow_changed,
            tensorboard=call.tensorboard,
            command=shlex.join(["glocal", *sys.argv[1:]]),
        )
        settings = HeadSettings(
            call.head, call.preset, call.frozen_norm, call.frozen_stages, read_options(call.task, call.options)
        )
        first = is_first_process()
        if first:
            check_writable(out)
        load: Any = load_detection if detects else load_segmentation
        source = load(
            call.data,
            on_error=call.on_error,
            split_seed=call.split_seed,
            follow_links=call.follow_links,
            progress=first,
        )
        watcher = _watcher(call.task, first)
        make: Any = DetectObjects if detects else SegmentImages
        assignment = make(source, settings, watcher.say)
        assignment.architecture(request)  # what is wrong with the call is said before anything else
        watcher.introduce(source, request, out)
        try:
            results = train_run(assignment, request, out, stop=stop, say=watcher.say, progress=watcher.update)
        except Stopped as stopped:
            watcher.close()
            again = shlex.join([*(a for a in sys.argv[1:] if a != "--resume"), "--resume"])
            hint = again if "--out" in again else f"{again} --out {shlex.quote(str(out))}"
            watcher.say(f"Stopped by {stopped.reason}: saved up to step {stopped.step}; to go on:\n  glocal {hint}")
            raise typer.Exit(RESUMABLE if first else 0) from None
        except (TrainingError, OSError) as error:
            watcher.close()
            kept = "; what was saved is kept and --resume goes on" if isinstance(error, OSError) else ""
            watcher.fail(f"{error}{kept}")
            raise typer.Exit(1) from None
        finally:
            watcher.close()
        watcher.conclude(results, out)


def _word(task: str) -> str:
    return {"detection": "detect", "segmentation": "segment"}[task]


def _watcher(task: str, shown: bool) -> Any:
    from rich.markup import escape

    from glocal.cli._display import TrainWatcher

    class TaskWatcher(TrainWatcher):
        """Shows scores by their names."""

        score = "mAP" if task == "detection" else "mIoU"

        def conclude(self, results: dict[str, Any], out: Path) -> None:
            plan = results["plan"]
            self.out.print(
                f"[bold]{plan['head']['head']}[/] on [bold]{plan['model']}[/]: {summary(results)} after "
                f"{results['epochs']:g} epochs ({results['seconds']:,.0f} s, {results['images_per_s']:,.1f} images/s)"
            )
            if results["nan_skips"]:
                self.out.print(f"[yellow]{results['nan_skips']} steps were left out: loss or gradient not finite.[/]")
            self.out.print(f"Model: {escape(printable(out / 'model.safetensors'))}")

    return TaskWatcher(shown)


def summary(results: Mapping[str, Any]) -> str:
    """The scores of a detector or segmenter in a few words."""
    if "miou" in results:
        return f"mIoU {100 * results['miou']:.1f} %, pixel accuracy {100 * results['pixel_accuracy']:.1f} %"
    text = f"mAP {100 * results['map']:.1f} % (at 0.5: {100 * results['map50']:.1f} %)"
    if "mask" in results:
        mask = results["mask"]
        text += f", of masks {100 * mask['map']:.1f} % (at 0.5: {100 * mask['map50']:.1f} %)"
    return text


def check_file(out: Path | None) -> None:
    """Refuse a file that cannot be written before anything is measured."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise GlocalError(f"out: expected a file in a folder that is there, got {printable(out)}")


def write_json(out: Path, results: Mapping[str, Any]) -> None:
    """Results into a file."""
    try:
        atomic_write_text(out, json.dumps(results, indent=1, allow_nan=False))
    except OSError as error:
        raise GlocalError(f"out: cannot write {printable(out)} ({error.strerror})") from error


def measure(
    task: "TaskName",
    model: Path,
    data: str,
    *,
    part: str,
    out: Path | None,
    on_error: str,
    split_seed: int,
    follow_links: bool,
    device: str,
    run: Callable[..., dict[str, Any]],
    load: Callable[..., Any],
) -> None:
    """Load a model and a part of a data set, measure, show, write."""
    check_choice("part", part, ("val", "train"))
    check_choice("on-error", on_error, ("stop", "skip"))
    check_file(out)
    import glocal
    from glocal.models.io import load_model
    from glocal.training import resolve_device

    saved = load_model(model, task)
    device = resolve_device(device)
    source = load(data, on_error=on_error, split_seed=split_seed, follow_links=follow_links)
    images = getattr(source, part)
    _, bars, follow = progress_bar("Measuring")
    with bars:
        found = run(saved, images, source, device=device, on_error=on_error, progress=follow)
    results = {
        "schema": f"glocal.{_word(task)}/1",
        "glocal": glocal.__version__,
        "model": {"name": saved.name, "task": task, "digest": saved.identity},
        "data": {
            "name": source.name,
            "part": part,
            "split": source.split,
            "fingerprint": source.fingerprint,
            "warnings": list(source.warnings),
        },
        **found,
    }
    if out is not None:
        write_json(out, results)
    from rich.console import Console
    from rich.markup import escape

    shown = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    shown.print(
        f"[bold]{escape(saved.name)}[/] on {results['images']:,} images of "
        f"{escape(printable(source.name))} ({part}): {summary(results)}"
    )
    for warning in source.warnings:
        shown.print(f"[yellow]Note:[/] {escape(printable(warning))}")
    shown.print(_per_class(results))
    if results["skipped"]:
        shown.print(f"[yellow]{len(results['skipped'])} images could not be read.[/]")


def _per_class(results: Mapping[str, Any]) -> "Table":
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", no_wrap=True)
    columns = [("IoU %" if "miou" in results else "AP %", results["per_class"])]
    if "mask" in results:
        columns.append(("mask AP %", results["mask"]["per_class"]))
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in zip(results["classes"], *(values for _, values in columns), strict=True):
        if any(value is not None for value in row[1:]):
            cells = ["" if value is None else f"{100 * value:.1f}" for value in row[1:]]
            table.add_row(escape(printable(row[0])), *cells)
    return table


def progress_bar(title: str) -> "tuple[Console, Any, Callable[[int, int], None]]":
    """Console, bars to enter, and what to tell of how many are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bars.add_task(title, total=None)
    return console, bars, lambda done, total: bars.update(task, completed=done, total=total)


def predict(
    task: "TaskName",
    model: Path,
    inputs: Sequence[str],
    out: Path,
    *,
    draw: bool,
    threshold: float,
    draw_threshold: float,
    resume: bool,
    workers: int | None,
    device: str,
) -> None:
    """Predict images into a folder."""
    from rich.markup import escape

    from glocal.files import check_writable
    from glocal.inference import list_inputs
    from glocal.models.io import load_model
    from glocal.tasks import predict_images
    from glocal.training import resolve_device

    check_writable(out)
    listed = list_inputs(inputs)
    saved = load_model(model, task)
    console, bars, follow = progress_bar("Predicting")
    try:
        with bars:
            done = predict_images(
                saved,
                listed,
                out,
                draw=draw,
                threshold=threshold,
                draw_threshold=draw_threshold,
                device=resolve_device(device),
                workers=workers,
                resume=resume,
                progress=lambda number, total, failed: follow(number, total),
            )
    except KeyboardInterrupt:
        again = shlex.join(["glocal", *(a for a in sys.argv[1:] if a != "--resume"), "--resume"])
        console.print(f"\nStopped. To go on:\n  {escape(printable(again))}")
        raise typer.Exit(130) from None
    before = f", {done.before:,} of them before" if done.before else ""
    bad = f", {done.failed:,} that cannot be read" if done.failed else ""
    console.print(f"{done.total:,} images{before}{bad}; results in {escape(printable(out))}")
    if done.failed == done.total:
        raise typer.Exit(1)
