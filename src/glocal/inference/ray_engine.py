"""The ray engine: the same predictions as the local one, made by actors on a cluster.

Rows are (index, path, place of the image in its store); ray streams them in batches through actors that hold the model
and read the images where they run, so files must lie at the same paths there. Needs ``pip install glocal[ray]``.
"""

import inspect
import logging
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import numpy as np

from glocal.data.sets import Store
from glocal.data.workers import default_workers
from glocal.errors import GlocalError
from glocal.inference.answers import described, most_probable
from glocal.inference.inputs import Inputs, Read, Reader
from glocal.inference.models import Model, reader_for, task_and_model
from glocal.inference.output import ClassPrediction


class _Actor:
    """Reads and runs batches of rows; the model is loaded once.

    Images are decoded in a process of its own: ray would start an actor that a decoder killed again and again.
    """

    def __init__(self, saved: Model, stores: tuple[Store, ...], top_k: int, device: str) -> None:
        self.saved, self.stores, self.top_k, self.device = saved, stores, top_k, device
        self.task, self.model = task_and_model(saved, device)
        self.pool: ProcessPoolExecutor | None = None

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        paths = tuple(map(os.fsdecode, rows["path"]))
        inputs = Inputs(paths, self.stores, np.stack([rows["store"], rows["row"]], axis=1))
        read = self.read(reader_for(self.saved, inputs, len(paths)))
        best, probabilities = most_probable(self.task.predict(self.model, read.pixels, self.device), self.top_k)
        # text that Arrow could not hold, as of undecodable names, is escaped; "" stands for no error
        errors = [(error or "").encode("utf-8", "backslashreplace") for error in read.errors]
        return {"index": rows["index"], "best": best, "probabilities": probabilities, "error": errors}

    def read(self, reader: Reader) -> Read:
        if self.pool is None:
            # not a fork, which would copy the locks of ray's threads
            self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        try:
            return self.pool.submit(reader.__getitem__, 0).result()
        except BrokenProcessPool:
            self.pool = None
            return reader.read_alone(0, "spawn")


def run_batches(
    saved: Model, reader: Reader, start: int, *, top_k: int, device: str, actors: int | None
) -> Iterator[list[ClassPrediction]]:
    """Predictions in the order of the inputs, from batch number ``start`` on, as they come.

    Args:
        saved: the model.
        reader: of the images.
        start: number of the first batch.
        top_k: classes of each image.
        device: where each actor runs the model; with CUDA each has a GPU of its own.
        actors: how many; by default one for each processor, or one with CUDA.

    Raises:
        GlocalError: if ray is not installed.
    """
    ray = _import_ray()
    on_gpu = device.startswith("cuda")
    actors = max(1, actors or (1 if on_gpu else default_workers()))
    actors = min(actors, len(reader) - start)
    inputs, first = reader.inputs, start * reader.batch_size
    items = [
        {"index": index, "path": os.fsencode(inputs.paths[index]), "store": store, "row": row}
        for index, (store, row) in enumerate(inputs.places[first:].tolist(), first)
    ]
    with _cluster(ray, actors):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True  # few results then wait for earlier ones
        rows = ray.data.from_items(items, override_num_blocks=-(-len(items) // reader.batch_size))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*ray_remote_args_fn. is deprecated")
            results = rows.map_batches(
                _Actor,
                fn_constructor_args=(saved, inputs.stores, top_k, "cuda" if on_gpu else device),
                batch_size=None,  # a block is a batch: none waits for another to be filled up
                compute=ray.data.ActorPoolStrategy(size=actors),
                num_gpus=1 if on_gpu else 0,
                batch_format="numpy",
                **_without_restarts(rows),
            )
        yield from _in_order(results.iter_batches(batch_size=None, batch_format="numpy"), inputs, saved, first)


def _without_restarts(rows: Any) -> dict[str, Any]:
    """On one machine an actor that dies would die again; on a cluster it may have gone with its node.

    Releases of ray that no longer let one say so start actors anew everywhere.
    """
    if os.environ.get("RAY_ADDRESS") or "ray_remote_args_fn" not in inspect.signature(rows.map_batches).parameters:
        return {}
    return {"ray_remote_args_fn": lambda: {"max_restarts": 0, "max_task_retries": 0}}


def _in_order(
    blocks: Iterator[dict[str, np.ndarray]], inputs: Inputs, saved: Model, first: int
) -> Iterator[list[ClassPrediction]]:
    """Lists of predictions without a gap: one that comes early waits."""
    waiting: dict[int, ClassPrediction] = {}
    for block in blocks:
        numbers = block["index"].tolist()
        errors = [bytes(error).decode() or None for error in block["error"]]
        paths = [inputs.paths[index] for index in numbers]
        predictions = described(
            paths, errors, np.stack(list(block["best"])), np.stack(list(block["probabilities"])), saved.classes
        )
        waiting |= zip(numbers, predictions, strict=True)
        ready = []
        while first in waiting:
            ready.append(waiting.pop(first))
            first += 1
        if ready:
            yield ready


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what ray will do soon, and warns of
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise GlocalError("engine: ray is not installed; pip install glocal[ray], or use --engine local") from error
    return ray


@contextmanager
def _cluster(ray: Any, actors: int) -> Iterator[None]:
    """The cluster that ``RAY_ADDRESS`` names, or one of this machine for as long as it takes."""
    began = not ray.is_initialized()
    if began:
        local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": actors + 1, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **local)
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if began:
            ray.shutdown()
