"""Detection and instance segmentation: batches of images with boxes, the detector's own losses, average precision."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, cast

import numpy as np
import torch
from torch import nn

from glocal.data import DetectionSample, DetectionSet, DetectionSource
from glocal.data.predictions import write_entries
from glocal.data.transforms import DETECTION_SCALES, jitter_detection, jitter_params
from glocal.errors import GlocalError
from glocal.files import printable
from glocal.heads.detection import detector_spec
from glocal.metrics.coco import Detections, Precision, Targets, average_precision, coco_library, encode_masks
from glocal.models.io import ModelConfig, TaskName
from glocal.schema import Scores
from glocal.tasks.base import labels_in_model
from glocal.tasks.heads import HeadTask, model_config
from glocal.tasks.samples import SampleBatches
from glocal.training.config import TrainConfig
from glocal.training.loader import Batch, BatchDataset, BatchIndices
from glocal.training.trainable import Score


class DetectionBatches(SampleBatches):
    """A detection set, a batch at a time.

    ``inputs`` are (3, H, W) uint8 images of their own sizes. ``labels`` are, of a recipe, targets as detectors take
    them (``boxes``, ``labels``, ``masks``), crowds left out; else `Targets` each, crowds among them.

    Args:
        images: the image set.
        masks: whether masks are of use.
        options: those of `SampleBatches`.
    """

    def __init__(self, images: DetectionSet, *, masks: bool, **options: Any) -> None:
        super().__init__(images, **options)
        self.masks = masks

    def __getitem__(self, key: BatchIndices) -> Batch:
        seen, seeds, skipped = self.read(key)
        inputs = _tensors([np.ascontiguousarray(image.transpose(2, 0, 1)) for image, *_ in seen])
        labels: list[Any] = self._targets(seen) if self.recipe is not None else [targets for _, targets in seen]
        return Batch(inputs, labels, seeds, key.weight, skipped)

    def prepare(self, sample: DetectionSample, drawn: np.ndarray) -> tuple[Any, ...]:
        """The image and its `Targets`; of a recipe image, boxes, labels and masks, augmented."""
        if self.recipe is None:
            return sample.image, self._targets_of(sample)
        one = ~sample.crowd
        masks = sample.masks[one] if self.masks and sample.masks is not None else None
        scale_range = DETECTION_SCALES if self.recipe.data.augment == "light" else None
        params = jitter_params(drawn, flip=self.recipe.data.flip, scale_range=scale_range)
        return jitter_detection(sample.image, sample.boxes[one], self.relabel[sample.labels[one]], masks, params)

    def _targets(self, seen: Sequence[tuple[Any, Any, Any, Any]]) -> list[dict[str, torch.Tensor]]:
        names = ("boxes", "labels", "masks") if self.masks else ("boxes", "labels")
        columns = {name: _tensors([one[place] for one in seen]) for place, name in enumerate(names, 1)}
        return [{name: column[i] for name, column in columns.items()} for i in range(len(seen))]

    def _targets_of(self, sample: DetectionSample) -> Targets:
        masks = encode_masks(sample.masks) if self.masks and sample.masks is not None else None
        height, width = sample.image.shape[:2]
        return Targets(
            size=(height, width),
            boxes=sample.boxes,
            labels=self.relabel[sample.labels],
            crowd=sample.crowd,
            area=sample.area,
            masks=masks,
            image_id=sample.image_id,
        )


def _tensors(arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Arrays as tensors that share one storage: between processes each storage takes a file descriptor."""
    if not arrays:
        return []
    flat = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays]))
    parts = flat.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


class Outcome(NamedTuple):
    """An image of the validation set: targets and detections."""

    targets: Targets
    detections: Detections


class DetectionTask(HeadTask):
    """Boxes, and masks where the detector has them.

    Args:
        model_config: see `Task`.
        config: how it is trained.
        data: a `DetectionSource`.
        options: those of `Task`.

    Raises:
        GlocalError: if the COCO library is not installed.
    """

    name: ClassVar[TaskName] = "detection"
    metric: ClassVar[str] = "map"
    columns: ClassVar[tuple[str, ...]] = ("val_map", "val_map50", "val_map75", "val_mask_map", "val_mask_map50")

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainConfig = TrainConfig(),  # noqa: B008 - immutable
        data: DetectionSource | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model_config, config, data, **options)
        coco_library()  # not after an epoch of training
        self.masks = model_config.has_masks

    @classmethod
    def for_data(cls, data: DetectionSource, config: TrainConfig, **options: Any) -> Self:
        """For the backbone and head of a configuration."""
        made = model_config("detection", config, classes=data.classes, category_ids=data.category_ids)
        if made.has_masks and data.train[0].masks is None:
            raise GlocalError(
                f"data: {made.head} needs a mask for every object, and some of {data.name} have none; "
                f"{detector_spec(made.head).without_masks} trains on boxes only"
            )
        return cls(made, config, data, **options)

    def plan(self) -> dict[str, Any]:
        """The preset as it was chosen."""
        plan = super().plan()
        plan["head"]["preset"] = self.model_config.preset
        return plan

    def datasets(self) -> tuple[BatchDataset, BatchDataset]:
        """Augmented images with targets as detectors take them, and plain ones with `Targets`."""
        train_set = DetectionBatches(self.data.train, masks=self.masks, recipe=self.config, seed=self.config.seed)
        return train_set, DetectionBatches(self.data.val, masks=self.masks)

    def eval_set(self, images: DetectionSet) -> BatchDataset:
        """Plain images with `Targets`."""
        return DetectionBatches(images, masks=self.masks, labels=labels_in_model(self.classes, images.classes))

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Sum of the detector's losses."""
        losses: Mapping[str, torch.Tensor] = model(_floats(batch.inputs), batch.labels)
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    def evaluate_batch(self, model: nn.Module, batch: Batch, device: torch.device) -> list[Outcome]:
        """Targets and detections of each image, masks as run lengths."""
        detected = self.predict(model, batch.inputs, device)
        return [Outcome(targets, detections_of(one)) for targets, one in zip(batch.labels, detected, strict=True)]

    @torch.no_grad()
    def predict(
        self, model: nn.Module, images: Sequence[torch.Tensor], device: str | torch.device
    ) -> list[dict[str, np.ndarray]]:
        """``boxes``, ``scores``, ``labels`` and, where the detector has them, ``masks`` of each image."""
        if not len(images):
            return []
        detected = model(_floats([image.to(device).contiguous() for image in images]))
        return [{name: _array(value) for name, value in one.items()} for one in detected]

    def join(self, parts: Sequence[list[Outcome]]) -> list[Outcome]:
        """All images."""
        return [outcome for part in parts for outcome in part]

    def precision(self, outcomes: Sequence[Outcome]) -> tuple[Precision, Precision | None]:
        """Average precision of boxes, and of masks where detector and data have them."""
        targets, detections = [one.targets for one in outcomes], [one.detections for one in outcomes]
        boxes = average_precision(targets, detections, len(self.classes), masks=False)
        if not self.masks or targets[0].masks is None:
            return boxes, None
        return boxes, average_precision(targets, detections, len(self.classes), masks=True)

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        """Average precision of boxes, COCO's mean over classes and IoU thresholds; that of masks beside."""
        boxes, masks = self.precision(outcomes)
        columns: dict[str, float | None] = {"val_map": boxes.map, "val_map50": boxes.map50, "val_map75": boxes.map75}
        if masks is not None:
            columns |= {"val_mask_map": masks.map, "val_mask_map50": masks.map50}
        return Score(boxes.map, None, columns)

    def results(self, outcomes: Sequence[Outcome]) -> Scores:
        """Average precision, overall and of each class; that of masks under ``mask``."""
        boxes, masks = self.precision(outcomes)
        scores = cast(Scores, boxes.to_dict())
        if masks is not None:
            scores["mask"] = masks.to_dict()
        return scores


def _floats(images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [image.float() / 255 for image in images]


def _array(tensor: torch.Tensor) -> np.ndarray:
    """NumPy has no bfloat16."""
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()


def detections_of(detected: Mapping[str, np.ndarray]) -> Detections:
    """The detections of an image, masks as run lengths."""
    masks = encode_masks(detected["masks"]) if "masks" in detected else None
    return Detections(detected["boxes"], detected["scores"], detected["labels"].astype(np.int64), masks)


def coco_entries(one: Outcome, category_ids: Mapping[int, int]) -> list[dict[str, Any]]:
    """The detections of an image as COCO's results; classes without an id, which the data does not have, are left out.

    Args:
        one: of `DetectionTask.evaluate_batch`.
        category_ids: the data's id of a label.
    """
    entries = []
    for i, label in enumerate(one.detections.labels.tolist()):
        if label in category_ids:
            x1, y1, x2, y2 = one.detections.boxes[i].tolist()
            entry: dict[str, Any] = {
                "image_id": one.targets.image_id,
                "category_id": category_ids[label],
                "bbox": [round(side, 3) for side in (x1, y1, x2 - x1, y2 - y1)],
                "score": float(one.detections.scores[i]),
            }
            if one.detections.masks is not None:
                entry["segmentation"] = {"size": list(one.targets.size), "counts": one.detections.masks[i]}
            entries.append(entry)
    return entries


def write_predictions(path: Path, outcomes: Sequence[Outcome], classes: Sequence[str], data: DetectionSource) -> None:
    """The detections of images as COCO's JSON of results, an object a line, with the category ids of the data.

    Args:
        path: of the file.
        outcomes: of `DetectionTask.evaluate`.
        classes: the model's; those that the data does not have are left out.
        data: what the images are of.

    Raises:
        GlocalError: if the file cannot be written.
    """
    of_data = dict(zip(data.classes, data.category_ids, strict=True))
    category_ids = {label: of_data[name] for label, name in enumerate(classes) if name in of_data}
    entries = [entry for one in outcomes for entry in coco_entries(one, category_ids)]
    try:
        write_entries(path, entries)
    except OSError as error:
        raise GlocalError(f"predictions: cannot write {printable(path)} ({error.strerror})") from error
