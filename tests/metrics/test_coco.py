"""Average precision is COCO's."""

import contextlib
import io
import sys

import numpy as np
import pytest
import torch

from glocal.data.rle import counts_from_mask, encode_counts
from glocal.errors import GlocalError
from glocal.metrics.coco import Detections, Targets, average_precision, encode_masks
from glocal.tasks import DetectionTask
from glocal.tasks.detection import Outcome
from tests.tasks.making import head_task

K = 5


def blob(rng, height, width):
    mask = np.zeros((height, width), bool)
    w, h = rng.integers(3, width // 2), rng.integers(3, height // 2)
    x, y = rng.integers(0, width - w), rng.integers(0, height - h)
    mask[y : y + h, x : x + w] = rng.random((h, w)) < 0.8
    return mask, (x, y, x + w, y + h)


def image(rng):
    """An image with objects, and findings that hit some of them, more or less."""
    height, width = int(rng.integers(30, 160)), int(rng.integers(30, 160))
    number = int(rng.integers(0, 7))
    drawn = [blob(rng, height, width) for _ in range(number)]
    masks = np.array([mask for mask, _ in drawn]).reshape(-1, height, width)
    boxes = np.array([box for _, box in drawn], np.float32).reshape(-1, 4)
    labels = rng.integers(0, K - 1, number)  # the last class has no object
    target = Targets(
        size=(height, width),
        boxes=boxes,
        labels=labels,
        crowd=rng.random(number) < 0.1,
        area=masks.sum((1, 2)).astype(np.float32),
        masks=encode_masks(masks),
    )
    found_masks, found_boxes, found_labels = [], [], []
    for _ in range(int(rng.integers(0, 12))):
        if number and rng.random() < 0.7:
            i = int(rng.integers(number))
            shift = rng.integers(-1, 2, 2)
            found_masks.append(np.roll(masks[i], shift, (0, 1)))
            found_boxes.append(np.clip(boxes[i] + rng.normal(0, 1.5, 4), 0, 159))
            found_boxes[-1][2:] = np.maximum(found_boxes[-1][2:], found_boxes[-1][:2] + 1)
            found_labels.append(labels[i] if rng.random() < 0.8 else rng.integers(K))
        else:
            mask, box = blob(rng, height, width)
            found_masks.append(mask)
            found_boxes.append(np.array(box))
            found_labels.append(rng.integers(K))
    scores = np.sort(rng.random(len(found_masks)).astype(np.float32))[::-1]
    detected = Detections(
        np.array(found_boxes, np.float32).reshape(-1, 4),
        scores,
        np.array(found_labels, np.int64),
        encode_masks(np.array(found_masks).reshape(-1, height, width)),
    )
    return target, detected


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [image(rng) for _ in range(200)]


def by_pycocotools(images, kind):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for image_id, (target, detected) in enumerate(images, 1):
        for i, (x1, y1, x2, y2) in enumerate(target.boxes.tolist()):
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": int(target.labels[i]),
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": float(target.area[i]), "iscrowd": int(target.crowd[i]),
                "segmentation": {"size": list(target.size), "counts": target.masks[i]},
            })  # fmt: skip
        for i, (x1, y1, x2, y2) in enumerate(detected.boxes.tolist()):
            one = {"image_id": image_id, "category_id": int(detected.labels[i]), "score": float(detected.scores[i])}
            mask = {"segmentation": {"size": list(target.size), "counts": detected.masks[i]}}
            results.append(one | ({"bbox": [x1, y1, x2 - x1, y2 - y1]} if kind == "bbox" else mask))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i, "height": t.size[0], "width": t.size[1]} for i, (t, _) in enumerate(images, 1)],
            "categories": [{"id": label, "name": str(label)} for label in range(K)],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize(("kind", "masks"), [("bbox", False), ("segm", True)])
def test_as_pycocotools_has_it(images, kind, masks):
    expected = by_pycocotools(images, kind)
    got = average_precision([t for t, _ in images], [f for _, f in images], K, masks=masks)
    ours = (got.map, got.map50, got.map75, got.small, got.medium, got.large)
    theirs = [None if value < 0 else value for value in expected.stats[:6]]
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert got.recall == pytest.approx(expected.stats[8], abs=1e-6)
    assert 0.05 < got.map < 0.9, "a number that could be missed"
    precision = expected.eval["precision"][:, :, :, 0, -1]
    for label in range(K - 1):
        assert got.per_class[label] == pytest.approx(precision[:, :, label].mean(), abs=1e-6)
    assert got.per_class[K - 1] is None


def test_as_torchmetrics_has_it(images):
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(backend="faster_coco_eval")
    for target, detected in images:
        metric.update(
            [{"boxes": torch.from_numpy(detected.boxes), "scores": torch.from_numpy(detected.scores.copy()),
              "labels": torch.from_numpy(detected.labels)}],
            [{"boxes": torch.from_numpy(target.boxes), "labels": torch.from_numpy(target.labels),
              "iscrowd": torch.from_numpy(target.crowd.astype(np.int64)), "area": torch.from_numpy(target.area)}],
        )  # fmt: skip
    expected = metric.compute()
    got = average_precision([t for t, _ in images], [f for _, f in images], K, masks=False)
    assert got.map == pytest.approx(float(expected["map"]), abs=1e-6)
    assert got.map75 == pytest.approx(float(expected["map_75"]), abs=1e-6)


def test_masks_are_encoded_as_the_data_has_them():
    masks = np.random.default_rng(0).random((4, 13, 17)) < 0.4
    assert encode_masks(masks) == [encode_counts(counts_from_mask(mask)) for mask in masks]
    assert encode_masks(masks[:0]) == []


def test_nothing_found_and_nothing_to_find():
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), [])
    something = Targets(
        (9, 9), np.array([[1, 1, 4, 4]], np.float32), np.zeros(1, np.int64), np.zeros(1, bool), np.full(1, 9.0),
        encode_masks(np.ones((1, 9, 9), bool)),
    )  # fmt: skip
    for masks in (False, True):
        assert average_precision([something], [none], 2, masks=masks).map == 0
        assert average_precision([something], [none], 2, masks=masks).per_class == (0.0, None)
    nothing = something._replace(
        boxes=none.boxes, labels=none.labels, crowd=np.zeros(0, bool), area=np.zeros(0), masks=[]
    )
    assert average_precision([nothing], [none], 2, masks=False).map == 0


def test_the_objective_scores_what_it_joined(images):
    task = head_task(DetectionTask, K)
    parts = [[Outcome(*one) for one in images[start : start + 7]] for start in range(0, 200, 7)]
    joined = task.join(parts)
    assert len(joined) == 200
    score = task.score(joined)
    assert tuple(score.columns) == task.columns
    assert score.value == score.columns["val_map"]
    assert score.loss is None
    assert (
        score.columns["val_mask_map"]
        == average_precision([t for t, _ in images], [f for _, f in images], K, masks=True).map
    )


def test_what_scores_is_asked_for_before_anything_is_trained(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(GlocalError, match="faster-coco-eval is not installed; pip install"):
        head_task(DetectionTask, K)
