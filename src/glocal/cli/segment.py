"""`glocal segment`: train and evaluate segmenters, and segment images."""

from typing import Annotated

import typer

import glocal.cli._heads as shared
import glocal.cli._options as opt
from glocal.cli import app, command_group
from glocal.cli._training import run_training

segment = command_group("segment", "Semantic segmentation: train, eval, predict.")
app.add_typer(segment)

TRAINING = f"""\
\b
Examples:
  glocal segment train items-on-photos --model resnet_micro --out run
  glocal segment train items-on-photos --model resnet_micro --segmenter upernet --weights classifier_run
  glocal segment train ade20k --model resnet50 --weights pretrained --recipe segment_80k --devices 8 --out run --resume

\b
Recipes: segment_micro (the default), segment_80k, segment_160k, or a YAML file of the settings that differ from
segment_micro.

{opt.TRAIN_CODES}"""
EVALUATION = f"""\
\b
Examples:
  glocal segment eval run items-on-photos
  glocal segment eval run ade20k --out results.json

{opt.EVAL_CODES}"""
PREDICTION = f"""\
\b
Examples:
  glocal segment predict run photos --out labelled --draw
  glocal segment predict run photos --out labelled --draw --resume     continue after a stop

{opt.PREDICT_CODES}"""
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Folder in the layout of ADE20K, Cityscapes or Pascal VOC, a plain one, or items-on-photos; "
        "docs/data-detection.md.",
    ),
]
Segmenter = Annotated[
    str, typer.Option(help="semantic_fpn, upernet, or smp_ and a decoder: smp_unet, smp_segformer, ...")
]
Preset = Annotated[
    str, typer.Option(help="Size of the head: small or ade20k; default: small for images of up to 256 pixels.")
]


@segment.command(name="train", epilog=TRAINING)
def train_segmenter(
    data: Data,
    model: opt.Backbone,
    segmenter: Segmenter = "semantic_fpn",
    preset: Preset = "",
    recipe: opt.HeadRecipe = "segment_micro",
    settings: opt.RecipeSettings = None,
    weights: opt.BackboneWeights = None,
    freeze: opt.Freeze = None,
    frozen_norm: opt.FrozenNorm = False,
    frozen_stages: opt.FrozenStages = 0,
    option: opt.HeadOptions = None,
    out: opt.RunFolder = None,
    resume: opt.Resume = False,
    allow_changed: opt.AllowChanged = False,
    device: opt.Device = "auto",
    devices: opt.Devices = 1,
    num_nodes: opt.NumNodes = 1,
    precision: opt.Precision = "32",
    seed: opt.Seed = 0,
    workers: opt.Workers = None,
    on_error: opt.HeadOnError = "stop",
    follow_links: opt.FollowLinks = False,
    split_seed: opt.SplitSeed = 0,
    tensorboard: opt.TensorBoard = False,
) -> None:
    """Train a segmenter on a backbone. Stop at any time: --resume continues, bit-identical to an uninterrupted run.

    Writes model.safetensors, results.json, metrics.csv, recipe.yaml and checkpoints into the run's folder.
    """
    run_training("segmentation", {**locals(), "head": segmenter})


@segment.command(name="eval", epilog=EVALUATION)
def evaluate_labels(
    model: opt.RunOrFile,
    data: Data,
    part: opt.Part = "val",
    out: opt.Json = None,
    on_error: opt.HeadOnError = "stop",
    split_seed: opt.SplitSeed = 0,
    follow_links: opt.FollowLinks = False,
    device: opt.Device = "auto",
) -> None:
    """Evaluate a segmenter: mIoU, pixel accuracy, IoU per class, confusion matrix.

    Classes are matched to the model's by name.
    """
    shared.evaluate("segmentation", **locals())


@segment.command(name="predict", epilog=PREDICTION)
def predict_labels(
    model: opt.RunOrFile,
    inputs: opt.Inputs,
    out: opt.Folder,
    draw: opt.Draw = False,
    resume: opt.ResumeJob = False,
    workers: opt.Workers = None,
    device: opt.Device = "auto",
) -> None:
    """Segment images: one label-map PNG and one JSON line per image; --draw adds overlays.

    An unreadable image gets a line with the reason; the job continues.
    """
    shared.predict("segmentation", threshold=0.0, draw_threshold=0.0, **locals())
