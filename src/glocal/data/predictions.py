"""Write predictions in standard formats: COCO results, and label maps as palette PNGs."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from glocal.data.rle import counts_from_mask, encode_counts
from glocal.errors import GlocalError
from glocal.files import atomic_write_bytes, atomic_write_text


@dataclass(frozen=True, eq=False)
class ImageDetections:
    """Predicted objects of an image.

    Attributes:
        image_id: of `DetectionSample`.
        boxes: (N, 4), x1 y1 x2 y2 in pixels of the image.
        scores: (N,), higher is more confident.
        labels: (N,) integers, 0..K-1.
        masks: (N, H, W) bool, or None.
    """

    image_id: int | str
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None


def write_coco_results(path: str | Path, predictions: Iterable[ImageDetections], category_ids: Sequence[int]) -> None:
    """Write predictions as COCO results JSON (https://cocodataset.org/#format-results), one object per line.

    Args:
        path: of the file.
        predictions: one per image; those without objects write nothing.
        category_ids: the data's id of each class (`DetectionSource.category_ids`).

    Raises:
        GlocalError: if shapes do not match, a number is not finite, or a label has no category.
    """
    write_entries(path, (entry for prediction in predictions for entry in coco_results(prediction, category_ids)))


def write_entries(path: str | Path, entries: Iterable[Mapping[str, object]]) -> None:
    """COCO's JSON of results, an object a line."""
    atomic_write_text(path, "[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n")


def coco_results(prediction: ImageDetections, category_ids: Sequence[int]) -> list[dict[str, object]]:
    """The entries of one image; arguments and errors as of `write_coco_results`."""
    boxes, scores = (np.asarray(values, dtype=np.float64) for values in (prediction.boxes, prediction.scores))
    labels, masks = np.asarray(prediction.labels), prediction.masks
    number = len(scores)
    shapes = boxes.shape, scores.shape, labels.shape, () if masks is None else masks.shape[:1]
    if shapes != ((number, 4), (number,), (number,), () if masks is None else (number,)):
        got = f"{boxes.shape}, {scores.shape}, {labels.shape}" + (f", {masks.shape}" if masks is not None else "")
        raise GlocalError(
            f"predictions: expected boxes (N, 4), scores (N,), labels (N,) and masks (N, H, W), got {got}"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise GlocalError(f"predictions: expected finite boxes and scores for image {prediction.image_id}, got others")
    if number and not 0 <= labels.min() <= labels.max() < len(category_ids):
        got = f"{labels.min()} to {labels.max()}"
        raise GlocalError(f"predictions: expected labels 0 to {len(category_ids) - 1}, got {got}")
    entries: list[dict[str, object]] = []
    for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        entry: dict[str, object] = {
            "image_id": prediction.image_id,
            "category_id": int(category_ids[labels[number]]),
            "bbox": [round(x1, 3), round(y1, 3), round(x2 - x1, 3), round(y2 - y1, 3)],
            "score": float(scores[number]),
        }
        if masks is not None:
            height, width = masks.shape[1:]
            counts = encode_counts(counts_from_mask(masks[number]))
            entry["segmentation"] = {"size": [height, width], "counts": counts}
        entries.append(entry)
    return entries


def write_label_map(path: str | Path, label_map: np.ndarray, palette: np.ndarray | None = None) -> None:
    """Write a label map as a palette PNG; the inverse of `open_label_map`.

    Args:
        path: of the file.
        label_map: (H, W) integers 0..255.
        palette: (C, 3) uint8, the colour of each class; Pascal VOC's by default.

    Raises:
        GlocalError: for another shape or other values.
    """
    label_map = np.asarray(label_map)
    if label_map.ndim != 2 or label_map.dtype.kind not in "iub" or not label_map.size:
        raise GlocalError(f"label map: expected (H, W) integers, got {label_map.dtype} of shape {label_map.shape}")
    if label_map.min() < 0 or label_map.max() > 255:
        raise GlocalError(f"label map: expected 0 to 255, got {label_map.min()} to {label_map.max()}")
    image = Image.fromarray(label_map.astype(np.uint8))
    image.putpalette((voc_palette() if palette is None else np.asarray(palette, dtype=np.uint8)).tobytes())
    atomic_write_bytes(path, png(image))


def png(image: Image.Image) -> bytes:
    """The file of an image."""
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def voc_palette() -> np.ndarray:
    """Pascal VOC's colours, (256, 3) uint8: a class's bits, three at a time, become the high bits of R, G and B."""
    classes = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= (((classes >> 3 * place + channel) & 1) << 7 - place).astype(np.uint8)
    return colours
