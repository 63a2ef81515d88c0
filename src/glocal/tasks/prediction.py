"""A trained detector or segmenter on many images, as a folder that a stopped job goes on with.

    OUT/job.json            what the results depend on
    OUT/predictions.jsonl   a line for each image in the order of the inputs, appended as they come
    OUT/predictions.json    of a detector, when all images have a line: COCO's JSON of results
    OUT/masks/NAME.png      of a segmenter: a label map with a palette
    OUT/drawn/NAME.png      pictures with what was found, where they are asked for

A file of an image is whole before its line is there; a job that goes on gives the files of one that never stopped.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from glocal.data import Prediction, write_label_map
from glocal.data.predictions import coco_results
from glocal.data.workers import WORKER_ERRORS, default_workers, read_in_order, worker_died
from glocal.errors import GlocalError
from glocal.files import atomic_write_bytes, atomic_write_text, printable
from glocal.models.io import SavedModel
from glocal.run_dir import agree_on_plan, hold_folder, refuse_existing
from glocal.tasks.drawing import draw_label_map, draw_objects
from glocal.tasks.segmentation import SegmentationTask

JOB, LINES, COCO = "job.json", "predictions.jsonl", "predictions.json"
THRESHOLD = 0.05
"""Least score that is written: what torchvision's detectors keep, and COCO's evaluation expects."""
DRAWN = 0.5
"""Least score that is drawn."""


class Images(Protocol):
    """Where images come from, such as `glocal.inference.list_inputs`."""

    @property
    def paths(self) -> tuple[str, ...]:
        """What each image is called."""
        ...

    def image(self, index: int) -> Image.Image:
        """RGB; raises GlocalError."""
        ...

    def digest(self) -> str:
        """Over the list."""
        ...


@dataclass(frozen=True)
class Summary:
    """What a job did: images in all, those that could not be read, and those that were done before."""

    total: int
    failed: int
    before: int


def predict_images(
    saved: SavedModel,
    images: Images,
    out: Path,
    *,
    draw: bool = False,
    threshold: float = THRESHOLD,
    draw_threshold: float = DRAWN,
    device: str = "cpu",
    workers: int | None = None,
    resume: bool = False,
    progress: Callable[[int, int, int], None] = lambda done, total, failed: None,
) -> Summary:
    """Predict every image; one that cannot be read has a line that says why, and the others go on.

    Args:
        saved: the model.
        images: which.
        out: the folder.
        draw: whether to draw what was found.
        threshold: least score of an object that is written.
        draw_threshold: least score of an object that is drawn.
        device: where the model runs.
        workers: processes that read; by default one a processor.
        resume: go on where an earlier job stopped, or begin if there was none.
        progress: is told how many images are done, of how many, and how many cannot be read.

    Raises:
        GlocalError: for a folder with another job, or one that cannot be written.
    """
    for name, share in (("threshold", threshold), ("draw-threshold", draw_threshold)):
        if not 0 <= share <= 1:
            raise GlocalError(f"{name}: expected a score from 0 to 1, got {share:g}")
    job = {
        "model": saved.identity,
        "inputs": images.digest(),
        "images": len(images.paths),
        "draw": draw_threshold if draw else None,
        "threshold": threshold,
        "device": torch.device(device).type,
    }
    with hold_folder(out):
        try:
            before = _begin(out, job, images.paths, resume)
            return _run(saved, images, out, job, before, device, workers, progress)
        except OSError as error:
            raise GlocalError(
                f"out: cannot write {printable(error.filename or out)} ({error.strerror or error}); what was written "
                "is kept and --resume goes on"
            ) from error


def _begin(out: Path, job: Mapping[str, Any], paths: Sequence[str], resume: bool) -> list[bool]:
    """Write or compare what the job is; of each image that has a line, whether it could not be read."""
    path = out / JOB
    if path.exists() and not resume:
        refuse_existing(out, "predictions")
    if not path.exists() and any(file.name != ".lock" for file in out.iterdir()):
        raise GlocalError(f"out: expected an empty or a new folder, got {printable(out)} with other files in it")
    agree_on_plan(path, job)
    lines = out / LINES
    errors, end = [], 0
    if lines.exists():
        with lines.open("rb") as file:
            for line, name in zip(file, paths, strict=False):
                if (failed := _failed(line, name)) is None:
                    break
                errors.append(failed)
                end += len(line)
        os.truncate(lines, end)
    return errors


def _failed(line: bytes, path: str) -> bool | None:
    """Whether the image of a line could not be read; None if it is not a whole line of that image."""
    try:
        entry = json.loads(line)
        return entry["error"] is not None if line.endswith(b"\n") and entry["path"] == _as_text(path) else None
    except (ValueError, KeyError, TypeError):
        return None


def _run(
    saved: SavedModel,
    images: Images,
    out: Path,
    job: Mapping[str, Any],
    before: list[bool],
    device: str,
    workers: int | None,
    progress: Callable[[int, int, int], None],
) -> Summary:
    total, failed = len(images.paths), sum(before)
    apply = _detect if saved.config.task == "detection" else _segment
    if len(before) < total:
        saved.model.to(device).eval()
        with open(out / LINES, "ab") as file:
            for index, image in _read(images, len(before), workers):
                path = _as_text(images.paths[index])
                entry: dict[str, Any] = {"path": path, "error": None}
                if isinstance(image, str):
                    entry["error"], failed = image, failed + 1
                else:
                    entry |= apply(saved, image, path, out, job, device)
                file.write(json.dumps(entry).encode() + b"\n")
                file.flush()
                if index % 16 == 0 or index + 1 == total:
                    os.fsync(file.fileno())
                progress(index + 1, total, failed)
    if saved.config.task == "detection":
        _collect(out)
    return Summary(total, failed, len(before))


@torch.inference_mode()
def _detect(
    saved: SavedModel, image: np.ndarray, path: str, out: Path, job: Mapping[str, Any], device: str
) -> dict[str, Any]:
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(device).float() / 255
    found = {name: value.cpu().numpy() for name, value in saved.model([pixels])[0].items()}
    sure = found["scores"] >= job["threshold"]
    found = {name: value[sure] for name, value in found.items()}
    config = saved.config
    prediction = Prediction(path, found["boxes"], found["scores"], found["labels"], found.get("masks"))
    entry: dict[str, Any] = {
        "size": [image.shape[1], image.shape[0]],
        "classes": [config.classes[label] for label in found["labels"].tolist()],
        "objects": coco_results(prediction, config.ids),
    }
    if job["draw"] is not None:
        best = found["scores"] >= job["draw"]
        masks = found["masks"][best] if "masks" in found else None
        shown = (found["boxes"][best], found["labels"][best], found["scores"][best], masks)
        picture = draw_objects(Image.fromarray(image), *shown, config.classes)
        entry["drawn"] = _keep_picture(picture, out, path)
    return entry


@torch.inference_mode()
def _segment(
    saved: SavedModel, image: np.ndarray, path: str, out: Path, job: Mapping[str, Any], device: str
) -> dict[str, Any]:
    config = saved.config
    label_map = SegmentationTask(config).to(device).label_map(saved.model, image, device)
    name = f"masks/{file_name(path)}"
    (out / "masks").mkdir(exist_ok=True)
    write_label_map(out / name, label_map)
    shares = np.bincount(label_map.ravel(), minlength=len(config.classes)) / label_map.size
    entry: dict[str, Any] = {
        "size": [image.shape[1], image.shape[0]],
        "mask": name,
        "shares": {config.classes[i]: float(round(shares[i], 6)) for i in np.flatnonzero(shares).tolist()},
    }
    if job["draw"] is not None:
        picture = draw_label_map(Image.fromarray(image), label_map, config.classes)
        entry["drawn"] = _keep_picture(picture, out, path)
    return entry


def file_name(path: str) -> str:
    """A name for what is written of an image: readable, no way out of the folder, another one for each path."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", os.path.splitext(os.path.basename(path))[0])[:60].strip("_")
    return f"{stem or 'image'}-{hashlib.sha256(path.encode()).hexdigest()[:12]}.png"


def _keep_picture(picture: Image.Image, out: Path, path: str) -> str:
    (out / "drawn").mkdir(exist_ok=True)
    name = f"drawn/{file_name(path)}"
    content = io.BytesIO()
    picture.save(content, "PNG")
    atomic_write_bytes(out / name, content.getvalue())
    return name


def _collect(out: Path) -> None:
    """All objects in COCO's JSON of results, one a line."""
    found = []
    with open(out / LINES, encoding="utf-8") as file:
        for line in file:
            found += [json.dumps(one) for one in json.loads(line).get("objects", ())]
    atomic_write_text(out / COCO, "[\n" + ",\n".join(found) + "\n]\n")


def _as_text(path: str) -> str:
    """A path as JSON and every encoding have it."""
    return path.encode("utf-8", "backslashreplace").decode()


class _Reader(Dataset[np.ndarray | str]):
    """(H, W, 3) uint8 images, or why they cannot be read."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images.paths)

    def __getitem__(self, index: int) -> np.ndarray | str:
        try:
            return np.array(self.images.image(index))
        except GlocalError as error:
            return str(getattr(error, "reason", error))


def _read(images: Images, start: int, workers: int | None) -> Iterator[tuple[int, np.ndarray | str]]:
    """Images in their order from number ``start`` on, read by processes; one that dies costs only its image."""
    reader = _Reader(images)
    workers = min(default_workers() if workers is None else workers, len(reader) - start)
    while start < len(reader):
        try:
            for image in read_in_order(reader, range(start, len(reader)), workers, collate_fn=_as_it_is):
                yield start, image
                start += 1
        except WORKER_ERRORS as error:
            if not worker_died(error):
                raise
            with ProcessPoolExecutor(1) as pool:
                try:
                    image = pool.submit(reader.__getitem__, start).result()
                except BrokenProcessPool:
                    image = "the decoder crashed on it"
            yield start, image
            start += 1


def _as_it_is(image: Any) -> Any:
    return image
