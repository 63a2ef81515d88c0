"""`glocal compare`: train and evaluate models on images, and say which to take."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import glocal.cli._options as opt
from glocal.cli import app
from glocal.cli._command_line import command_line, default_folder, resume_command
from glocal.cli._training import head_config, load
from glocal.errors import GlocalError, check_choice
from glocal.run_dir import check_writable

if TYPE_CHECKING:
    from glocal.comparison import ComparisonSettings
    from glocal.models.io import TaskName
    from glocal.schema import CompareResults
    from glocal.training import HeadConfig, TrainConfig

TASKS: "dict[str, TaskName]" = {"classify": "classification", "detect": "detection", "segment": "segmentation"}
OPTIONS_OF = {
    "classify": ("analyze",),
    "detect": ("detector", "preset", "frozen_norm", "frozen_stages", "option"),
    "segment": ("segmenter", "preset", "frozen_norm", "frozen_stages", "option"),
}
"""Options that not every task has."""
EPILOG = """\
\b
Examples:
  glocal compare fashion-mini
  glocal compare photos --models resnet50,botnet50 --budget 30ep --image-size 128
  glocal compare photos --budget 600s --fraction 1.0,0.3,0.1 --out study
  glocal compare photos --models 'cvt_micro,cvt_micro:projection=linear,botnet_micro:attention_stages=(3,4)'
  glocal compare photos --mode finetune --models resnet50 --weights resnet50=FILE
  glocal compare photos --search exhaustive                 every model to the end, every seed
  glocal compare photos --max-latency 10ms --runtime onnxruntime --max-file 40MB    the best within these limits
  glocal compare photos --out study --resume
  glocal compare photos --out study --resume --analyze      also explain why, from the trained models; trains nothing
  glocal compare items-on-photos --task detect --detector fcos --models resnet_micro,vit_micro
  glocal compare ade20k --task segment --segmenter upernet --models cat_small,cvt_13 --image-size 512

\b
Exit codes:
  0 all runs finished
  1 a run failed, or a part of --analyze: the report says why, --resume tries again
  2 invalid arguments or data
  130 stopped by Ctrl-C: --resume continues
"""

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Folder of images, shards (train-{000..099}.tar), or a built-in set; for other tasks, what "
        "`glocal detect` and `glocal segment` take.",
    ),
]
TaskOption = Annotated[str, typer.Option(help="classify, detect or segment: docs/compare.md.")]
Models = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C",
        help="Names of glocal's or timm's models; default: glocal's seven micro models.",
        show_default=False,
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        help="Training of each run: 5ep (epochs), 90s (seconds) or 2e14flop (3 x forward, 2 per MAC); default: the "
        "recipe's epochs, 5 without a recipe.",
        show_default=False,
    ),
]
ModeOption = Annotated[
    str,
    typer.Option(
        help="scratch; finetune from weights; or probe: logistic regression on the features of a frozen backbone."
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=FILE", help="Weights to finetune or probe (safetensors, or a .pth of tensors)."),
]
Seeds = Annotated[
    int | None,
    typer.Option(help="Runs per model: 3 means seeds 0, 1 and 2; default: 3, or 1 for probes.", show_default=False),
]
ImageSize = Annotated[int | None, typer.Option(help="Side in pixels; default: the largest default of the models.")]
Cost = Annotated[
    str,
    typer.Option(help="The cheapest of the best models by: latency (batch 1), throughput, memory (training) or macs."),
]
MaxLatency = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Limit on the model to take: time per image in --runtime, such as 10ms.",
        show_default=False,
    ),
]
RuntimeOption = Annotated[
    str, typer.Option(help="Where time and file are measured: eager (PyTorch), onnxruntime or openvino (on the CPU).")
]
MaxParams = Annotated[
    str | None, typer.Option(metavar="COUNT", help="Limit on the parameters, such as 20M.", show_default=False)
]
MaxFile = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Limit on the saved or exported model, such as 40MB.", show_default=False),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Limit on the memory of a training step, such as 4GB.", show_default=False),
]
SearchOption = Annotated[
    str | None,
    typer.Option(
        help="race: models that can no longer be the answer leave; exhaustive: all runs. Default: race, with "
        "several seeds and a budget in epochs or FLOP.",
        show_default=False,
    ),
]
Rates = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C",
        help="Learning rates tried for each model, as multiples of the recipe's; default with --mode finetune: "
        "0.25,1,4, else none.",
        show_default=False,
    ),
]
Fraction = Annotated[str, typer.Option(help="Fractions of the training images, one run each: 1.0,0.3,0.1.")]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|NAME", help="Name of a recipe (deit), or a YAML file of settings that differ from the default's."
    ),
]
Detector = Annotated[str | None, typer.Option(help="For --task detect: faster_rcnn, fcos, ...; default: faster_rcnn.")]
Segmenter = Annotated[
    str | None, typer.Option(help="For --task segment: semantic_fpn, upernet, ...; default: semantic_fpn.")
]
Preset = Annotated[
    str | None,
    typer.Option(help="Size of the head: small, coco (detect) or ade20k (segment); default: by the image size."),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder for results; default: runs/compare-DATA-TIME.", show_default=False)
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the comparison in --out: run only what is missing.")]
Analyze = Annotated[
    bool,
    typer.Option(
        "--analyze", help="Also explain why: analyze one trained model per architecture on up to 256 validation images."
    ),
]


@app.command(epilog=EPILOG)
def compare(
    data: Data,
    task: TaskOption = "classify",
    models: Models = None,
    budget: BudgetOption = None,
    seeds: Seeds = None,
    mode: ModeOption = "scratch",
    weights: Weights = None,
    image_size: ImageSize = None,
    cost: Cost = "latency",
    max_latency: MaxLatency = None,
    runtime: RuntimeOption = "eager",
    max_params: MaxParams = None,
    max_file: MaxFile = None,
    max_memory: MaxMemory = None,
    search: SearchOption = None,
    rates: Rates = None,
    fraction: Fraction = "1.0",
    recipe: Recipe = None,
    detector: Detector = None,
    segmenter: Segmenter = None,
    preset: Preset = None,
    frozen_norm: opt.FrozenNorm = False,
    frozen_stages: opt.FrozenStages = 0,
    option: opt.HeadOptions = None,
    on_error: opt.OnError = "stop",
    follow_links: opt.FollowLinks = False,
    split_seed: opt.SplitSeed = 0,
    device: opt.Device = "auto",
    out: Out = None,
    resume: Resume = False,
    analyze: Analyze = False,
) -> None:
    """Train and evaluate models on your images under one recipe and budget, and say which to take.

    With --task detect or segment, each model is the backbone of the same detector or segmenter.

    Writes results.json, results.csv, report.html and the trained models. Stop at any time: --resume continues.
    """
    check_choice("task", task, tuple(TASKS))
    if resume and out is None:
        raise GlocalError("--resume needs --out: the folder of the comparison to resume")
    settings = _settings(task, locals())
    out = out or default_folder("compare", data)
    check_writable(out)
    try:
        source = load(TASKS[task], data, on_error=on_error, split_seed=split_seed, follow_links=follow_links)
    except GlocalError as error:
        raise GlocalError(f"{error}{_other_task(data, task)}") from error

    from glocal.cli._display import conclude, text_console

    results = _run(source, settings, out, resume=resume, analyze=analyze)
    conclude(text_console(), results, out, settings.metric)
    analyzed = results.get("analysis", {}).get("models", ())
    if any(run["status"] == "failed" for run in results["runs"]) or any(model["failed"] for model in analyzed):
        raise typer.Exit(1)


def _settings(task: str, options: Mapping[str, Any]) -> "ComparisonSettings":
    """The settings of the options, checked.

    Raises:
        GlocalError: for an option that is out of range, or of another task.
    """
    from glocal.comparison import CostLimits, make_settings
    from glocal.models.micro import MICRO_MODELS
    from glocal.models.names import split_models

    return make_settings(
        head=_head(task, options),
        models=MICRO_MODELS if options["models"] is None else split_models(options["models"]),
        budget=options["budget"],
        seeds=options["seeds"],
        mode=options["mode"],
        weights=dict(_parse_weights(item) for item in options["weights"] or ()),
        image_size=options["image_size"],
        cost=options["cost"],
        search=options["search"],
        rates=None if options["rates"] is None else [_parse_rate(item) for item in options["rates"].split(",")],
        fractions=[_parse_fraction(item) for item in options["fraction"].split(",")],
        recipe=_read_recipe(options["recipe"], task, options["mode"]) if options["recipe"] else None,
        device=options["device"],
        on_error=options["on_error"],
        task=TASKS[task],
        limits=CostLimits.parse(
            **{name: options[name] for name in ("max_latency", "max_params", "max_file", "max_memory", "runtime")}
        ),
    )


def _head(task: str, options: Mapping[str, Any]) -> "HeadConfig | None":
    """The detector or segmenter; None for classification.

    Raises:
        GlocalError: for an option of another task, or one that is unknown or out of range.
    """
    from glocal.comparison.settings import DEFAULT_HEADS

    for name, value in options.items():
        tasks = [one for one, names in OPTIONS_OF.items() if name in names]
        if value and tasks and task not in tasks:
            others = " or ".join(f"--task {one}" for one in tasks)
            raise GlocalError(f"--{name.replace('_', '-')} is for {others}, got --task {task}")
    if task == "classify":
        return None
    head = options["detector"] or options["segmenter"] or DEFAULT_HEADS[TASKS[task]]
    return head_config(TASKS[task], head, options)


def _run(source: Any, settings: "ComparisonSettings", out: Path, *, resume: bool, analyze: bool) -> "CompareResults":
    """Compare, with progress on standard error."""
    from rich.markup import escape

    from glocal.cli._display import Watcher, introduce, text_console
    from glocal.comparison import compare

    console = text_console(stderr=True)
    introduce(console, source, settings, out)
    watcher = Watcher(console, settings.metric)
    try:
        return compare(
            source,
            settings,
            out,
            resume=resume,
            side_by_side=True,
            analyze=analyze,
            command=command_line(),
            observer=watcher,
        )
    except KeyboardInterrupt:
        watcher.close()
        finished = f"{watcher.finished} of {len(list(settings.runs()))} runs are finished and kept"
        console.print(f"\nStopped. {finished}; to resume:\n  {escape(resume_command(out))}")
        raise typer.Exit(130) from None
    except OSError as error:
        raise GlocalError(f"out: {error}; finished runs are kept and --resume continues") from error
    finally:
        watcher.close()


def _read_recipe(recipe: str, task: str, mode: str) -> "TrainConfig":
    """A shipped recipe of the task, or a file.

    Raises:
        GlocalError: for the recipe of another task, or one that cannot be read.
    """
    from glocal.training import DEFAULT_RECIPES, load_recipe, recipe_names

    by_task = {name: recipe_names(None if name == "classify" else name) for name in TASKS}
    for other, names in by_task.items():
        if other != task and recipe in names:
            raise GlocalError(
                f"recipe: expected one for --task {task} ({', '.join(by_task[task])}) or a file, got {recipe!r}, which "
                f"is for --task {other}"
            )
    return load_recipe(recipe, DEFAULT_RECIPES.get(mode if task == "classify" else TASKS[task]))


def _other_task(data: str, task: str) -> str:
    """A hint if data that are unusable for one task have the layout of another."""
    from glocal.data.layouts import tasks_of

    others = [f"--task {name}" for name, of in TASKS.items() if name != task and of in tasks_of(data)]
    return f"; it is laid out for {' or '.join(others)}" if others else ""


def _parse_weights(item: str) -> tuple[str, Path]:
    name, separator, path = item.partition("=")
    if not (name and separator and path):
        raise GlocalError(f"weights: expected NAME=FILE, such as resnet50=resnet50.safetensors; got {item!r}")
    return name, Path(path)


def _parse_rate(item: str) -> float:
    try:
        return float(item)
    except ValueError:
        raise GlocalError(
            f"rates: expected multiples of the recipe's learning rate such as 0.25,1,4; got {item!r}"
        ) from None


def _parse_fraction(item: str) -> float:
    try:
        return float(item)
    except ValueError:
        raise GlocalError(f"fraction: expected fractions such as 1.0,0.3,0.1; got {item!r}") from None
