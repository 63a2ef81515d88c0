"""Backbones compared under one head: what detectors and segmenters have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from glocal.bench import peak_training_memory
from glocal.comparison.examples import choose
from glocal.comparison.measure import Examined
from glocal.comparison.settings import Run, Settings
from glocal.comparison.task import PREDICTIONS, SPLIT_SEED, Setup, digest_of_paths
from glocal.tasks import DetectObjects, SegmentImages
from glocal.training import HardwareConfig
from glocal.training.loader import Batch, Key, epoch_order
from glocal.training.objective import Objective
from glocal.training.request import Request
from glocal.training.trainer import TrainResult

RESAMPLES = 2_000
Assignment = DetectObjects | SegmentImages


class Headed:
    """A `ComparedTask` on what `glocal detect train` and `glocal segment train` carry out.

    Args:
        settings: of the comparison.
        source: a `DetectionSource` or `SegmentationSource`.
    """

    assign: ClassVar[type[DetectObjects] | type[SegmentImages]]
    numbers: ClassVar[tuple[str, ...]]
    lists: ClassVar[tuple[str, ...]]

    def __init__(self, settings: Settings, source: Any) -> None:
        self.settings, self.source = settings, source
        self.measure = settings.measure
        self.unscored: Mapping[str, Any] = {
            **dict.fromkeys((*self.numbers, "train_images_per_s", "budget", "weights")),
            **{name: [] for name in (*self.lists, "curve")},
        }

    @property
    def kept_bytes(self) -> int:
        """Images are read when they are asked for."""
        return 0

    def create(self, name: str) -> Any:
        """With the weights of the first seed."""
        return self._assignment(1.0).create(self._request(name, seed=0))

    def count_macs(self, name: str, model: Any) -> int:
        """Of backbone and head, for an image of the recipe's size."""
        return self._assignment(1.0).count_macs(model, self._request(name, seed=0))

    def training_memory(self, model: Any) -> float:
        """Of the first batch of the first seed: real images and what is on them."""
        recipe = self.settings.recipe
        assignment, request = self._assignment(1.0), self._request(self.settings.models[0], seed=0)
        learned, _ = assignment.batches(request)
        first = epoch_order(learned, 0, 0, recipe.data.aug_repeats)[
            : -(-recipe.data.batch_size // recipe.optimizer.grad_accum_steps)
        ]
        objective = assignment.objective(model, learned, request)
        step = _Step(model, objective, learned[Key(0, first)])
        return peak_training_memory(step, (1, 3, 1, 1), self.settings.device, loss=lambda loss: loss)

    def load(self) -> None:
        """Nothing: images are read when they are asked for."""

    def setup(self, run: Run, macs: int) -> Setup:
        """Data of the fraction, and an objective that keeps what the statistic needs."""
        assignment, request = self._assignment(run.fraction), self._request(run.model, run.seed)
        model = assignment.create(request)
        learned, tested = assignment.batches(request)
        objective = assignment.objective(model, learned, request)
        objective.needs_every_image = True
        return Setup(model, learned, tested, objective, macs)

    def write_files(self, run: Run, result: TrainResult, folder: Path) -> None:
        """The model, and what was predicted for each test image."""
        self._assignment(run.fraction).save(result.model, folder, self._request(run.model, run.seed))
        save_file(
            self.predictions(result.outcomes),
            folder / PREDICTIONS,
            metadata={"paths_sha256": digest_of_paths(self.source.val.paths)},
        )

    def evidence(self, folder: Path) -> Examined:
        """Its score on all images, on `RESAMPLES` draws of them, and on each alone."""
        return self.examine(load_file(folder / PREDICTIONS), draws(len(self.source.val)))

    def data(self) -> dict[str, Any]:
        """How often each class is there, where that is known."""
        counts = {part: self.source.counts.get(part) for part in ("train", "val")}
        return {
            f"{part}_per_class": None if count is None else np.asarray(count).tolist() for part, count in counts.items()
        }

    def about(self, runs: Sequence[Mapping[str, Any]], evidence: Mapping[str, Examined]) -> dict[str, Any]:
        """What runs are ranked by, and images to show."""
        of_image = {run["id"]: evidence[run["id"]].of_image for run in runs if run["id"] in evidence}
        return {"metric": self.measure.key, "examples": choose(runs, of_image, self.source.val.paths)}

    def predictions(self, outcomes: Any) -> dict[str, np.ndarray]:
        """What the objective kept of the test images, to be saved."""
        raise NotImplementedError

    def examine(self, predictions: Mapping[str, np.ndarray], drawn: np.ndarray) -> Examined:
        """Scores; ``drawn`` as `draws` gives them."""
        raise NotImplementedError

    def _assignment(self, fraction: float) -> Assignment:
        assert self.settings.head is not None
        train = self.source.train
        if fraction < 1:
            order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
            train = train.subset(np.sort(order[: max(1, round(fraction * len(train)))]))
        return self.assign(replace(self.source, train=train), self.settings.head)

    def _request(self, model: str, seed: int) -> Request:
        settings = self.settings
        return Request(
            model=model,
            recipe=settings.recipe.replace(image_size=settings.image_size),
            weights=settings.weights_of(model),
            seed=seed,
            hardware=HardwareConfig(settings.device),
            on_error=settings.on_error,
        )


class _Step(nn.Module):
    """The loss of a batch, whatever it is called with."""

    def __init__(self, model: nn.Module, objective: Objective, batch: Batch) -> None:
        super().__init__()
        self.model, self.objective, self.batch = model, objective, batch

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Mean over the images of the batch."""
        return self.objective.loss(self.model, _to(self.batch, images.device))


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, Batch):
        return value._replace(inputs=_to(value.inputs, device), labels=_to(value.labels, device))
    return [_to(item, device) for item in value] if isinstance(value, list) else value


@lru_cache(maxsize=1)
def draws(num_images: int) -> np.ndarray:
    """(`RESAMPLES`, N) how often each image is in each draw with replacement; the same for all runs."""
    even = np.full(num_images, 1 / num_images)
    return np.random.default_rng(0).multinomial(num_images, even, size=RESAMPLES)
