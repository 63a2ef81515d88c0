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
    typer.Option(
        metavar="FILE|NAME",
        help="Name of a recipe, or a YAML file; default: micro, or finetune with weights, or probe if frozen.",
    ),
]
HeadRecipe = Annotated[str, typer.Option(metavar="FILE|NAME", help="Name of a recipe, or a YAML file.")]
RecipeSettings = Annotated[
    list[str] | None,
    typer.Option("-s", "--set", metavar="KEY=VALUE", help="Override a setting of the recipe: -s lr=0.001."),
]
Weights = Annotated[str | None, typer.Option(metavar="FILE|pretrained", help="Initial weights; default: random.")]
BackboneWeights = Annotated[
    str | None,
    typer.Option(
        metavar="RUN|FILE|pretrained",
        help="Initial weights of the backbone: a classifier trained by glocal, or timm's; default: random.",
    ),
]
Freeze = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Module to freeze: backbone (all but the head), or a module's name; repeatable."),
]
FrozenNorm = Annotated[
    bool, typer.Option("--frozen-norm", help="Freeze the backbone's BatchNorm statistics; needs trained weights.")
]
FrozenStages = Annotated[int, typer.Option(min=0, help="Backbone stages to freeze, counted from the stem.")]
HeadOptions = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Keyword argument of the head; docs/tasks.md.")
]
RunFolder = Annotated[
    Path | None, typer.Option(help="Run folder; default: runs/COMMAND-MODEL-DATA-TIME.", show_default=False)
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in --out, or start one there.")]
ResumeJob = Annotated[bool, typer.Option("--resume", help="Resume the job in --out.")]
AllowChanged = Annotated[bool, typer.Option("--allow-changed", help="Resume although data or settings have changed.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Devices = Annotated[int, typer.Option(min=1, help="Processes per node, one per device.")]
NumNodes = Annotated[int, typer.Option(min=1, help="Nodes; see docs/training.md.")]
Strategy = Annotated[str, typer.Option(help="ddp, or fsdp (sharded parameters).")]
Precision = Annotated[str, typer.Option(help="32, bf16 or fp16 (mixed precision).")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed of weights, order, augmentation and all else.")]
Seeds = Annotated[int, typer.Option(help="Runs per model: 3 means seeds 0, 1 and 2.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Data-loading workers; default: one per processor.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per forward pass.")]
OnError = Annotated[str, typer.Option(help="On unreadable images: stop, or skip and list them.")]
HeadOnError = Annotated[str, typer.Option(help="On unreadable images and unusable objects: stop, or skip and list.")]
FollowLinks = Annotated[bool, typer.Option("--follow-links", help="Follow symbolic links in the folder.")]
SplitSeed = Annotated[
    int, typer.Option(help="Seed of the validation split, if DATA has no val part; the same for train and eval.")
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")]
RunOrFile = Annotated[Path, typer.Argument(metavar="RUN|FILE", help="Run folder, or its model.safetensors.")]
RunFileOrExport = Annotated[
    Path,
    typer.Argument(metavar="RUN|FILE", help="Run folder, its model.safetensors, or an exported model."),
]
Part = Annotated[str, typer.Option(help="val or train.")]
Json = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results as JSON.")]
Inputs = Annotated[list[str], typer.Argument(metavar="INPUT...", help="Images, folders or .tar shards.")]
Folder = Annotated[Path, typer.Option(metavar="FOLDER", help="Output folder.")]
Draw = Annotated[bool, typer.Option("--draw", help="Write annotated images.")]
Runtime = Annotated[
    str | None,
    typer.Option(help="onnxruntime, openvino or torch; default: by the suffix of FILE (.onnx, .xml, other)."),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Load a .pt2, which can execute code; only from a source you trust.")
]
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
  0 finished; unreadable images get a line with the reason
  1 no image could be read
  2 invalid arguments or model
  130 stopped by Ctrl-C: --resume continues
"""
