"""Predictions for many images, resumable: the loop of all tasks, and classifiers' most probable classes in a file."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from glocal.errors import GlocalError, check_choice
from glocal.export import ExportedModel
from glocal.inference.answers import described, most_probable
from glocal.inference.inputs import Inputs, Reader, read_batches
from glocal.inference.models import Model, reader_for, task_and_model
from glocal.inference.output import ClassPrediction, ImagePrediction, OutputFile, open_output

BATCH_SIZE = 64
PredictEngine = Literal["local", "ray"]


P = TypeVar("P", ClassPrediction, ImagePrediction)


@dataclass(frozen=True)
class PredictProgress:
    """Where a job stands: images that have a result, of how many, unreadable ones, and the speed."""

    done: int
    total: int
    failed: int
    images_per_s: float


@dataclass(frozen=True)
class Summary:
    """What a job did: images in all, unreadable ones, and those that were done before a resume."""

    total: int
    failed: int
    before: int


def predict_files(
    saved: Model,
    inputs: Inputs,
    out: Path | None = None,
    *,
    top_k: int = 5,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    device: str = "cpu",
    engine: PredictEngine = "local",
    resume: bool = False,
    progress: Callable[[PredictProgress], None] = lambda _: None,
    take: Callable[[ClassPrediction], None] = lambda _: None,
) -> Summary:
    """Predict every image; an unreadable one has a line that says why, and the others go on.

    Args:
        saved: the model.
        inputs: the images.
        out: the file, ``.jsonl`` or ``.csv``; None for none.
        top_k: classes of each image; all of them, where the model has fewer.
        batch_size: images per forward pass.
        workers: data-loading workers; with ray, actors.
        device: where the model runs.
        engine: ``local`` for this machine, ``ray`` for a cluster.
        resume: continue ``out``: only images without a line are read.
        progress: called after each batch.
        take: called with each prediction that is made, in order.

    Raises:
        GlocalError: if an argument is out of range, or `out` cannot be written or resumed.
    """
    _check(top_k, batch_size, workers, engine)
    top_k = min(top_k, len(saved.classes))
    job = {
        "model": saved.identity,
        "inputs": inputs.digest(),
        "images": len(inputs),
        "top_k": top_k,
        "batch_size": batch_size,
        "device": torch.device(device).type,
        "engine": engine,
    }
    if isinstance(saved, ExportedModel):
        job["runtime"] = saved.runtime
    with nullcontext() if out is None else open_output(out, job, inputs.paths, top_k=top_k, resume=resume) as output:
        before = 0 if output is None else output.done
        batches = _predictions(saved, inputs, before, job, device, workers)
        return run_batches(batches, len(inputs), output, progress, take)


def run_batches(
    batches: Iterable[list[P]],
    total: int,
    output: OutputFile | None,
    progress: Callable[[PredictProgress], None],
    take: Callable[[P], None] = lambda _: None,
) -> Summary:
    """The loop of every prediction job: write each prediction, hand it on, report.

    Args:
        batches: predictions in the order of the images, from the first that has none yet.
        total: images in all.
        output: where predictions are written, with those of before.
        progress: called after each batch.
        take: called with each prediction.
    """
    before, failed = (0, 0) if output is None else (output.done, output.failed)
    done, began = before, time.perf_counter()
    for batch in batches:
        for prediction in batch:
            if output is not None:
                output.write(prediction)
            take(prediction)
            done += 1
            failed += prediction.error is not None
        progress(PredictProgress(done, total, failed, (done - before) / (time.perf_counter() - began)))
    return Summary(total, failed, before)


def _predictions(
    saved: Model, inputs: Inputs, before: int, job: dict[str, Any], device: str, workers: int | None
) -> Iterator[list[ClassPrediction]]:
    """Predictions in order from number ``before`` on, a list at a time."""
    if before == len(inputs):
        return
    reader = reader_for(saved, inputs, job["batch_size"])
    start, inside = divmod(before, reader.batch_size)  # a batch that was cut is run again whole: equal bits come out
    if job["engine"] == "ray":
        from glocal.inference.ray_engine import run_batches as run_on_ray  # ray is an extra

        batches = run_on_ray(saved, reader, start, top_k=job["top_k"], device=device, actors=workers)
    else:
        batches = _local_batches(saved, reader, start, job["top_k"], device, workers)
    for batch in batches:
        yield batch[inside:]
        inside = 0


def _local_batches(
    saved: Model, reader: Reader, start: int, top_k: int, device: str, workers: int | None
) -> Iterator[list[ClassPrediction]]:
    task, model = task_and_model(saved, device)
    for read in read_batches(reader, start, workers):
        paths = reader.inputs.paths[read.start : read.start + len(read.errors)]
        logits = task.predict(model, read.pixels, device)
        yield described(paths, read.errors, *most_probable(logits, top_k), saved.classes)


def _check(top_k: int, batch_size: int, workers: int | None, engine: str) -> None:
    for name, value, low in (("top-k", top_k, 1), ("batch-size", batch_size, 1), ("workers", workers, 0)):
        if value is not None and value < low:
            raise GlocalError(f"{name}: expected at least {low}, got {value}")
    check_choice("engine", engine, ("local", "ray"))
