"""Detectors and segmenters on many images, as a folder that can be resumed.

    OUT/job.json            what the results depend on
    OUT/predictions.jsonl   a line for each image in the order of the inputs, appended as they come
    OUT/predictions.json    of a detector, when all images have a line: COCO's JSON of results
    OUT/masks/NAME.png      of a segmenter: a label map with a palette
    OUT/drawn/NAME.png      pictures with the predictions drawn on them, where they are asked for

A file of an image is whole before its line is there; a resumed job gives the files of one that never stopped.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from glocal.data import ImageDetections, write_label_map
from glocal.data.predictions import coco_results, png, write_entries
from glocal.errors import GlocalError
from glocal.files import atomic_write_bytes, printable
from glocal.inference.inputs import Inputs, Reader, read_batches
from glocal.inference.output import ImagePrediction, JsonLines, OutputFile, continue_lines, writing
from glocal.inference.predict import PredictProgress, Summary, run_batches
from glocal.models.io import SavedModel, TaskName
from glocal.run_dir import agree_on_plan, hold_folder, refuse_existing
from glocal.tasks import Task, task_of
from glocal.tasks.drawing import draw_label_map, draw_objects

JOB, LINES, COCO = "job.json", "predictions.jsonl", "predictions.json"
THRESHOLD = 0.05
"""Smallest score that is written: what torchvision's detectors keep, and COCO's evaluation expects."""
DRAWN = 0.5
"""Smallest score that is drawn."""


def predict_images(
    saved: SavedModel,
    images: Inputs,
    out: Path,
    *,
    draw: bool = False,
    threshold: float = THRESHOLD,
    draw_threshold: float = DRAWN,
    device: str = "cpu",
    workers: int | None = None,
    resume: bool = False,
    progress: Callable[[PredictProgress], None] = lambda _: None,
) -> Summary:
    """Predict every image; an unreadable one has a line that says why, and the others go on.

    Args:
        saved: a detector or segmenter.
        images: which.
        out: the folder.
        draw: whether to draw predictions on the images.
        threshold: smallest score of a detection that is written.
        draw_threshold: smallest score of a detection that is drawn.
        device: where the model runs.
        workers: data-loading workers; by default one per processor.
        resume: continue an earlier job, or begin if there was none.
        progress: called after each image.

    Raises:
        GlocalError: for a folder with another job, or one that cannot be written.
    """
    for name, score in (("threshold", threshold), ("draw-threshold", draw_threshold)):
        if not 0 <= score <= 1:
            raise GlocalError(f"{name}: expected a score from 0 to 1, got {score:g}")
    job = {
        "model": saved.identity,
        "inputs": images.digest(),
        "images": len(images.paths),
        "draw": draw_threshold if draw else None,
        "threshold": threshold,
        "device": torch.device(device).type,
    }
    with writing(out), _open_folder(out, job, images.paths, resume) as output:
        batches = _predictions(saved, images, output.done, out, job, device, workers)
        summary = run_batches(batches, len(images), output, progress)
        output.sync()
        if saved.config.task == "detection":
            _collect(out)
    return summary


@contextmanager
def _open_folder(out: Path, job: Mapping[str, Any], paths: tuple[str, ...], resume: bool) -> Iterator[OutputFile]:
    """The lines of a job, held by this process."""
    with hold_folder(out):
        path = out / JOB
        if path.exists() and not resume:
            refuse_existing(out, "predictions")
        if not path.exists() and any(file.name != ".lock" for file in out.iterdir()):
            raise GlocalError(f"out: expected an empty or a new folder, got {printable(out)} with other files in it")
        agree_on_plan(path, job)
        with open(out / LINES, "a+b", buffering=0) as file:
            output = continue_lines(file, out / LINES, JsonLines(), tuple(map(_as_text, paths)))
            try:
                yield output
            finally:
                output.sync()


def _predictions(
    saved: SavedModel,
    images: Inputs,
    before: int,
    out: Path,
    job: Mapping[str, Any],
    device: str,
    workers: int | None,
) -> Iterator[list[ImagePrediction]]:
    """From number ``before`` on."""
    if before == len(images):
        return
    saved.model.to(device).eval()
    task = task_of(saved.config).to(device)
    for read in read_batches(Reader(images, size=None), before, workers):
        path, error = _as_text(images.paths[read.start]), read.errors[0]
        fields: dict[str, Any] = {}
        if error is None:
            (predicted,) = task.predict(saved.model, read.pixels, device)
            image = np.ascontiguousarray(read.pixels[0].permute(1, 2, 0).numpy())
            fields = FIELDS[task.name](task, predicted, image, path, out, job)
        yield [ImagePrediction(path, error, fields)]


def _objects(
    task: Task, detected: dict[str, np.ndarray], image: np.ndarray, path: str, out: Path, job: Mapping[str, Any]
) -> dict[str, Any]:
    sure = detected["scores"] >= job["threshold"]
    detected = {name: value[sure] for name, value in detected.items()}
    prediction = ImageDetections(path, detected["boxes"], detected["scores"], detected["labels"], detected.get("masks"))
    fields: dict[str, Any] = {
        "size": [image.shape[1], image.shape[0]],
        "classes": [task.classes[label] for label in detected["labels"].tolist()],
        "objects": coco_results(prediction, task.model_config.ids),
    }
    if job["draw"] is not None:
        drawn = {name: value[detected["scores"] >= job["draw"]] for name, value in detected.items()}
        shown = (drawn["boxes"], drawn["labels"], drawn["scores"], drawn.get("masks"))
        fields["drawn"] = _keep_picture(draw_objects(Image.fromarray(image), *shown, task.classes), out, path)
    return fields


def _shares(
    task: Task, label_map: np.ndarray, image: np.ndarray, path: str, out: Path, job: Mapping[str, Any]
) -> dict[str, Any]:
    classes, name = task.classes, f"masks/{file_name(path)}"
    (out / "masks").mkdir(exist_ok=True)
    write_label_map(out / name, label_map)
    shares = np.bincount(label_map.ravel(), minlength=len(classes)) / label_map.size
    fields: dict[str, Any] = {
        "size": [image.shape[1], image.shape[0]],
        "mask": name,
        "shares": {classes[i]: float(round(shares[i], 6)) for i in np.flatnonzero(shares).tolist()},
    }
    if job["draw"] is not None:
        fields["drawn"] = _keep_picture(draw_label_map(Image.fromarray(image), label_map, classes), out, path)
    return fields


FIELDS: dict[TaskName, Callable[..., dict[str, Any]]] = {"detection": _objects, "segmentation": _shares}
"""By task: the fields of an image's line, and its files."""


def file_name(path: str) -> str:
    """A file name for an image's output: readable, inside the folder, unique per path."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", os.path.splitext(os.path.basename(path))[0])[:60].strip("_")
    return f"{stem or 'image'}-{hashlib.sha256(path.encode()).hexdigest()[:12]}.png"


def _keep_picture(picture: Image.Image, out: Path, path: str) -> str:
    (out / "drawn").mkdir(exist_ok=True)
    name = f"drawn/{file_name(path)}"
    atomic_write_bytes(out / name, png(picture))
    return name


def _collect(out: Path) -> None:
    """All objects in COCO's JSON of results, one a line."""
    with open(out / LINES, encoding="utf-8") as file:
        write_entries(out / COCO, (one for line in file for one in json.loads(line).get("objects", ())))


def _as_text(path: str) -> str:
    """A path as JSON and every encoding have it."""
    return path.encode("utf-8", "backslashreplace").decode()
