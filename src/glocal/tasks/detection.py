"""Detection and instance segmentation: batches of images with boxes, the detector's own losses, average precision."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from glocal.data import DetectionSample, DetectionSet, DetectionSource, ImageError, Skipped
from glocal.data.pasted import Pasted
from glocal.data.transforms import DETECTION_SCALES, draws, jitter_detection, jitter_params
from glocal.errors import GlocalError
from glocal.heads.detection import detector_spec
from glocal.metrics.coco import Detections, Precision, Targets, average_precision, coco_library, encode_masks
from glocal.models.io import ModelConfig, save_model
from glocal.tasks.design import BackboneWeights, HeadSettings, create, design, macs_of
from glocal.tasks.settings import check_request
from glocal.training.config import TrainConfig
from glocal.training.loader import Batch, Batched, Key
from glocal.training.objective import Objective, Score
from glocal.training.request import Request

EVALUATION_BATCH = 4


class DetectionBatches(Dataset[Batch]):
    """A detection set, a batch at a time.

    ``inputs`` are (3, H, W) uint8 images of their own sizes. ``labels`` are, of a recipe, targets as detectors take
    them (``boxes``, ``labels``, ``masks``), crowds left out; else `Targets` each, crowds among them.

    Args:
        images: what is read.
        masks: whether masks are of use.
        recipe: says how to augment; None for images as they are, to be tested on.
        seed: of all draws.
        labels: what each label of the set is to a model; None for the same.
    """

    evaluation_batch = EVALUATION_BATCH

    def __init__(
        self,
        images: DetectionSet,
        *,
        masks: bool,
        recipe: TrainConfig | None = None,
        seed: int = 0,
        labels: Sequence[int] | None = None,
    ) -> None:
        self.images, self.masks, self.recipe, self.seed = images, masks, recipe, seed
        self.relabel = np.arange(len(images.classes)) if labels is None else np.asarray(labels, np.int64)
        self.labels, self.num_classes = np.zeros(len(images), np.int64), len(images.classes)

    @property
    def reads_files(self) -> bool:
        """Whether reading is worth processes of its own: samples that are drawn take less time than their way here."""
        return not isinstance(self.images.store, Pasted)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Batch:
        """Images that went bad since they were checked are reported and left out."""
        samples, kept, skipped = [], [], []
        for place, position in enumerate((key.slots % len(self)).tolist()):
            try:
                samples.append(self.images[position])
                kept.append(place)
            except ImageError as error:
                skipped.append(Skipped(error.path, f"went bad during training: {error.reason}"))
        drawn = draws(self.seed, key.epoch, key.slots)[kept]
        labels: list[Any]
        if self.recipe is None:
            images, labels = [sample.image for sample in samples], [self._truth(sample) for sample in samples]
        else:
            seen = [self._look(sample, numbers) for sample, numbers in zip(samples, drawn, strict=True)]
            images, labels = [image for image, _, _, _ in seen], self._targets(seen)
        inputs = _tensors([np.ascontiguousarray(image.transpose(2, 0, 1)) for image in images])
        seeds = torch.from_numpy(drawn[:, 3].astype(np.int64))
        return Batch(inputs, labels, seeds, key.weight, tuple(skipped))

    def _look(
        self, sample: DetectionSample, drawn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        assert self.recipe is not None
        one = ~sample.crowd
        masks = sample.masks[one] if self.masks and sample.masks is not None else None
        scale_range = DETECTION_SCALES if self.recipe.data.augment == "light" else None
        params = jitter_params(drawn, flip=self.recipe.data.flip, scale_range=scale_range)
        return jitter_detection(sample.image, sample.boxes[one], self.relabel[sample.labels[one]], masks, params)

    def _targets(self, seen: Sequence[tuple[Any, Any, Any, Any]]) -> list[dict[str, torch.Tensor]]:
        columns = {"boxes": _tensors([boxes for _, boxes, _, _ in seen])}
        columns["labels"] = _tensors([labels for _, _, labels, _ in seen])
        if self.masks:
            columns["masks"] = _tensors([masks for _, _, _, masks in seen])
        return [{name: column[i] for name, column in columns.items()} for i in range(len(seen))]

    def _truth(self, sample: DetectionSample) -> Targets:
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
    """An image of the validation set: what is on it, and what was found."""

    truth: Targets
    found: Detections


class Detection(Objective):
    """Boxes, and masks where the detector has them.

    Args:
        num_classes: of the model.
        masks: whether masks are scored.

    Raises:
        GlocalError: if what scores is not installed.
    """

    metric: ClassVar[str] = "map"
    columns: ClassVar[tuple[str, ...]] = ("val_map", "val_map50", "val_map75", "val_mask_map", "val_mask_map50")

    def __init__(self, num_classes: int, *, masks: bool) -> None:
        super().__init__()
        coco_library()  # not after an epoch of training
        self.num_classes, self.masks = num_classes, masks

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Sum of the detector's losses."""
        losses: Mapping[str, torch.Tensor] = model(_floats(batch.inputs), batch.labels)
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    def test(self, model: nn.Module, batch: Batch, device: torch.device) -> list[Outcome]:
        """Truth and findings of each image, masks as run lengths."""
        images = [image.to(device) for image in batch.inputs]
        found = model(_floats(images)) if images else []
        return [Outcome(truth, found_of(one)) for truth, one in zip(batch.labels, found, strict=True)]

    def join(self, parts: Sequence[list[Outcome]]) -> list[Outcome]:
        """All images."""
        return [tested for part in parts for tested in part]

    def precision(self, found: Sequence[Outcome]) -> tuple[Precision, Precision | None]:
        """Of boxes and of masks."""
        truths, founds = [one.truth for one in found], [one.found for one in found]
        boxes = average_precision(truths, founds, self.num_classes, masks=False)
        return boxes, average_precision(truths, founds, self.num_classes, masks=True) if self.masks else None

    def score(self, found: Sequence[Outcome]) -> Score:
        """Average precision of boxes, COCO's mean over classes and IoU thresholds; that of masks beside."""
        boxes, masks = self.precision(found)
        columns: dict[str, float | None] = {"val_map": boxes.map, "val_map50": boxes.map50, "val_map75": boxes.map75}
        if masks is not None:
            columns |= {"val_mask_map": masks.map, "val_mask_map50": masks.map50}
        return Score(boxes.map, None, columns)


def _floats(images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [image.float() / 255 for image in images]


def found_of(found: Mapping[str, torch.Tensor]) -> Detections:
    """What a detector found on an image, on the CPU."""
    masks = encode_masks(found["masks"].cpu().numpy()) if "masks" in found else None
    boxes, scores, labels = (found[name].float().cpu().numpy() for name in ("boxes", "scores", "labels"))
    return Detections(boxes, scores, labels.astype(np.int64), masks)


class DetectObjects:
    """Train a detector on a `DetectionSource`.

    Args:
        source: the data.
        settings: of the head.
        say: is told what was taken over from a classifier.
    """

    def __init__(
        self, source: DetectionSource, settings: HeadSettings, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.source, self.settings, self.say = source, settings, say
        self.classes, self.skipped = source.classes, source.skipped
        spec = detector_spec(settings.head)
        self.masks = spec.masks
        self.transfer: BackboneWeights | None = None
        self._designed: tuple[Request, ModelConfig] | None = None
        if self.masks and source.train[0].masks is None:
            raise GlocalError(
                f"data: {settings.head} learns masks, and not every object of {source.name} has one; "
                f"{spec.without_masks} learns boxes alone"
            )

    def architecture(self, request: Request) -> ModelConfig:
        """What is to be trained."""
        if self._designed is None or self._designed[0] != request:
            check_request("detection", request)
            ids = self.source.category_ids
            made = design("detection", self.settings, request, classes=self.classes, category_ids=ids)
            self._designed = request, made
        return self._designed[1]

    def plan(self, request: Request) -> dict[str, Any]:
        """Fingerprint, classes and number of images; the head."""
        architecture, source = self.architecture(request), self.source
        data = {"fingerprint": source.fingerprint, "classes": list(source.classes), "images": len(source.train)}
        return {"task": "detection", "data": data, "head": {**self.settings.plan(), "preset": architecture.preset}}

    def create(self, request: Request) -> nn.Module:
        """A detector, on the backbone of a classifier where weights are given."""
        model, self.transfer = create(self.architecture(request), self.settings, request)
        if self.transfer is not None:
            self.say(str(self.transfer))
        return model

    def count_macs(self, model: nn.Module, request: Request) -> int:
        """For a black square image of the recipe's size, on which a second stage sees its own random proposals."""
        return macs_of(model, self.architecture(request))

    def batches(self, request: Request) -> tuple[Batched, Batched]:
        """Augmented images with targets, and plain ones with the truth."""
        learned = DetectionBatches(self.source.train, masks=self.masks, recipe=request.recipe, seed=request.seed)
        return learned, DetectionBatches(self.source.val, masks=self.masks)

    def objective(self, model: nn.Module, learned: Batched, request: Request) -> Objective:
        """The detector's losses, and average precision."""
        return Detection(len(self.classes), masks=self.masks)

    def save(self, model: nn.Module, folder: Path, request: Request) -> None:
        """As `glocal.models.io.load_model` reads it."""
        save_model(model, folder, self.architecture(request))

    def results(self, found: Sequence[Outcome]) -> dict[str, Any]:
        """Scores, and how many images there were."""
        counts = {"train": len(self.source.train), "val": len(self.source.val), "skipped": len(self.skipped)}
        transfer = {"transfer": asdict(self.transfer)} if self.transfer is not None else {}
        scores = scores_of(Detection(len(self.classes), masks=self.masks), found)
        return {"classes": list(self.classes), "images": counts, **transfer, **scores}


def scores_of(objective: Detection, found: Sequence[Outcome]) -> dict[str, Any]:
    """Average precision, overall and of each class, as JSON; that of masks under ``mask``."""
    boxes, masks = objective.precision(found)
    return {**boxes.to_dict(), **({"mask": masks.to_dict()} if masks is not None else {})}
