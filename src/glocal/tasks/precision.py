"""Average precision as COCO computes it (Lin et al. 2014, https://cocodataset.org/#detection-eval).

By faster-coco-eval, equal to pycocotools, and fed as torchmetrics' MeanAveragePrecision feeds it, but for masks: they
stay run lengths from the first to the last, where torchmetrics wants them drawn.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from glocal.errors import GlocalError

MOST_FOUND = 100
"""Objects of an image that count, the surest first."""


class Truth(NamedTuple):
    """What is on an image.

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


class Found(NamedTuple):
    """What a detector found on an image, the surest first.

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
        map: mean over classes and overlaps of 0.5, 0.55, ... 0.95; 0 where there is nothing to find.
        map50: at an overlap of 0.5.
        map75: at 0.75.
        small: of objects below 32 x 32 pixels; None where there are none.
        medium: of those below 96 x 96.
        large: of the others.
        recall: mean over overlaps and classes, of up to 100 objects an image.
        per_class: mean over overlaps; None for a class without objects.
    """

    map: float
    map50: float
    map75: float
    small: float | None
    medium: float | None
    large: float | None
    recall: float
    per_class: tuple[float | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "per_class": list(self.per_class)}


def encode_masks(masks: np.ndarray) -> list[str]:
    """(N, H, W) bool -> N compressed run lengths."""
    encode = coco_library().mask.encode
    if not len(masks):
        return []
    found = encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [_text(one["counts"]) for one in found]


def average_precision(truths: Sequence[Truth], founds: Sequence[Found], num_classes: int, *, masks: bool) -> Precision:
    """Average precision over images.

    Args:
        truths: what is on each image.
        founds: what was found on it.
        num_classes: labels are below.
        masks: overlaps are those of masks, not of boxes.
    """
    library = coco_library()
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id, (truth, found) in enumerate(zip(truths, founds, strict=True), 1):
        for i, (box, label) in enumerate(zip(truth.boxes.tolist(), truth.labels.tolist(), strict=True)):
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": label,
                "bbox": _with_sides(box),
                "area": float(truth.area[i]),
                "iscrowd": int(truth.crowd[i]),
            }
            annotations.append(annotation | _segmentation(truth.masks, i, truth.size, masks))
        scores, labels = found.scores.tolist(), found.labels.tolist()
        for i, box in enumerate(found.boxes.tolist()):
            result: dict[str, Any] = {"image_id": image_id, "category_id": labels[i], "score": scores[i]}
            results.append(result | (_segmentation(found.masks, i, truth.size, masks) or {"bbox": _with_sides(box)}))
    truth_set = library.COCO()
    truth_set.dataset = {
        "images": [{"id": i, "height": t.size[0], "width": t.size[1]} for i, t in enumerate(truths, 1)],
        "categories": [{"id": label, "name": str(label)} for label in range(num_classes)],
        "annotations": annotations,
    }
    truth_set.createIndex()
    evaluation = library.COCOeval_faster(truth_set, truth_set.loadRes(results), iouType="segm" if masks else "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    # (10 overlaps, 101 recalls, K, 4 areas, 3 limits); -1 where there is nothing to find
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


def _with_sides(box: list[float]) -> list[float]:
    """x1 y1 x2 y2 -> x y w h."""
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _mean(values: np.ndarray) -> float | None:
    there = values[values > -1]
    return float(there.mean()) if there.size else None


def _text(counts: str | bytes) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts
