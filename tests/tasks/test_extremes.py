"""Odd sizes, no object, one, 500 and crowds: every head learns, is measured and predicts, and the figures are right."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glocal.data import IGNORE, load_detection, load_segmentation
from glocal.heads.detection import KINDS as DETECTORS
from glocal.heads.segmentation import KINDS as SEGMENTERS
from glocal.inference import list_inputs, predict_images
from glocal.metrics.segmentation import confusion_matrix
from glocal.models.io import ModelConfig, SavedModel, load_model
from glocal.tasks import (
    DetectionTask,
    SegmentationTask,
    evaluate,
)
from glocal.training import HeadConfig
from tests.tasks.extremes import SIZES, detection_folder, segmentation_folder
from tests.tasks.making import Asked, run

QUICK = ("faster_rcnn", "semantic_fpn")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = ("ant", "bee", "cat")  # by their ids


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("extremes")
    detection_folder(place / "coco")
    segmentation_folder(place / "maps")
    return place


def slow_but(names, quick=QUICK):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def images_of(place, folder):
    return list_inputs([str(place / folder)])


# Detection


def by_pycocotools(file, results, kind):
    """The twelve figures, and the mean of each category."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(file))
        coco.dataset.setdefault("info", {})
        evaluation = COCOeval(coco, coco.loadRes(results) if results else COCO(), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    each = [of[of > -1].mean() if (of > -1).any() else None for of in np.moveaxis(precision, 2, 0)]
    return [None if value < 0 else value for value in evaluation.stats], each


def same_figures(ours, theirs):
    stats, each = theirs
    found = [ours[name] for name in ("map", "map50", "map75", "small", "medium", "large", "recall")]
    expected = [*stats[:6], stats[8]]
    for name in (0, 1, 2, 6):
        expected[name] = expected[name] or 0.0  # where there is nothing to find
    assert found == pytest.approx(expected, abs=1e-6)
    assert ours["per_class"] == pytest.approx(each, abs=1e-6)


@pytest.mark.parametrize("kind", slow_but(DETECTORS))
def test_every_detector_learns_is_measured_and_predicts(place, tmp_path, kind):
    source = load_detection(str(place / "coco"), progress=False)
    assert source.skipped == ()
    results = run(
        "detect", tmp_path / "run", "epochs=2", "lr=1e-3", asked=Asked(DetectionTask, source, HeadConfig(kind))
    )
    assert all(np.isfinite(point["train_loss"]) for point in results["curve"])
    saved = load_model(tmp_path / "run")
    seen = []
    measured = evaluate(saved, source.val, take=seen.extend)
    assert measured["images"] == len(SIZES)
    assert measured["map"] == results["map"]
    entries = []
    for one in seen:
        for i, (x1, y1, x2, y2) in enumerate(one.detections.boxes.tolist()):
            entry = {"image_id": one.targets.image_id, "category_id": source.category_ids[one.detections.labels[i]]}
            entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(one.detections.scores[i])}
            if one.detections.masks is not None:
                entry["segmentation"] = {"size": list(one.targets.size), "counts": one.detections.masks[i]}
            entries.append(entry)
    truth = place / "coco/annotations/instances_val.json"
    boxes = [{key: value for key, value in one.items() if key != "segmentation"} for one in entries]
    same_figures(measured, by_pycocotools(truth, boxes, "bbox"))
    if "mask" in kind:
        masks = [{key: value for key, value in one.items() if key != "bbox"} for one in entries]
        same_figures(measured["mask"], by_pycocotools(truth, masks, "segm"))
    inputs = images_of(place, "coco/val")
    summary = predict_images(saved, inputs, tmp_path / "found", draw=True, threshold=0.0, draw_threshold=0.0, workers=0)
    assert (summary.total, summary.failed) == (len(SIZES), 0)
    for line in map(json.loads, (tmp_path / "found/predictions.jsonl").read_text().splitlines()):
        width, height = line["size"]
        for one in line["objects"]:
            x, y, w, h = one["bbox"]
            assert min(x, y, w, h) >= 0
            assert x + w <= width + 0.01
            assert y + h <= height + 0.01
        assert np.asarray(Image.open(tmp_path / "found" / line["drawn"])).shape == (height, width, 3)


class Planned(torch.nn.Module):
    """Finds what it was told, image after image."""

    def __init__(self, found):
        super().__init__()
        self.found = iter(found)

    def forward(self, images):
        return [next(self.found) for _ in images]


def planned(sample, rng, how):
    """What is found on an image: (boxes, labels, scores, masks)."""
    height, width = sample.image.shape[:2]
    keep = ~sample.crowd
    boxes, labels, masks = sample.boxes[keep], sample.labels[keep], sample.masks[keep]
    scores = np.linspace(1, 0.5, len(boxes))
    if how == "nothing":
        boxes, labels, masks, scores = (of[:0] for of in (boxes, labels, masks, scores))
    if how == "twice":
        boxes, labels, masks = (np.concatenate([of, of]) for of in (boxes, labels, masks))
        scores = np.concatenate([scores, 0.1 * scores])
    if how == "in crowds" and sample.crowd.any():  # findings inside a crowd do not count, of its class alone
        x1, y1 = sample.boxes[sample.crowd][0, :2].astype(int).tolist()
        inner = np.zeros((3, height, width), bool)
        for i, mask in enumerate(inner):
            mask[y1 : y1 + 8 + i, x1 : x1 + 9] = True
        own = int(sample.labels[sample.crowd][0])
        boxes = np.concatenate([boxes, [[x1, y1, x1 + 9, y1 + 8 + i] for i in range(3)]])
        labels = np.concatenate([labels, [own, own, 1 - own]])
        masks = np.concatenate([masks, inner])
        scores = np.concatenate([scores, [0.99, 0.97, 0.98]])
    if how == "more or less":
        shift = np.round(rng.normal(0, 1.2, boxes.shape))
        boxes = np.clip(boxes + shift, 0, [width, height, width, height])
        flat = (boxes[:, 2:] <= boxes[:, :2]).any(1)
        boxes[flat] = [0, 0, 1, 1]
        wrong = rng.random(len(labels)) < 0.2
        labels = np.where(wrong, rng.integers(0, 3, len(labels)), labels)
        masks = masks & (rng.random(masks.shape) < 0.8)
        scores = np.round(rng.random(len(boxes)), 1)  # so that many are equal
    order = np.argsort(-scores, kind="stable")
    return boxes[order], labels[order].astype(np.int64), scores[order], masks[order]


@pytest.mark.parametrize("how", ["nothing", "exactly", "twice", "in crowds", "more or less"])
def test_figures_are_those_of_pycocotools(place, how):
    source = load_detection(str(place / "coco"), progress=False)
    rng = np.random.default_rng(0)
    found, results = [], {"bbox": [], "segm": []}
    for sample in source.val:
        boxes, labels, scores, masks = planned(sample, rng, how)
        found.append({
            "boxes": torch.from_numpy(boxes).float(), "labels": torch.from_numpy(labels),
            "scores": torch.from_numpy(scores).float(), "masks": torch.from_numpy(masks),
        })  # fmt: skip
        for box, label, score, mask in zip(boxes, labels, found[-1]["scores"].tolist(), masks, strict=True):
            x1, y1, x2, y2 = box.tolist()
            one = {"image_id": sample.image_id, "category_id": source.category_ids[label], "score": score}
            results["bbox"].append({**one, "bbox": [x1, y1, x2 - x1, y2 - y1]})
            run_lengths = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            results["segm"].append({**one, "segmentation": run_lengths})
    of = ModelConfig("detection", "resnet_micro", NAMES, 64, MEAN, STD, head="mask_rcnn", preset="small")
    measured = evaluate(SavedModel(of, Planned(found), None), source.val)
    truth = place / "coco/annotations/instances_val.json"
    same_figures(measured, by_pycocotools(truth, results["bbox"], "bbox"))
    same_figures(measured["mask"], by_pycocotools(truth, results["segm"], "segm"))
    ants, bees, cats = measured["per_class"]
    assert cats is None, "no cat is anywhere"
    if how == "nothing":
        assert (ants, bees, measured["recall"]) == (0, 0, 0)
    if how == "exactly":  # of 500 objects 100 count, so that not all are found; all that is found is right
        assert measured["recall"] < 0.5
        assert measured["map"] == measured["map50"]
    if how == "more or less":
        assert 0.001 < measured["map"] < measured["map50"] < 0.5


def test_without_the_500_all_is_found(place):
    """Crowds are not missed, and neither is what is not there."""
    source = load_detection(str(place / "coco"), progress=False)
    few = source.val.subset([i for i, path in enumerate(source.val.paths) if "many" not in path])
    of = ModelConfig("detection", "resnet_micro", NAMES, 64, MEAN, STD, head="mask_rcnn", preset="small")
    for how, expected in (("exactly", [1, 1]), ("twice", [1, 1]), ("in crowds", None)):
        found = []
        for sample in few:
            boxes, labels, scores, masks = planned(sample, np.random.default_rng(0), how)
            found.append({
                "boxes": torch.from_numpy(boxes).float(), "labels": torch.from_numpy(labels),
                "scores": torch.from_numpy(scores).float(), "masks": torch.from_numpy(masks),
            })  # fmt: skip
        measured = evaluate(SavedModel(of, Planned(found), None), few)
        if expected:
            assert measured["per_class"][:2] == pytest.approx(expected)
            assert measured["mask"]["per_class"][:2] == pytest.approx(expected)
        else:  # 0.98 in the crowd of bees is called an ant, and 0.98 in that of ants a bee: each before what is right
            assert 0 < min(measured["per_class"][:2]) < 1


# Segmentation


@pytest.mark.parametrize("kind", slow_but(SEGMENTERS))
def test_every_segmenter_learns_is_measured_and_predicts(place, tmp_path, kind):
    pytest.importorskip("segmentation_models_pytorch")
    source = load_segmentation(str(place / "maps"), progress=False)
    assert source.skipped == ()
    options = {"semantic_fpn": {"dim": 32, "head_dim": 32}, "upernet": {"dim": 32}}.get(kind, {})
    size = 128 if kind == "smp_pan" else 64
    results = run(
        "segment", tmp_path / "run", "epochs=2", f"image_size={size}",
        asked=Asked(SegmentationTask, source, HeadConfig(kind, options=options)),
    )  # fmt: skip
    assert all(np.isfinite(point["train_loss"]) for point in results["curve"])
    saved = load_model(tmp_path / "run")
    measured = evaluate(saved, source.val)
    assert (measured["images"], measured["miou"]) == (len(SIZES), results["miou"])
    summary = predict_images(saved, images_of(place, "maps/images/val"), tmp_path / "out", draw=True, workers=0)
    assert (summary.total, summary.failed) == (len(SIZES), 0)
    counts = np.zeros((3, 3), int)
    for line in map(json.loads, (tmp_path / "out/predictions.jsonl").read_text().splitlines()):
        predicted = np.asarray(Image.open(tmp_path / "out" / line["mask"]))
        truth = np.asarray(Image.open(line["path"].replace("images", "masks")))
        assert predicted.shape == truth.shape
        counts += confusion_matrix(truth, predicted, 3)
    assert counts.tolist() == measured["confusion"]
    both = np.diag(counts)
    assert measured["miou"] == pytest.approx(np.mean(both / (counts.sum(0) + counts.sum(1) - both)))


def test_a_map_of_nothing_labelled_changes_no_figure(place):
    source = load_segmentation(str(place / "maps"), progress=False)

    class Sky(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(torch.zeros_like(x[:, 0]).long(), 3).permute(0, 3, 1, 2).float()

    of = ModelConfig("segmentation", "resnet_micro", ("sky", "road", "car"), 64, MEAN, STD, head="upernet")
    everything = evaluate(SavedModel(of, Sky(), None), source.val)
    labelled = source.val.subset([i for i, path in enumerate(source.val.paths) if "none" not in path])
    assert evaluate(SavedModel(of, Sky(), None), labelled)["confusion"] == everything["confusion"]
    maps = [sample.label_map[sample.label_map != IGNORE] for sample in source.val]
    values = np.concatenate(maps)
    assert everything["per_class"] == pytest.approx([(values == 0).mean(), 0, 0])
    assert everything["pixel_accuracy"] == pytest.approx((values == 0).mean())
