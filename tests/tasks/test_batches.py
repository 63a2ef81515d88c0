"""What is read of a batch: the same whatever the batch, crowds and bad images as they should be."""

import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from glocal.data import IGNORE, DetectionSet, SegmentationSet
from glocal.data.label_maps import SegmentationSample
from glocal.data.pasted import items_on_photos, label_maps_of_items
from glocal.errors import GlocalError
from glocal.metrics.segmentation import Confusion, confusion_matrix
from glocal.tasks import SegmentationTask
from glocal.tasks.detection import DetectionBatches
from glocal.tasks.segmentation import SegmentationBatches, logits_at
from glocal.training import TrainConfig, training_loader
from glocal.training.loader import BatchIndices, evaluation_loader
from tests.tasks.making import Fixed, head_task, objects

LIGHT = TrainConfig.of(augment="light", image_size=64)


def detection_set(store, number=4):
    return DetectionSet("train", ("a", "b", "c"), tuple(f"{i}.png" for i in range(number)), store, np.arange(number))


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_sample_does_not_depend_on_its_batch(task):
    if task == "detect":
        data = DetectionBatches(items_on_photos(64, train=6, val=1).train, masks=True, recipe=LIGHT, seed=3)
    else:
        data = SegmentationBatches(label_maps_of_items(64, train=6, val=1).train, 64, recipe=LIGHT, seed=3)
    together = data[BatchIndices(2, np.arange(6))]
    for place in range(6):
        alone = data[BatchIndices(2, np.array([place]))]
        assert same(alone.inputs[0], together.inputs[place])
        assert same(alone.labels[0], together.labels[place])
    again = pickle.loads(pickle.dumps(data))[BatchIndices(2, np.arange(6))]
    assert same(again.inputs, together.inputs)
    assert not same(data[BatchIndices(3, np.arange(6))].inputs, together.inputs), "another epoch, other draws"
    assert not same(data[BatchIndices(2, np.arange(6, 12))].inputs, together.inputs), "a repeat is augmented anew"


def test_workers_read_the_same():
    data = DetectionBatches(items_on_photos(64, train=6, val=1).train, masks=True, recipe=LIGHT)
    here, there = (list(islice(training_loader(data, 3, 0, workers), 3)) for workers in (0, 1))
    for one, other in zip(here, there, strict=True):
        assert same(one.inputs, other.inputs)
        assert same(one.labels, other.labels)


def test_crowds_are_not_learned_but_measured():
    sample = objects(crowd=(1,))
    images = detection_set(Fixed(sample))
    learned = DetectionBatches(images, masks=True, recipe=TrainConfig.of(flip=False))[
        BatchIndices(0, np.arange(1))
    ].labels[0]
    assert learned["labels"].tolist() == [0, 2]
    assert learned["boxes"].tolist() == sample.boxes[[0, 2]].tolist()
    assert np.array_equal(learned["masks"].numpy(), sample.masks[[0, 2]])
    truth = DetectionBatches(images, masks=True)[BatchIndices(0, np.arange(1))].labels[0]
    assert truth.crowd.tolist() == [False, True, False]
    assert len(truth.masks) == 3
    moved = DetectionBatches(images, masks=False, labels=[5, 3, 1])[BatchIndices(0, np.arange(1))].labels[0]
    assert moved.labels.tolist() == [5, 3, 1]


def test_an_image_without_objects():
    images = detection_set(Fixed(objects(number=1, crowd=(0,))))
    batch = DetectionBatches(images, masks=True, recipe=LIGHT)[BatchIndices(0, np.arange(2))]
    assert batch.labels[0]["boxes"].shape == (0, 4)
    assert batch.labels[0]["masks"].shape == (0, 9, 12)


def test_images_that_went_bad_are_reported():
    images = detection_set(Fixed(objects(), bad=(1, 2)))
    batch = DetectionBatches(images, masks=False, recipe=LIGHT)[BatchIndices(0, np.arange(4))]
    assert len(batch.inputs) == len(batch.labels) == len(batch.seeds) == 2
    assert [(bad.path, bad.reason) for bad in batch.skipped] == [
        ("1.png", "became unreadable: empty file"), ("2.png", "became unreadable: empty file"),
    ]  # fmt: skip
    label_map = SegmentationSample(np.zeros((40, 50, 3), np.uint8), np.zeros((40, 50), np.int64), "")
    maps = SegmentationSet("train", ("a", "b"), ("0", "1"), Fixed(label_map, bad=(0, 1)), np.arange(2))
    batch = SegmentationBatches(maps, 32, recipe=LIGHT)[BatchIndices(0, np.arange(2))]
    assert (tuple(batch.inputs.shape), len(batch.labels), len(batch.skipped)) == ((0, 3, 32, 32), 0, 2)


def test_a_set_without_a_readable_image_is_named():
    label_map = SegmentationSample(np.zeros((40, 50, 3), np.uint8), np.zeros((40, 50), np.int64), "")
    maps = SegmentationSet("val", ("0", "1"), ("0", "1"), Fixed(label_map, bad=(0, 1)), np.arange(2))
    task = head_task(SegmentationTask, 2)
    batches = evaluation_loader(task.eval_set(maps), 0)
    with pytest.raises(GlocalError, match=r"images in ade20k, got 2 unreadable, such as 0: .*; repair the files"):
        task.evaluate(nn.Identity(), batches, 2, name="ade20k", on_error="skip")


def test_whole_images_are_tested():
    rng = np.random.default_rng(0)
    sample = SegmentationSample(rng.integers(0, 255, (40, 60, 3), np.uint8), rng.integers(0, 2, (40, 60)), "")
    sample.label_map[0] = IGNORE
    maps = SegmentationSet("val", ("a", "b"), ("0",), Fixed(sample), np.arange(1))
    data = SegmentationBatches(maps, 20, labels=[2, 1])
    (batch,) = evaluation_loader(data, 0)
    assert batch.inputs[0].shape == (3, 20, 30)
    assert batch.labels[0].shape == (40, 60)
    assert set(batch.labels[0].unique().tolist()) == {1, 2, IGNORE}
    assert (batch.labels[0].numpy()[1:] == np.array([2, 1])[sample.label_map[1:]]).all()


def test_the_overlap_of_classes_by_a_loop():
    rng = np.random.default_rng(0)
    K, truths, founds = 6, [], []
    for _ in range(20):
        truths.append(rng.integers(0, K - 1, (13, 17)))
        founds.append(np.where(rng.random((13, 17)) < 0.6, truths[-1], rng.integers(0, K - 1, (13, 17))))
        truths[-1][rng.random((13, 17)) < 0.1] = IGNORE
    task = head_task(SegmentationTask, K)
    parts = [Confusion(confusion_matrix(t, f, K), 1.0, 1) for t, f in zip(truths, founds, strict=True)]
    joined = task.join(parts)
    overlaps, right, labelled = [], 0, 0
    for label in range(K):
        both = either = 0
        for truth, found in zip(truths, founds, strict=True):
            for is_truth, is_found in zip(truth.ravel(), found.ravel(), strict=True):
                if is_truth != IGNORE:
                    both += is_truth == label and is_found == label
                    either += is_truth == label or is_found == label
                    right += is_truth == is_found == label
                    labelled += is_truth == label
        overlaps.append(both / either if either else None)
    assert overlaps[K - 1] is None, "a class that is nowhere does not count"
    assert joined.to_dict()["per_class"] == pytest.approx(overlaps)
    assert joined.miou == pytest.approx(np.mean(overlaps[: K - 1]))
    assert joined.pixel_accuracy == pytest.approx(right / labelled)
    assert (len(joined), joined.loss) == (20, 20.0)
    assert task.score(joined).value == joined.miou


@pytest.mark.parametrize("size", [(50, 41), (7, 5), (90, 3), (1, 64), (12, 64)])
@pytest.mark.parametrize("most", [1, 4 * 41 * 7, 4 * 64])
def test_strips_are_the_whole(monkeypatch, size, most):
    logits = torch.randn(1, 4, 12, 16)
    asked = (lambda _: logits, torch.nn.Identity(), torch.zeros(3, 12, 16), size)
    whole = list(logits_at(*asked))
    monkeypatch.setattr("glocal.tasks.segmentation.MOST_LOGITS", most)
    strips = list(logits_at(*asked))
    rows = [row for part, _ in strips for row in range(size[0])[part]]
    assert rows == list(range(size[0]))
    assert torch.allclose(torch.cat([part for _, part in strips], dim=2), whole[0][1], atol=2e-5)
    assert len(strips) > 1 or size[0] == 1 or 4 * size[0] * size[1] <= most


def test_an_image_in_strips_is_measured_as_a_whole(monkeypatch):
    sample = label_maps_of_items(64, train=1, val=2).val
    data = SegmentationBatches(sample, 48)
    batch = data[BatchIndices(0, np.arange(2))]
    model, task = torch.nn.Conv2d(3, 11, 5, stride=4), head_task(SegmentationTask, 11)
    task.prepare = torch.nn.Identity()
    floats = batch._replace(inputs=[image.float() / 255 for image in batch.inputs])
    with torch.no_grad():
        whole = task.evaluate_batch(model, floats, torch.device("cpu"))
        monkeypatch.setattr("glocal.tasks.segmentation.MOST_LOGITS", 11 * 64 * 10)
        strips = task.evaluate_batch(model, floats, torch.device("cpu"))
    assert np.array_equal(strips.counts, whole.counts)
    assert strips.loss == pytest.approx(whole.loss)


def test_nothing_labelled_costs_nothing():
    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            return torch.zeros(x.shape[0], 3, *x.shape[-2:]) * self.weight

    sample = SegmentationSample(np.zeros((8, 8, 3), np.uint8), np.full((8, 8), IGNORE), "")
    maps = SegmentationSet("train", ("a", "b", "c"), ("0", "1"), Fixed(sample), np.arange(2))
    task, model = head_task(SegmentationTask, 3), Logits()
    task.prepare = torch.nn.Identity()
    batch = SegmentationBatches(maps, 8, recipe=LIGHT.replace(augment="none"))[BatchIndices(0, np.arange(2))]
    loss = task.loss(model, batch._replace(inputs=batch.inputs.float()))
    loss.backward()
    assert (loss.item(), model.weight.grad.item()) == (0, 0)
