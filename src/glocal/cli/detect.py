"""`glocal detect`: train and evaluate detectors, and detect objects."""

from pathlib import Path
from typing import Annotated

import typer

import glocal.cli._heads as shared
import glocal.cli._options as opt
from glocal.cli import app, command_group
from glocal.cli._training import run_training

detect = command_group("detect", "Detection and instance segmentation: train, eval, predict.")
app.add_typer(detect)

TRAINING = f"""\
\b
Examples:
  glocal detect train items-on-photos --model resnet_micro --out run
  glocal detect train items-on-photos --model resnet_micro --detector mask_rcnn --weights classifier_run
  glocal detect train coco --model resnet50 --weights pretrained --detector mask_rcnn --frozen-norm --frozen-stages 2
    --recipe detect_1x --devices 8 --out run --resume

\b
Recipes: detect_micro (the default), detect_1x, detect_3x, or a YAML file of the settings that differ from detect_micro.

{opt.TRAIN_CODES}"""
EVALUATION = f"""\
\b
Examples:
  glocal detect eval run items-on-photos
  glocal detect eval run coco --out results.json --predictions detections.json

{opt.EVAL_CODES}"""
PREDICTION = f"""\
\b
Examples:
  glocal detect predict run photos --out detections --draw
  glocal detect predict run photos --out detections --draw --resume     continue after a stop

{opt.PREDICT_CODES}"""
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="COCO or Pascal VOC folder, FILE.json, FILE.json:FOLDER, or items-on-photos; docs/data-detection.md.",
    ),
]
Detector = Annotated[
    str,
    typer.Option(
        help="faster_rcnn, mask_rcnn, cascade_rcnn, cascade_mask_rcnn, retinanet, fcos, atss, detr, "
        "deformable_detr or rt_detr."
    ),
]
Preset = Annotated[
    str, typer.Option(help="Size of the head: small or coco; default: small for images of up to 256 pixels.")
]
Predictions = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the detections as COCO results JSON.")]
Threshold = Annotated[float, typer.Option(help="Score threshold for written detections.")]
DrawThreshold = Annotated[float, typer.Option(help="Score threshold for drawn detections.")]


@detect.command(name="train", epilog=TRAINING)
def train_detector(
    data: Data,
    model: opt.Backbone,
    detector: Detector = "faster_rcnn",
    preset: Preset = "",
    recipe: opt.HeadRecipe = "detect_micro",
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
    """Train a detector on a backbone. Stop at any time: --resume continues, bit-identical to an uninterrupted run.

    Writes model.safetensors, results.json, metrics.csv, recipe.yaml and checkpoints into the run's folder.
    """
    run_training("detection", {**locals(), "head": detector})


@detect.command(name="eval", epilog=EVALUATION)
def evaluate_detections(
    model: opt.RunOrFile,
    data: Data,
    part: opt.Part = "val",
    out: opt.Json = None,
    predictions: Predictions = None,
    on_error: opt.HeadOnError = "stop",
    split_seed: opt.SplitSeed = 0,
    follow_links: opt.FollowLinks = False,
    device: opt.Device = "auto",
) -> None:
    """Evaluate a detector: COCO AP of boxes and masks, overall and per class.

    Classes are matched to the model's by name.
    """
    shared.evaluate("detection", **locals())


@detect.command(name="predict", epilog=PREDICTION)
def predict_objects(
    model: opt.RunOrFile,
    inputs: opt.Inputs,
    out: opt.Folder,
    draw: opt.Draw = False,
    threshold: Threshold = 0.05,
    draw_threshold: DrawThreshold = 0.5,
    resume: opt.ResumeJob = False,
    workers: opt.Workers = None,
    device: opt.Device = "auto",
) -> None:
    """Detect objects: COCO results JSON, one JSON line per image; --draw adds annotated images.

    An unreadable image gets a line with the reason; the job continues.
    """
    shared.predict("detection", **locals())
