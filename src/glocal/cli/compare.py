"""`glocal compare`: train and measure models on images, and say which to take."""

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glocal.cli import app
from glocal.cli._options import Device, FollowLinks, FrozenNorm, FrozenStages, HeadOptions, OnError, SplitSeed
from glocal.errors import GlocalError, check_choice
from glocal.run_dir import check_writable

if TYPE_CHECKING:
    from glocal.training import TrainConfig

TASKS = {"classify": "classification", "detect": "detection", "segment": "segmentation"}
EPILOG = """\
\b
Examples:
  glocal compare fashion-mini
  glocal compare photos --models resnet50,botnet50 --budget 30ep --image-size 128
  glocal compare photos --budget 600s --fraction 1.0,0.3,0.1 --out study
  glocal compare photos --models 'cvt_micro,cvt_micro:projection=linear,botnet_micro:attention_stages=(3,4)'
  glocal compare photos --mode finetune --models resnet50 --weights resnet50=FILE
  glocal compare photos --out study --resume
  glocal compare photos --out study --resume --analyze      say why, too, of what is there; trains nothing anew
  glocal compare items-on-photos --task detect --detector fcos --models resnet_micro,vit_micro
  glocal compare ade20k --task segment --segmenter upernet --models cat_small,cvt_13 --image-size 512

\b
Exit codes:
  0 all runs finished
  1 a run failed, or a part of --analyze: the report says why, --resume tries again
  2 invalid arguments or data
  130 stopped by Ctrl-C: --resume continues
"""


@app.command(epilog=EPILOG)
def compare(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Folder of images, shards (train-{000..099}.tar), or a built-in set; for other tasks, what "
            "`glocal detect` and `glocal segment` take.",
        ),
    ],
    task: Annotated[str, typer.Option(help="classify, detect or segment: docs/compare.md.")] = "classify",
    models: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C",
            help="Names of glocal's or timm's models; default: glocal's seven micro models.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Training of each run: 5ep (epochs), 90s (seconds) or 2e14flop (3 x forward x 2 a MAC); default: the "
            "recipe's epochs, 5 where none is given.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each model: 3 means seeds 0, 1 and 2.")] = 3,
    mode: Annotated[
        str, typer.Option(help="scratch; finetune from weights; or probe: a linear head on a frozen backbone.")
    ] = "scratch",
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Weights to finetune or probe (safetensors, or a .pth of tensors)."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels; default: the largest default of the models.")
    ] = None,
    fraction: Annotated[str, typer.Option(help="Shares of the training images, each a run: 1.0,0.3,0.1.")] = "1.0",
    recipe: Annotated[
        str | None,
        typer.Option(metavar="FILE|NAME", help="YAML of settings that replace the default's, or a name: deit."),
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="Of --task detect: faster_rcnn, fcos, ...; default: faster_rcnn.")
    ] = None,
    segmenter: Annotated[
        str | None, typer.Option(help="Of --task segment: semantic_fpn, upernet, ...; default: semantic_fpn.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Sizes of the head: small, or coco or ade20k; default: by the image size.")
    ] = None,
    frozen_norm: FrozenNorm = False,
    frozen_stages: FrozenStages = 0,
    option: HeadOptions = None,
    on_error: OnError = "stop",
    follow_links: FollowLinks = False,
    split_seed: SplitSeed = 0,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder for results; default: runs/compare-DATA-TIME.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --out: run only what is missing.")] = False,
    analyze: Annotated[
        bool,
        typer.Option(
            "--analyze",
            help="Also explain why: analyze one trained model per architecture on up to 256 validation images.",
        ),
    ] = False,
) -> None:
    """Train and measure models on your images under one recipe and budget, and say which to take.

    With --task detect or segment each model is the backbone of one detector or segmenter.

    Writes results.json, results.csv, report.html and the trained models. Stop at any time: --resume goes on.
    """
    from rich.console import Console
    from rich.markup import escape

    from glocal.cli._display import Watcher, conclude, introduce
    from glocal.comparison import compare as run_comparison
    from glocal.comparison import make_settings
    from glocal.data import load_data, load_detection, load_segmentation
    from glocal.models.micro import MICRO_MODELS
    from glocal.models.names import split_models

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    check_choice("task", task, tuple(TASKS))
    if resume and out is None:
        raise GlocalError("--resume needs --out: the folder of the comparison to go on with")
    given = {
        "--detector": detector, "--segmenter": segmenter, "--preset": preset, "--frozen-norm": frozen_norm,
        "--frozen-stages": frozen_stages, "--option": option, "--analyze": analyze,
    }  # fmt: skip
    head = _read_head(task, {name: value for name, value in given.items() if value})
    settings = make_settings(
        MICRO_MODELS if models is None else split_models(models),
        budget=budget,
        seeds=seeds,
        mode=mode,  # type: ignore[arg-type]
        weights=dict(_parse_weights(item) for item in weights or ()),
        image_size=image_size,
        fractions=[_parse_fraction(item) for item in fraction.split(",")],
        recipe=_read_recipe(recipe, task, mode) if recipe else None,
        device=device,
        on_error=on_error,  # type: ignore[arg-type]
        task=TASKS[task],  # type: ignore[arg-type]
        head=head,
    )
    out = out or Path("runs") / f"compare-{Path(data).name or 'data'}-{datetime.now():%Y%m%d-%H%M%S}"
    check_writable(out)
    load = {"classify": load_data, "detect": load_detection, "segment": load_segmentation}[task]
    try:
        source = load(data, on_error=settings.on_error, split_seed=split_seed, follow_links=follow_links)  # type: ignore[operator]
    except GlocalError as error:
        raise GlocalError(f"{error}{_other_task(data, task)}") from error
    introduce(console, source, settings, out)
    watcher = Watcher(console, settings.metric)
    try:
        results = run_comparison(
            source,
            settings,
            out,
            resume=resume,
            side_by_side=True,
            analyze=analyze,
            command=shlex.join(["glocal", *sys.argv[1:]]),
            observer=watcher,
        )
    except KeyboardInterrupt:
        watcher.close()
        total = len(list(settings.runs()))
        again = shlex.join([*(a for a in sys.argv[1:] if a != "--resume"), "--resume"])
        hint = again if "--out" in again else f"{again} --out {shlex.quote(str(out))}"
        console.print(
            f"\nStopped. {watcher.finished} of {total} runs are finished and kept; to go on:\n  glocal {escape(hint)}"
        )
        raise typer.Exit(130) from None
    except OSError as error:
        raise GlocalError(f"out: {error}; finished runs are kept and --resume goes on") from error
    finally:
        watcher.close()
    conclude(Console(highlight=False, soft_wrap=True), results, out, settings.metric)
    looked_into = results.get("analysis", {}).get("models", ())
    if any(run["status"] == "failed" for run in results["runs"]) or any(model["failed"] for model in looked_into):
        raise typer.Exit(1)


def _read_head(task: str, given: dict[str, Any]) -> Any:
    """The head that options ask for; None for classification.

    Raises:
        GlocalError: for an option that is of another task.
    """
    from glocal.tasks import read_options
    from glocal.training import HeadConfig

    of_task = {
        "classify": ("--analyze",),
        "detect": ("--detector", "--preset", "--frozen-norm", "--frozen-stages", "--option"),
        "segment": ("--segmenter", "--preset", "--frozen-norm", "--frozen-stages", "--option"),
    }
    for name in given:
        if name not in of_task[task]:
            others = " or ".join(f"--task {other}" for other, names in of_task.items() if name in names)
            raise GlocalError(f"{name} is for {others}, got --task {task}")
    if task == "classify":
        return None
    from glocal.comparison.settings import DEFAULT_HEADS

    return HeadConfig(
        given.get("--detector") or given.get("--segmenter") or DEFAULT_HEADS[TASKS[task]],
        given.get("--preset", ""),
        given.get("--frozen-norm", False),
        given.get("--frozen-stages", 0),
        read_options(TASKS[task], given.get("--option", ())),  # type: ignore[arg-type]
    )


def _read_recipe(recipe: str, task: str, mode: str) -> "TrainConfig":
    """A shipped recipe of the task, or a file.

    Raises:
        GlocalError: for the recipe of another task, or one that cannot be read.
    """
    from glocal.tasks.heads import DEFAULT_RECIPES as OF_TASKS
    from glocal.training import DEFAULT_RECIPES, load_recipe, recipe_names

    by_task = {name: recipe_names(None if name == "classify" else name) for name in TASKS}
    for other, names in by_task.items():
        if other != task and recipe in names:
            raise GlocalError(
                f"recipe: expected one for --task {task} ({', '.join(by_task[task])}) or a file, got {recipe!r}, which "
                f"is for --task {other}"
            )
    return load_recipe(recipe, OF_TASKS.get(TASKS[task]) or DEFAULT_RECIPES.get(mode))  # type: ignore[call-overload]


def _other_task(data: str, task: str) -> str:
    """A hint, where the data that one task cannot use are laid out for another."""
    from glocal.data.layouts import tasks_of

    others = [f"--task {name}" for name, of in TASKS.items() if name != task and of in tasks_of(data)]
    return f"; it is laid out for {' or '.join(others)}" if others else ""


def _parse_weights(item: str) -> tuple[str, Path]:
    name, separator, path = item.partition("=")
    if not (name and separator and path):
        raise GlocalError(f"weights: expected NAME=FILE, such as resnet50=resnet50.safetensors; got {item!r}")
    return name, Path(path)


def _parse_fraction(item: str) -> float:
    try:
        return float(item)
    except ValueError:
        raise GlocalError(f"fraction: expected shares such as 1.0,0.3,0.1; got {item!r}") from None
