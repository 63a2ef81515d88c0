"""`glocal train`: train one model, and resume it after any stop."""

import os
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glocal.cli import app
from glocal.errors import GlocalError, check_choice
from glocal.files import printable
from glocal.signals import RESUMABLE, StopRequest

if TYPE_CHECKING:
    from glocal.training import TrainConfig

EPILOG = """\
\b
Examples:
  glocal train fashion-mini --model resnet_micro
  glocal train photos --model cvt_13 --weights cvt_13.safetensors -s epochs=20 --out run
  glocal train photos --model vit_base_patch16_224 --weights pretrained --recipe probe
  glocal train imagenet --model t2t_vit_14 --recipe t2t_vit --devices 8 --precision bf16 --out run --resume
  torchrun --nproc-per-node 8 --nnodes 4 ... -m glocal train 'shards/train-{000000..001281}.tar' --model ...

\b
Recipes: a shipped name (docs/recipes.md), or a YAML file of the settings that differ.

\b
Exit codes:
  0 finished
  1 training failed: the message says why; what was saved is kept
  2 the call is wrong
  75 stopped by SIGTERM or Ctrl-C after a saved step: --resume goes on
"""


@app.command(epilog=EPILOG)
def train(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Folder of images, shards (train-{000..099}.tar), or fashion-mini.")
    ],
    model: Annotated[str, typer.Option(help="Name of a glocal or timm model, with keywords: cvt_micro:kv_stride=1.")],
    recipe: Annotated[
        str | None,
        typer.Option(metavar="FILE|NAME", help="Default: micro from scratch, finetune from weights, probe if frozen."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="A setting of the recipe: -s lr=0.001.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE|pretrained", help="Weights to start from; default: random ones.")
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Not trained: backbone (all but the head), or a module's name; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; default: runs/train-MODEL-DATA-TIME.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --out; begins if nothing is there.")] = False,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Resume although data or settings have changed.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Processes of a node, one a device.")] = 1,
    num_nodes: Annotated[int, typer.Option(min=1, help="Machines; see docs/training.md.")] = 1,
    strategy: Annotated[str, typer.Option(help="ddp, or fsdp: parameters split over the processes.")] = "ddp",
    precision: Annotated[str, typer.Option(help="32, bf16 or fp16 (mixed).")] = "32",
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order, augmentation and all other draws.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read images; default: one a processor, where needed.")
    ] = None,
    on_error: Annotated[str, typer.Option(help="At images that cannot be read: stop, or skip and list them.")] = "stop",
    follow_links: Annotated[bool, typer.Option("--follow-links", help="Follow links in the folder.")] = False,
    split_seed: Annotated[int, typer.Option(help="Picks the test images of a folder that has no val folder.")] = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write events for TensorBoard too.")] = False,
) -> None:
    """Train a model on your images; stop it at any time, --resume goes on as if nothing had happened.

    Writes model.safetensors, results.json, metrics.csv, recipe.yaml and checkpoints into the run's folder.
    """
    # A signal may come while libraries are loaded; a process that others wait for agrees with them after a step.
    with StopRequest(at_once=os.environ.get("LOCAL_RANK", "0") == "0").installed() as stop:
        from glocal.data import load_data
        from glocal.models.creation import check_model, has_weights
        from glocal.training import HardwareConfig, Stopped, TrainingError, resolve_device
        from glocal.training.assignment import ClassifyImages
        from glocal.training.hardware import is_first_process
        from glocal.training.request import Request
        from glocal.training.run import train_run

        for name, value, choices in (
            ("strategy", strategy, ("ddp", "fsdp")),
            ("precision", precision, ("32", "bf16", "fp16")),
            ("on-error", on_error, ("stop", "skip")),
        ):
            check_choice(name, value, choices)
        check_model(model, with_keywords=True)
        start: Any = None
        if weights == "pretrained":
            if not has_weights(model):
                raise GlocalError(f"weights: timm has none of {model}; give a file: --weights FILE")
            start = "pretrained"
        elif weights is not None:
            start = Path(weights)
            if not start.is_file():
                raise GlocalError(f"weights: expected a file or pretrained, got {printable(weights)}, which is neither")
        hardware = HardwareConfig(resolve_device(device), devices, num_nodes, strategy, precision).placed()  # type: ignore[arg-type]
        hardware.check()
        if out is None:
            if resume or hardware.world_size > 1:
                raise GlocalError(f"{'--resume' if resume else 'several processes'} need --out: the folder of the run")
            out = Path("runs") / f"train-{model}-{Path(data).name or 'data'}-{datetime.now():%Y%m%d-%H%M%S}"
        request = Request(
            model=model,
            recipe=_recipe(recipe, settings or [], freeze or [], weights is not None),
            weights=start,
            seed=seed,
            hardware=hardware,
            num_workers=workers,
            on_error=on_error,  # type: ignore[arg-type]
            resume=resume,
            allow_changed=allow_changed,
            tensorboard=tensorboard,
            command=shlex.join(["glocal", *sys.argv[1:]]),
        )
        from glocal.cli._display import TrainWatcher
        from glocal.files import check_writable

        first = is_first_process()
        if first:
            check_writable(out)
        source = load_data(
            data, on_error=request.on_error, split_seed=split_seed, follow_links=follow_links, progress=first
        )
        watcher = TrainWatcher(shown=first)
        watcher.introduce(source, request, out)
        try:
            results = train_run(
                ClassifyImages(source), request, out, stop=stop, say=watcher.say, progress=watcher.update
            )
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


def _recipe(source: str | None, settings: list[str], freeze: list[str], has_weights: bool) -> "TrainConfig":
    from glocal.training import DEFAULT_RECIPES, load_recipe

    mode = "probe" if freeze == ["backbone"] else "finetune" if has_weights else "scratch"
    if freeze:
        settings = [*settings, f"freeze=[{','.join(freeze)}]"]
    return load_recipe(source or DEFAULT_RECIPES[mode], settings=settings)  # type: ignore[index]
