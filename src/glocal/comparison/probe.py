"""`--mode probe`: a linear classifier on the features of a frozen backbone, fitted until it has converged."""

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glocal.comparison.features import Features, FeatureStore, HeadInputs
from glocal.comparison.logistic import Probe, fit_probe
from glocal.errors import GlocalError
from glocal.metrics.classification import Outcomes
from glocal.tasks import ClassificationTask
from glocal.training import CurvePoint, TrainingProgress, predict
from glocal.training.budget import FLOP_PER_MAC, FORWARD_AND_BACKWARD
from glocal.training.train_state import TrainState
from glocal.training.trainer import TrainResult

OF_FEATURES = 0.9
"""Of the progress bar."""


class ProbeTask(ClassificationTask):
    """A linear classifier on the features of a frozen backbone.

    Args:
        args: those of `ClassificationTask`.
        store: of the features.
        name: of the model, safe as a file name.
        rows: indices of the used training images of ``pixels``.
        options: those of `ClassificationTask`.
    """

    def __init__(self, *args: Any, store: FeatureStore, name: str, rows: np.ndarray, **options: Any) -> None:
        super().__init__(*args, **options)
        self.store, self.file_name, self.rows = store, name, rows

    def fit(self, progress: Callable[[TrainingProgress], None] = lambda _: None) -> TrainResult:
        """Compute or read the features, fit the classifier, and put it into the model.

        Raises:
            GlocalError: for a model that is more than its features and a linear classifier.
        """
        assert self.pixels is not None
        model, images, device = self.create_model(), self.pixels, self.config.hardware.device
        backbone = HeadInputs(model)
        macs = self.count_macs(model)
        start = time.perf_counter()

        def report(done: int, total: int) -> None:
            seconds = time.perf_counter() - start
            left = seconds * (total - done) / max(1, done)
            share = OF_FEATURES * done / total
            progress(TrainingProgress(share, 0.0, 0, math.nan, done / max(seconds, 1e-9), left, None))

        features = self.store.features(self.file_name, backbone, self.prepare, images, device, report)
        start = time.perf_counter()
        labels, num_classes = self.data.train.labels, len(self.classes)
        probe = fit_probe(features.train[self.rows].to(device), labels, num_classes)
        seconds = time.perf_counter() - start + features.seconds * len(labels) / (len(images[0]) + len(images[1]))
        self._put(probe, backbone, features)
        outcomes = Outcomes.of(probe(features.val).float().numpy(), self.data.val.labels, keep=self.keep_outputs)
        score = self.score(outcomes)
        point = CurvePoint(1.0, probe.steps, seconds, probe.loss, score.loss, score.value)
        state = TrainState(
            step=probe.steps, images=len(labels), trained=seconds, wall=seconds,
            best=(probe.steps, score.value), curve=[point],
        )  # fmt: skip
        fitting = FORWARD_AND_BACKWARD * FLOP_PER_MAC * probe.weight.numel() * probe.passes
        flop = float(len(labels) * (FLOP_PER_MAC * macs + fitting))
        speed = len(labels) / seconds
        progress(TrainingProgress(1.0, 1.0, probe.steps, probe.loss, speed, 0.0, None))
        return TrainResult(model.cpu().eval(), outcomes, state, 1.0, flop, speed)

    def _put(self, probe: Probe, backbone: HeadInputs, features: Features) -> None:
        """Set the heads of the model, and check that its logits are those of the probe."""
        assert self.pixels is not None
        first = self.pixels[1].subset(np.arange(min(2, len(self.pixels[1]))))
        expected = probe(features.val[: len(first)]).float()
        model: nn.Module = backbone.model
        for share in backbone.shares:
            backbone.set_heads(probe.weight, probe.bias, share)
            logits = predict(model, self.prepare, first, self.config.hardware.device)
            if _agree(logits, expected):
                return
        raise _not_linear(self.config.model.name)


@torch.no_grad()
def check_probe(model: nn.Module, name: str, image_size: int) -> None:
    """Check that a model can be probed, in up to three passes of two images: before features of others are computed.

    Args:
        model: a timm classifier on the CPU, with any weights; left unchanged.
        name: of the model.
        image_size: side in pixels.

    Raises:
        GlocalError: if a head is not linear or has no bias, or the model is more than its features and a linear
            classifier.
    """
    generator = torch.Generator().manual_seed(0)
    copied = copy.deepcopy(model).eval()
    try:
        backbone = HeadInputs(copied)
    except GlocalError as error:
        raise GlocalError(f"{name}: {error}") from None
    images = torch.randn(2, 3, image_size, image_size, generator=generator)
    try:
        features = backbone(images)
    except KeyError:  # a head that the model does not use
        raise _not_linear(name) from None
    num_classes = len(backbone.heads[0].bias)
    weight = torch.randn(num_classes, features.shape[1], generator=generator) / features.shape[1] ** 0.5
    bias = torch.randn(num_classes, generator=generator)
    expected = torch.addmm(bias, features, weight.T)
    for share in backbone.shares:
        backbone.set_heads(weight, bias, share)
        # random weights may overflow, which says nothing about the heads
        if not expected.isfinite().all() or _agree(copied(images), expected):
            return
    raise _not_linear(name)


def _agree(logits: Tensor, expected: Tensor) -> bool:
    return torch.allclose(logits, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def _not_linear(name: str) -> GlocalError:
    return GlocalError(f"probe: {name} is more than its features and a linear classifier; use --mode finetune")
