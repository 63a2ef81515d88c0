"""A trained detector or segmenter, measured on labelled images."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from glocal.data import DetectionSet, SegmentationSet, Skipped
from glocal.errors import GlocalError, nearest
from glocal.files import atomic_write_text
from glocal.models.io import ModelConfig, SavedModel
from glocal.tasks.detection import Detection, DetectionBatches, Outcome, scores_of
from glocal.tasks.segmentation import Segmentation, SegmentationBatches, normalize_of
from glocal.training.evaluation import evaluate_batches, refuse_bad
from glocal.training.loader import Batched, Share
from glocal.training.objective import Objective

OnError = Literal["stop", "skip"]
Follow = Callable[[int, int], None]


def evaluate_detector(
    saved: SavedModel,
    images: DetectionSet,
    *,
    device: str = "cpu",
    on_error: OnError = "stop",
    progress: Follow = lambda done, total: None,
    take: Callable[[Outcome], None] = lambda _: None,
) -> dict[str, Any]:
    """Average precision of boxes, and of masks where both have them.

    Args:
        saved: the model.
        images: their classes are found among the model's by name.
        device: where it runs.
        on_error: what to do with an image that went bad since it was checked.
        progress: is told how many images are done, of how many.
        take: is given each image with what was found on it.

    Returns:
        JSON: ``images``, `Precision` of boxes, that of masks under ``mask``, ``classes``, ``skipped``.

    Raises:
        GlocalError: for a class that the model does not know, or no image that can be read.
    """
    config = saved.config
    labels = labels_in_model(config, images.classes)
    masks = config.has_masks and images[0].masks is not None
    objective = Detection(len(config.classes), masks=masks)
    found, skipped = [], []
    data = DetectionBatches(images, masks=masks, labels=labels)
    for part, bad in _tested(objective, saved, data, device, on_error, progress):
        skipped += bad
        found.append(part)
        for one in part:
            take(one)
    joined = objective.join(found)
    return {**_about(config.classes, len(joined), skipped), **scores_of(objective, joined)}


def evaluate_segmenter(
    saved: SavedModel,
    images: SegmentationSet,
    *,
    device: str = "cpu",
    on_error: OnError = "stop",
    progress: Follow = lambda done, total: None,
) -> dict[str, Any]:
    """Mean IoU; arguments and errors as of `evaluate_detector`.

    Returns:
        JSON: what `Confusion` gives, ``images``, ``classes``, ``skipped``.
    """
    config = saved.config
    labels = labels_in_model(config, images.classes)
    objective = Segmentation(normalize_of(config), len(config.classes))
    found, skipped = [], []
    data = SegmentationBatches(images, config.image_size, labels=labels)
    for part, bad in _tested(objective, saved, data, device, on_error, progress):
        skipped += bad
        found.append(part)
    joined = objective.join(found)
    return {**_about(config.classes, len(joined), skipped), **joined.to_dict()}


def labels_in_model(config: ModelConfig, classes: Sequence[str]) -> list[int]:
    """The label that each class of a data set has in a model, by name.

    Raises:
        GlocalError: for a class that the model does not know.
    """
    of_model = {name: label for label, name in enumerate(config.classes)}
    if unknown := [name for name in classes if name not in of_model]:
        raise GlocalError(
            f"data: expected classes of the model, got {len(unknown)} others: {', '.join(map(repr, unknown[:3]))}"
            f"{nearest(unknown[0], of_model)}; the model knows {', '.join(config.classes[:10])}"
            + (" ..." if len(config.classes) > 10 else "")
        )
    return [of_model[name] for name in classes]


def coco_entries(one: Outcome, category_ids: Mapping[int, int]) -> list[dict[str, Any]]:
    """What was found on an image as COCO's results; classes without an id, which the data does not have, are left out.

    Args:
        one: of `evaluate_detector`.
        category_ids: the data's id of a label.
    """
    entries = []
    for i, label in enumerate(one.found.labels.tolist()):
        if label in category_ids:
            x1, y1, x2, y2 = one.found.boxes[i].tolist()
            entry: dict[str, Any] = {
                "image_id": one.truth.image_id,
                "category_id": category_ids[label],
                "bbox": [round(side, 3) for side in (x1, y1, x2 - x1, y2 - y1)],
                "score": float(one.found.scores[i]),
            }
            if one.found.masks is not None:
                entry["segmentation"] = {"size": list(one.truth.size), "counts": one.found.masks[i]}
            entries.append(entry)
    return entries


def write_entries(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """COCO's JSON of results, an object a line."""
    atomic_write_text(path, "[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n")


def _tested(
    objective: Objective, saved: SavedModel, data: Batched, device: str, on_error: OnError, progress: Follow
) -> Iterator[tuple[Any, list[Skipped]]]:
    done = 0
    with torch.no_grad():
        for part, batch in evaluate_batches(objective, saved.model, data, device, Share()):
            if on_error == "stop":
                refuse_bad(batch)
            done += len(batch.labels) + len(batch.skipped)
            progress(done, len(data))
            yield part, list(batch.skipped)


def _about(classes: tuple[str, ...], images: int, skipped: list[Skipped]) -> dict[str, Any]:
    if not images:
        raise GlocalError("data: no image can be read any more")
    return {"images": images, "classes": list(classes), "skipped": [asdict(bad) for bad in skipped]}
