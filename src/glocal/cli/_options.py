"""Options of several commands, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="Folder of images, shards (train-{000..099}.tar), or a built-in set.")
]
Model = Annotated[str, typer.Option(help="Name of a glocal or timm model, with keywords: cvt_micro:kv_stride=1.")]
Backbone = Annotated[str, typer.Option(help="Backbone: name of a glocal or timm model.")]
Recipe = Annotated[
    str | None,
    typer.Option(metavar="FILE|NAME", help="Default: micro from scratch, finetune from weights, probe if frozen."),
]
HeadRecipe = Annotated[str, typer.Option(metavar="FILE|NAME", help="A shipped recipe, or a file of settings.")]
Settings = Annotated[
    list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="A setting of the recipe: -s lr=0.001.")
]
Weights = Annotated[
    str | None, typer.Option(metavar="FILE|pretrained", help="Weights to start from; default: random ones.")
]
BackboneWeights = Annotated[
    str | None,
    typer.Option(
        metavar="RUN|FILE|pretrained",
        help="Weights of the backbone: a classifier of glocal, or timm's; default: random ones.",
    ),
]
Freeze = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Not trained: backbone (all but the head), or a module's name; repeatable."),
]
FrozenNorm = Annotated[
    bool, typer.Option("--frozen-norm", help="Keep the statistics of the backbone's BatchNorm; needs trained weights.")
]
FrozenStages = Annotated[int, typer.Option(min=0, help="Stages of the backbone, its stem first, that are not trained.")]
HeadOptions = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="A keyword of the head; docs/tasks.md.")
]
RunFolder = Annotated[
    Path | None, typer.Option(help="The run's folder; default: runs/COMMAND-MODEL-DATA-TIME.", show_default=False)
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in --out, or start one there.")]
AllowChanged = Annotated[bool, typer.Option("--allow-changed", help="Resume although data or settings have changed.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Devices = Annotated[int, typer.Option(min=1, help="Processes per node, one per device.")]
NumNodes = Annotated[int, typer.Option(min=1, help="Nodes; see docs/training.md.")]
Strategy = Annotated[str, typer.Option(help="ddp, or fsdp: parameters sharded over the processes.")]
Precision = Annotated[str, typer.Option(help="32, bf16 or fp16 (mixed precision).")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of weights, order, augmentation and all other draws.")]
Seeds = Annotated[int, typer.Option(help="Runs of each model: 3 means seeds 0, 1 and 2.")]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Data-loading workers; default: one per processor, where images are decoded.")
]
OnError = Annotated[str, typer.Option(help="On unreadable images: stop, or skip and list them.")]
HeadOnError = Annotated[str, typer.Option(help="On unreadable images and unusable objects: stop, or skip and list.")]
FollowLinks = Annotated[bool, typer.Option("--follow-links", help="Follow links in the folder.")]
SplitSeed = Annotated[int, typer.Option(help="Picks the validation images of data without a val part.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write events for TensorBoard too.")]
RunOrFile = Annotated[Path, typer.Argument(metavar="RUN|FILE", help="Folder of a run, or its model.safetensors.")]
RunFileOrExport = Annotated[
    Path,
    typer.Argument(metavar="RUN|FILE", help="Folder of a run, its model.safetensors, or a file of `glocal export`."),
]
Part = Annotated[str, typer.Option(help="val or train.")]
Json = Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write the results as JSON.")]
Inputs = Annotated[list[str], typer.Argument(metavar="INPUT...", help="Images, folders of them, or .tar shards.")]
Folder = Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write the results.")]
Draw = Annotated[bool, typer.Option("--draw", help="Write pictures with the predictions drawn on them.")]
Runtime = Annotated[
    str | None, typer.Option(help="onnxruntime, openvino or torch; default: as FILE ends, .onnx, .xml or other.")
]
Trust = Annotated[bool, typer.Option("--trust", help="Read a .pt2, from which code can run: you know who made it.")]
TRAIN_CODES = """\b
Exit codes:
  0 finished
  1 training failed: the message says why; checkpoints are kept
  2 invalid arguments or data
  75 stopped by SIGTERM or Ctrl-C after a saved step: --resume continues
"""
EVAL_CODES = """\
\b
Exit codes:
  0 finished
  2 invalid arguments, model or images
"""
PREDICT_CODES = """\
\b
Exit codes:
  0 finished; unreadable images have a line with the reason
  1 no image could be read
  2 invalid arguments or model
  130 stopped by Ctrl-C: --resume continues
"""
