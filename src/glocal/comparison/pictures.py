"""Pictures for the report: mistakes of classifiers; detections and label maps beside the ground truth."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from glocal.comparison.analysis import pictures_of_disturbances
from glocal.comparison.metric import PREDICTIONS
from glocal.data import DataSource, DetectionSample, ImageError, SegmentationSample
from glocal.data.rle import decode_counts, mask_from_counts
from glocal.data.transforms import resize_labels
from glocal.schema import CompareResults, RunEntry
from glocal.tasks.drawing import draw_label_map, draw_objects

SIDE = 256
"""Pixels of the longer side of a picture: large enough for readable names."""


def pictures(results: CompareResults, source: Any, out: Path) -> dict[str, Image.Image]:
    """All pictures of the results of a comparison, by key, without images that have become unreadable.

    Args:
        results: of `compare`.
        source: the data of the comparison.
        out: the comparison's folder.
    """
    if "examples" not in results:
        disturbed = pictures_of_disturbances(results, source) if "analysis" in results else {}
        return pictures_of_mistakes(results, source) | disturbed
    draw_truth, draw_prediction = _DRAW[results["metric"]]
    position = {path: i for i, path in enumerate(source.val.paths)}
    runs = {run["id"]: run for run in results["runs"]}
    predictions: dict[str, Any] = {}
    drawn = {}
    for example in results["examples"]:
        path = example["path"]
        try:
            sample = source.val[position[path]]
        except ImageError:
            continue
        drawn[example["truth"]] = draw_truth(sample, source.classes)
        for key in example["predictions"].values():
            run = runs[key.removesuffix(f"/{path}")]
            if run["id"] not in predictions:
                predictions[run["id"]] = load_file(out / "runs" / run["id"] / PREDICTIONS)
            drawn[key] = draw_prediction(sample, predictions[run["id"]], position[path], run, source.classes)
    return drawn


def pictures_of_mistakes(results: CompareResults, data: DataSource) -> dict[str, Image.Image]:
    """The images of ``mistakes`` in the results, by key."""
    position = {path: i for i, path in enumerate(data.val.paths)}
    keys = {mistake["picture"] for run in results["runs"] for mistake in run["mistakes"]}
    return {key: data.val.image(position[key]) for key in sorted(keys)}


def _resized(image: np.ndarray) -> tuple[Image.Image, float]:
    """The image at `SIDE`, and the scale."""
    scale = SIDE / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), scale


def _draw_objects(
    sample: DetectionSample,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    masks: np.ndarray | None,
    classes: tuple[str, ...],
) -> Image.Image:
    picture, scale = _resized(sample.image)
    if masks is not None:
        masks = resize_labels(masks, picture.height, picture.width)
    return draw_objects(picture, boxes * scale, labels, scores, masks, classes)


def _true_objects(sample: DetectionSample, classes: tuple[str, ...]) -> Image.Image:
    one = ~sample.crowd
    return _draw_objects(sample, sample.boxes[one], sample.labels[one], None, None, classes)


def _found_objects(
    sample: DetectionSample,
    predictions: Mapping[str, np.ndarray],
    position: int,
    run: RunEntry,
    classes: tuple[str, ...],
) -> Image.Image:
    """The detections above the run's threshold, by descending score."""
    there = np.flatnonzero((predictions["image"] == position) & (predictions["score"] >= run["threshold"]))
    there = there[np.argsort(-predictions["score"][there], kind="stable")]
    masks = None
    if "masks" in predictions:
        height, width = sample.image.shape[:2]
        texts = predictions["masks"].tobytes().decode("ascii").split("\n")
        masks = np.array([mask_from_counts(decode_counts(texts[i]), height, width) for i in there], bool)
        masks = masks.reshape(-1, height, width)
    boxes, labels, scores = (predictions[name][there] for name in ("boxes", "label", "score"))
    return _draw_objects(sample, boxes, labels, scores, masks, classes)


def _draw_pixels(sample: SegmentationSample, label_map: np.ndarray, classes: tuple[str, ...]) -> Image.Image:
    picture, _ = _resized(sample.image)
    return draw_label_map(picture, resize_labels(label_map, picture.height, picture.width), classes)


def _true_pixels(sample: SegmentationSample, classes: tuple[str, ...]) -> Image.Image:
    return _draw_pixels(sample, sample.label_map, classes)


def _predicted_pixels(
    sample: SegmentationSample,
    predictions: Mapping[str, np.ndarray],
    position: int,
    run: RunEntry,
    classes: tuple[str, ...],
) -> Image.Image:
    start, end = predictions["starts"][position : position + 2]
    return _draw_pixels(sample, np.asarray(Image.open(io.BytesIO(predictions["maps"][start:end].tobytes()))), classes)


_DRAW: dict[str, tuple[Callable[..., Image.Image], Callable[..., Image.Image]]] = {
    "map": (_true_objects, _found_objects),
    "miou": (_true_pixels, _predicted_pixels),
}
"""By metric: functions that draw the targets and the predictions of an image."""
