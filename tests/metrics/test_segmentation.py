"""Mean IoU is torchmetrics'."""

import numpy as np
import pytest
import torch
from torchmetrics.segmentation import MeanIoU

from glocal.data import IGNORE
from glocal.metrics.segmentation import Confusion, class_pixels, confusion_matrix, mean_iou


def test_mean_iou_of_a_draw_is_torchmetrics_on_its_images():
    rng = np.random.default_rng(0)
    num_images, num_classes = 6, 4
    labels = rng.integers(0, 3, (num_images, 9, 11))  # the last class is predicted alone
    predicted = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, num_classes, labels.shape))
    labels[rng.random(labels.shape) < 0.1] = IGNORE
    counts = [confusion_matrix(a, b, num_classes) for a, b in zip(labels, predicted, strict=True)]
    pixels = np.stack([class_pixels(matrix) for matrix in counts]).astype(float)
    weights = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=8)
    for row, iou in zip(weights, mean_iou(np.tensordot(weights.astype(float), pixels, 1)), strict=True):
        drawn = np.repeat(np.arange(num_images), row)
        there = labels[drawn] != IGNORE
        both = torch.from_numpy(predicted[drawn][there])[None], torch.from_numpy(labels[drawn][there])[None]
        metric = MeanIoU(num_classes, per_class=True, input_format="index")
        metric.update(*both)
        of_class = metric.compute()
        seen = torch.bincount(torch.cat([both[0].ravel(), both[1].ravel()]), minlength=num_classes) > 0
        assert iou == pytest.approx(float(of_class[seen].mean()), abs=1e-6)


def test_without_pixels_it_is_0_and_an_absent_class_has_none():
    nothing = Confusion(np.zeros((3, 3), np.int64), 0.0, 0)
    assert (nothing.miou, nothing.pixel_accuracy, nothing.mean_loss) == (0, 0, 0)
    assert np.isnan(nothing.iou).all()
    one = confusion_matrix(np.array([[0, 0, 1, IGNORE]]), np.array([[0, 1, 1, 2]]), 3)
    assert class_pixels(one).tolist() == [[1, 1, 0], [2, 1, 0], [1, 2, 0]]
    assert Confusion(one, 0.0, 1).to_dict()["per_class"] == [0.5, 0.5, None]
    assert Confusion(one, 0.0, 1).miou == 0.5
