"""Average precision as COCO computes it (Lin et al. 2014, https://cocodataset.org/#detection-eval).

`average_precision` is faster-coco-eval, equal to pycocotools, and fed as torchmetrics' MeanAveragePrecision feeds it,
except that masks stay run lengths from start to end: torchmetrics wants dense masks.

`match` and `Matches` give the average precision of any resample of the images. A match of a detection to a target
depends on no other image, so it is computed once, as pycocotools' `COCOeval.evaluateImg` does. Images drawn with
replacement then have weights: how often each was drawn.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from glocal.errors import GlocalError
from glocal.schema import PrecisionScores

MAX_DETS = 100
"""Detections that count, those with the highest scores: of each class and image (pycocotools' maxDets)."""
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0, 1, 101)
CELLS = 2**22
"""Resamples times detections that are computed at a time: 32 MiB."""


class Targets(NamedTuple):
    """Ground truth of an image.

    Attributes:
        size: (H, W).
        boxes: (N, 4) x1 y1 x2 y2 in pixels.
        labels: (N,) int64.
        crowd: (N,) bool.
        area: (N,) pixels.
        masks: N compressed run lengths, or None.
        image_id: as the data has it.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    masks: list[str] | None
    image_id: int | str = 0


class Detections(NamedTuple):
    """Output of a detector for an image, highest score first.

    Attributes:
        boxes: (M, 4) x1 y1 x2 y2 in pixels.
        scores: (M,).
        labels: (M,) int64.
        masks: M compressed run lengths, or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[str] | None


@dataclass(frozen=True)
class Precision:
    """Average precision from 0 to 1.

    Attributes:
        map: mean over classes and IoU thresholds of 0.5, 0.55, ... 0.95; 0 without targets.
        map50: at an IoU of 0.5.
        map75: at an IoU of 0.75.
        small: of targets below 32 x 32 pixels; None without any.
        medium: of those below 96 x 96.
        large: of the others.
        recall: mean over IoU thresholds and classes, with up to `MAX_DETS` detections.
        per_class: mean over IoU thresholds; None for a class without targets.
    """

    map: float
    map50: float
    map75: float
    small: float | None
    medium: float | None
    large: float | None
    recall: float
    per_class: tuple[float | None, ...]

    def to_dict(self) -> PrecisionScores:
        """As JSON."""
        return cast(PrecisionScores, {**asdict(self), "per_class": list(self.per_class)})


def encode_masks(masks: np.ndarray) -> list[str]:
    """(N, H, W) bool -> N compressed run lengths."""
    encode = coco_library().mask.encode
    if not len(masks):
        return []
    encoded = encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [_text(one["counts"]) for one in encoded]


def average_precision(
    targets: Sequence[Targets], detections: Sequence[Detections], num_classes: int, *, masks: bool
) -> Precision:
    """Average precision over images.

    Args:
        targets: one per image.
        detections: one per image.
        num_classes: labels are below.
        masks: IoU of masks, not of boxes.
    """
    library = coco_library()
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id, (target, detected) in enumerate(zip(targets, detections, strict=True), 1):
        for i, (box, label) in enumerate(zip(target.boxes.tolist(), target.labels.tolist(), strict=True)):
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": label,
                "bbox": _xyxy_to_xywh(box),
                "area": float(target.area[i]),
                "iscrowd": int(target.crowd[i]),
            }
            annotations.append(annotation | _segmentation(target.masks, i, target.size, masks))
        scores, labels = detected.scores.tolist(), detected.labels.tolist()
        for i, box in enumerate(detected.boxes.tolist()):
            result: dict[str, Any] = {"image_id": image_id, "category_id": labels[i], "score": scores[i]}
            segmentation = _segmentation(detected.masks, i, target.size, masks)
            results.append(result | (segmentation or {"bbox": _xyxy_to_xywh(box)}))
    ground_truth = library.COCO()
    ground_truth.dataset = {
        "images": [{"id": i, "height": t.size[0], "width": t.size[1]} for i, t in enumerate(targets, 1)],
        "categories": [{"id": label, "name": str(label)} for label in range(num_classes)],
        "annotations": annotations,
    }
    ground_truth.createIndex()
    loaded = ground_truth.loadRes(results)
    evaluation = library.COCOeval_faster(ground_truth, loaded, iouType="segm" if masks else "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    # (10 IoU thresholds, 101 recalls, K, 4 areas, 3 maxDets); -1 without targets
    precision, recall = np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])
    all_areas = precision[:, :, :, 0, -1]
    small, medium, large = (_mean(precision[:, :, :, area, -1]) for area in (1, 2, 3))
    return Precision(
        map=_mean(all_areas) or 0.0,
        map50=_mean(all_areas[0]) or 0.0,
        map75=_mean(all_areas[5]) or 0.0,
        small=small,
        medium=medium,
        large=large,
        recall=_mean(recall[:, :, 0, -1]) or 0.0,
        per_class=tuple(_mean(all_areas[:, :, label]) for label in range(num_classes)),
    )


def coco_library() -> Any:
    """Faster-coco-eval.

    Raises:
        GlocalError: if it is not installed.
    """
    try:
        import faster_coco_eval  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise GlocalError("detection: faster-coco-eval is not installed; pip install 'glocal[detect]'") from error
    return faster_coco_eval


def _segmentation(masks: list[str] | None, i: int, size: tuple[int, int], wanted: bool) -> dict[str, Any]:
    return {"segmentation": {"size": list(size), "counts": masks[i]}} if wanted and masks is not None else {}


def _xyxy_to_xywh(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _mean(values: np.ndarray) -> float | None:
    there = values[values > -1]
    return float(there.mean()) if there.size else None


def _text(counts: str | bytes) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


@dataclass(frozen=True, eq=False)
class Matches:
    """D detections on N images, matched to targets.

    Attributes:
        image: (D,) int64, position of the image; detections of an image stand together.
        place: (D,) int64, position among the detections of the image.
        label: (D,) int64.
        score: (D,) float32.
        matched: (D, 10) bool, matched to a target at each of `IOU_THRESHOLDS`: a true positive.
        ignored: (D, 10) bool, matched to a crowd: neither a true nor a false positive.
        objects: (N, K) int64, targets of each class on each image, without crowds.
    """

    image: np.ndarray
    place: np.ndarray
    label: np.ndarray
    score: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray

    def best_threshold(self) -> float:
        """The score threshold with the highest F1 at an IoU of 0.5 over all classes; 1 without a true positive."""
        order = np.argsort(-self.score, kind="stable")
        order = order[~self.ignored[order, 0]]
        true_positives = self.matched[order, 0].cumsum()
        f1 = 2 * true_positives / (np.arange(1, len(order) + 1) + self.objects.sum())
        return float(self.score[order[f1.argmax()]]) if true_positives.any() else 1.0

    def f1_of_images(self, threshold: float) -> np.ndarray:
        """(N,) F1 of each image at an IoU of 0.5 and a score threshold; NaN without targets and detections."""
        counted = (self.score >= threshold) & ~self.ignored[:, 0]
        num_images = len(self.objects)
        true_positives = np.bincount(self.image[counted & self.matched[:, 0]], minlength=num_images)
        both = np.bincount(self.image[counted], minlength=num_images) + self.objects.sum(axis=1)
        return np.where(both > 0, 2 * true_positives / np.maximum(both, 1), np.nan)

    def average_precision(self, weights: np.ndarray | None = None) -> np.ndarray:
        """COCO's average precision of boxes, the mean over classes and IoU thresholds, of resamples of the images.

        A class without targets in a resample is excluded from its mean; without any target the precision is 0.
        Detections of equal score are ordered by image, those of an image drawn twice one after the other.

        Args:
            weights: (resamples, N) how often each image was drawn; by default one resample with each image once.

        Returns:
            (resamples,) from 0 to 1.
        """
        if weights is None:
            weights = np.ones((1, len(self.objects)), np.int64)
        total, classes = np.zeros(len(weights)), np.zeros(len(weights))
        for label in np.flatnonzero(self.objects.any(axis=0)).tolist():
            of_class = np.flatnonzero(self.label == label)
            of_class = of_class[np.argsort(-self.score[of_class], kind="stable")]
            rows = max(1, CELLS // max(1, len(of_class)))
            for start in range(0, len(weights), rows):
                part = slice(start, start + rows)
                objects = weights[part] @ self.objects[:, label]
                total[part] += self._of_class(of_class, weights[part], objects)
                classes[part] += objects > 0
        return total / np.maximum(classes, 1)

    def _of_class(self, detections: np.ndarray, weights: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """(resamples,) mean over IoU thresholds and recalls; 0 for a resample without targets.

        Precision is computed at true positives only: nowhere else do precision and recall rise.
        """
        drawn = weights[:, self.image[detections]]  # (resamples, detections)
        seen = drawn.cumsum(axis=1)
        total = np.zeros(len(weights))
        for matched, ignored in zip(self.matched[detections].T, self.ignored[detections].T, strict=True):
            hits = np.flatnonzero(matched)
            if not len(hits):
                continue
            true = drawn[:, hits].cumsum(axis=1)
            counted = seen[:, hits]
            if ignored.any():
                counted = counted - (drawn * ignored).cumsum(axis=1)[:, hits]
            precision = true / np.maximum(counted, 1)
            best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            reached = np.searchsorted(RECALL_THRESHOLDS, true / np.maximum(objects, 1)[:, None], side="right")
            total += (np.diff(reached, axis=1, prepend=0) * best_from_here).sum(axis=1)
        return np.where(objects > 0, total / (len(IOU_THRESHOLDS) * len(RECALL_THRESHOLDS)), 0.0)


def match(targets: Sequence[Targets], detections: Sequence[Detections], num_classes: int) -> Matches:
    """Match detected boxes to targets, image by image.

    By falling score, a detection takes the free target with the highest IoU. A crowd is taken where no other target is,
    by any number of detections. The `MAX_DETS` detections with the highest scores count, of each class and image.

    Args:
        targets: one per image.
        detections: one per image.
        num_classes: labels are below.
    """
    image, place, label, score, matched, ignored = [], [], [], [], [], []
    objects = np.zeros((len(targets), num_classes), np.int64)
    for position, (target, detected) in enumerate(zip(targets, detections, strict=True)):
        boxes, labels, crowd = (np.asarray(part) for part in (target.boxes, target.labels, target.crowd))
        objects[position] = np.bincount(labels[~crowd], minlength=num_classes)
        for of_class in np.unique(detected.labels).tolist():
            mine = np.flatnonzero(detected.labels == of_class)
            mine = mine[np.argsort(-detected.scores[mine], kind="stable")][:MAX_DETS]
            there = np.flatnonzero(labels == of_class)
            there = there[np.argsort(crowd[there], kind="stable")]
            iou = _box_iou(detected.boxes[mine], boxes[there], crowd[there])
            taken, by_crowd = _match(iou, crowd[there])
            image.append(np.full(len(mine), position))
            place.append(mine)
            label.append(np.full(len(mine), of_class))
            score.append(detected.scores[mine])
            matched.append(taken & ~by_crowd)
            ignored.append(by_crowd)
    none = np.zeros((0, len(IOU_THRESHOLDS)), bool)
    return Matches(
        image=np.concatenate([np.zeros(0, np.int64), *image]).astype(np.int64),
        place=np.concatenate([np.zeros(0, np.int64), *place]).astype(np.int64),
        label=np.concatenate([np.zeros(0, np.int64), *label]).astype(np.int64),
        score=np.concatenate([np.zeros(0, np.float32), *score]).astype(np.float32),
        matched=np.concatenate([none, *matched]),
        ignored=np.concatenate([none, *ignored]),
        objects=objects,
    )


def _box_iou(detected: np.ndarray, target: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(M, G) intersection over union; with a crowd, intersection over the area of the detection."""
    detected, target = detected.astype(np.float64)[:, None], target.astype(np.float64)[None]
    sides = np.minimum(detected[..., 2:], target[..., 2:]) - np.maximum(detected[..., :2], target[..., :2])
    intersection = np.clip(sides, 0, None).prod(axis=-1)
    area_detected, area_target = ((box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (detected, target))
    return intersection / np.where(crowd, area_detected, area_detected + area_target - intersection)


def _match(iou: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, G) IoU, highest score first, crowds last -> (M, 10) whether a target is taken, and whether it is a crowd."""
    taken, by_crowd = (np.zeros((len(iou), len(IOU_THRESHOLDS)), bool) for _ in range(2))
    free = np.ones((len(IOU_THRESHOLDS), iou.shape[1]), bool)
    needed = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    places = np.arange(iou.shape[1])
    for number in np.flatnonzero((iou >= needed[0]).any(axis=1)).tolist():
        can = (iou[number] >= needed) & free  # (10, G)
        one = can & ~crowd
        can = np.where(one.any(axis=1, keepdims=True), one, can)
        # of equal IoU the last, as pycocotools takes it
        best = len(places) - 1 - np.where(can, iou[number], -1.0)[:, ::-1].argmax(axis=1)
        some = can.any(axis=1)
        taken[number], by_crowd[number] = some, some & crowd[best]
        free[some & ~crowd[best], best[some & ~crowd[best]]] = False
    return taken, by_crowd
