"""`glocal detect`: train detectors, measure them, and find objects."""

from pathlib import Path
from typing import Annotated, Any

import typer

import glocal.cli._tasks as shared
from glocal.cli import app
from glocal.errors import GlocalError
from glocal.files import printable

detect = typer.Typer(
    name="detect",
    help="Detection and instance segmentation: train, eval, predict.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
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

{shared.CODES}"""
EVALUATION = """\
\b
Examples:
  glocal detect eval run items-on-photos
  glocal detect eval run coco --out results.json --predictions found.json

\b
Exit codes:
  0 finished
  2 the call is wrong, or the model or the images cannot be used
"""
PREDICTION = """\
\b
Examples:
  glocal detect predict run photos --out found --draw
  glocal detect predict run photos --out found --draw --resume     go on after a stop

\b
Exit codes:
  0 finished; images that cannot be read have a line with the reason
  1 no image could be read
  2 the call is wrong, or the model cannot be used
  130 stopped by Ctrl-C: --resume goes on
"""
DATA = "COCO or Pascal VOC folder, FILE.json, FILE.json:FOLDER, or items-on-photos; docs/data-detection.md."


@detect.command(name="train", epilog=TRAINING)
def train_detector(
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA)],
    model: shared.Model,
    detector: Annotated[
        str,
        typer.Option(
            help="faster_rcnn, mask_rcnn, cascade_rcnn, cascade_mask_rcnn, retinanet, fcos, atss, detr, "
            "deformable_detr or rt_detr."
        ),
    ] = "faster_rcnn",
    preset: Annotated[
        str, typer.Option(help="Sizes of the head: small or coco; default: small for images of up to 256 pixels.")
    ] = "",
    recipe: shared.RecipeOption = "detect_micro",
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
    """Train a detector on a backbone; stop it at any time, --resume goes on as if nothing had happened.

    Writes model.safetensors, results.json, metrics.csv, recipe.yaml and checkpoints into the run's folder.
    """
    shared.train(
        shared.Call(
            task="detection",
            data=data,
            model=model,
            head=detector,
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


@detect.command(name="eval", epilog=EVALUATION)
def evaluate_detections(
    model: shared.RunOrFile,
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA)],
    part: shared.Part = "val",
    out: shared.Json = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write what was found, as COCO's JSON of results.")
    ] = None,
    on_error: shared.OnError = "stop",
    split_seed: shared.SplitSeed = 0,
    follow_links: shared.FollowLinks = False,
    device: shared.Device = "auto",
) -> None:
    """Measure a detector: average precision as COCO has it, of boxes and masks, overall and of each class.

    Classes of DATA are found among the model's by their names.
    """
    shared.check_file(predictions)

    def load(*args: Any, **kwargs: Any) -> Any:
        from glocal.data import load_detection

        return load_detection(*args, **kwargs)

    def run(saved: Any, images: Any, source: Any, **kwargs: Any) -> dict[str, Any]:
        from glocal.tasks.evaluation import coco_entries, evaluate_detector, write_entries

        entries: list[dict[str, Any]] = []
        ids = dict(zip(source.classes, source.category_ids, strict=True))
        ids = {label: ids[name] for label, name in enumerate(saved.classes) if name in ids}
        keep = None if predictions is None else lambda one: entries.extend(coco_entries(one, ids))
        results = evaluate_detector(saved, images, take=keep or (lambda one: None), **kwargs)
        if predictions is not None:
            try:
                write_entries(predictions, entries)
            except OSError as error:
                raise GlocalError(f"predictions: cannot write {printable(predictions)} ({error.strerror})") from error
        return results

    shared.measure(
        "detection",
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


@detect.command(name="predict", epilog=PREDICTION)
def predict_objects(
    model: shared.RunOrFile,
    inputs: shared.Inputs,
    out: shared.Folder,
    draw: shared.Draw = False,
    threshold: Annotated[float, typer.Option(help="Least score of an object that is written.")] = 0.05,
    draw_threshold: Annotated[float, typer.Option(help="Least score of an object that is drawn.")] = 0.5,
    resume: shared.Resume = False,
    workers: shared.Workers = None,
    device: shared.Device = "auto",
) -> None:
    """Find objects on images: COCO's JSON of results, a line of JSON an image, and pictures with --draw.

    An image that cannot be read has a line that says why; the others go on.
    """
    shared.predict(
        "detection",
        model,
        inputs,
        out,
        draw=draw,
        threshold=threshold,
        draw_threshold=draw_threshold,
        resume=resume,
        workers=workers,
        device=device,
    )
