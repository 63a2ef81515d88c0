"""`glocal segment`: train segmenters, measure them, and label pixels."""

from typing import Annotated, Any

import typer

import glocal.cli._tasks as shared
from glocal.cli import app

segment = typer.Typer(
    name="segment",
    help="Semantic segmentation: train, eval, predict.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
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

{shared.CODES}"""
EVALUATION = """\
\b
Examples:
  glocal segment eval run items-on-photos
  glocal segment eval run ade20k --out results.json

\b
Exit codes:
  0 finished
  2 the call is wrong, or the model or the images cannot be used
"""
PREDICTION = """\
\b
Examples:
  glocal segment predict run photos --out labelled --draw
  glocal segment predict run photos --out labelled --draw --resume     go on after a stop

\b
Exit codes:
  0 finished; images that cannot be read have a line with the reason
  1 no image could be read
  2 the call is wrong, or the model cannot be used
  130 stopped by Ctrl-C: --resume goes on
"""
DATA = (
    "Folder in the layout of ADE20K, Cityscapes, Pascal VOC or a plain one, or items-on-photos; docs/data-detection.md."
)


@segment.command(name="train", epilog=TRAINING)
def train_segmenter(
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA)],
    model: shared.Model,
    segmenter: Annotated[
        str, typer.Option(help="semantic_fpn, upernet, or smp_ and a decoder: smp_unet, smp_segformer, ...")
    ] = "semantic_fpn",
    preset: Annotated[
        str, typer.Option(help="Sizes of the head: small or ade20k; default: small for images of up to 256 pixels.")
    ] = "",
    recipe: shared.RecipeOption = "segment_micro",
    settings: shared.Settings = None,
    weights: shared.Weights = None,
    freeze: shared.Freeze = None,
    frozen_norm: shared.FrozenNorm = False,
    frozen_stages: shared.FrozenStages = 0,
    option: shared.Options = None,
    out: shared.Out = None,
    resume: shared.Resume = False,
    allow_changed: shared.AllowChanged = False,
    device: shared.Device = "auto",
    devices: shared.Devices = 1,
    num_nodes: shared.NumNodes = 1,
    precision: shared.PrecisionOption = "32",
    seed: shared.Seed = 0,
    workers: shared.Workers = None,
    on_error: shared.OnError = "stop",
    follow_links: shared.FollowLinks = False,
    split_seed: shared.SplitSeed = 0,
    tensorboard: shared.TensorBoard = False,
) -> None:
    """Train a segmenter on a backbone; stop it at any time, --resume goes on as if nothing had happened.

    Writes model.safetensors, results.json, metrics.csv, recipe.yaml and checkpoints into the run's folder.
    """
    shared.train(
        shared.Call(
            task="segmentation",
            data=data,
            model=model,
            head=segmenter,
            preset=preset,
            recipe=recipe,
            settings=settings or (),
            weights=weights,
            freeze=freeze or (),
            frozen_norm=frozen_norm,
            frozen_stages=frozen_stages,
            options=option or (),
            out=out,
            resume=resume,
            allow_changed=allow_changed,
            device=device,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            seed=seed,
            workers=workers,
            on_error=on_error,
            follow_links=follow_links,
            split_seed=split_seed,
            tensorboard=tensorboard,
        )
    )


@segment.command(name="eval", epilog=EVALUATION)
def evaluate_labels(
    model: shared.RunOrFile,
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA)],
    part: shared.Part = "val",
    out: shared.Json = None,
    on_error: shared.OnError = "stop",
    split_seed: shared.SplitSeed = 0,
    follow_links: shared.FollowLinks = False,
    device: shared.Device = "auto",
) -> None:
    """Measure a segmenter: mIoU, pixel accuracy, IoU of each class, confusion matrix.

    Classes of DATA are found among the model's by their names.
    """

    def load(*args: Any, **kwargs: Any) -> Any:
        from glocal.data import load_segmentation

        return load_segmentation(*args, **kwargs)

    def run(saved: Any, images: Any, source: Any, **kwargs: Any) -> dict[str, Any]:
        from glocal.tasks import evaluate_segmenter

        return evaluate_segmenter(saved, images, **kwargs)

    shared.measure(
        "segmentation",
        model,
        data,
        part=part,
        out=out,
        on_error=on_error,
        split_seed=split_seed,
        follow_links=follow_links,
        device=device,
        run=run,
        load=load,
    )


@segment.command(name="predict", epilog=PREDICTION)
def predict_labels(
    model: shared.RunOrFile,
    inputs: shared.Inputs,
    out: shared.Folder,
    draw: shared.Draw = False,
    resume: shared.Resume = False,
    workers: shared.Workers = None,
    device: shared.Device = "auto",
) -> None:
    """Label every pixel of images: a PNG of classes each, a line of JSON, and pictures with --draw.

    An image that cannot be read has a line that says why; the others go on.
    """
    shared.predict(
        "segmentation",
        model,
        inputs,
        out,
        draw=draw,
        threshold=0.0,
        draw_threshold=0.0,
        resume=resume,
        workers=workers,
        device=device,
    )
