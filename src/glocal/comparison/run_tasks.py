"""The `Task` of each run of a comparison, for its model, seed and fraction of the training set."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from glocal.bench import peak_training_memory
from glocal.comparison.features import FeatureStore
from glocal.comparison.probe import ProbeTask
from glocal.comparison.settings import ComparisonSettings, Run, file_safe
from glocal.comparison.trials import held_out
from glocal.models.creation import heads
from glocal.tasks import TASKS, ClassificationTask, Task
from glocal.training import ImageBatches, TrainConfig, load_pixels
from glocal.training.loader import CACHE_BYTES, Batch, BatchIndices, epoch_order

SPLIT_SEED = 0
"""For the fractions of the training set, the same for all models and seeds."""


class RunTasks:
    """Creates the task of each run; images, and the features of probes, are read once for all runs.

    Args:
        settings: of the comparison.
        source: its data.
        features: folder for the features of probes; None where nothing is probed.
    """

    def __init__(self, settings: ComparisonSettings, source: Any, features: Path | None = None) -> None:
        self.settings, self.source = settings, source
        self.pixels: dict[int, tuple[ImageBatches, ImageBatches]] = {}
        self.rates: dict[str, float] = {}
        """By model: its learning rate as a multiple of the recipe's, once it is chosen."""
        self.features = None if features is None else FeatureStore(features, source.fingerprint)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the images in memory per process: for classification, if they fit."""
        if self.settings.head is not None:
            return 0
        num_images = len(self.source.train) + len(self.source.val)
        return sum(min(num_images * 3 * size**2, 2 * CACHE_BYTES) for size in self._sizes)

    def load(self) -> None:
        """Decode the images for classification, once for each size; other tasks read images on demand."""
        if self.settings.head is None:
            crop_pct = self.settings.recipe.data.crop_pct
            for size in self._sizes - self.pixels.keys():
                self.pixels[size] = (
                    load_pixels(self.source.train, size, crop_pct=crop_pct),
                    load_pixels(self.source.val, size, crop_pct=crop_pct),
                )

    @property
    def _sizes(self) -> set[int]:
        return {self.settings.size_of(model) for model in self.settings.models}

    def config(self, model: str, seed: int, rate: float | None = None) -> TrainConfig:
        """The settings of a run, at the model's learning rate or at that of a trial."""
        settings = self.settings
        schedule, lr = settings.recipe.schedule, settings.recipe.optimizer.lr
        lr *= self.rates.get(model, 1.0) if rate is None else rate
        return settings.recipe.replace(
            lr=lr,
            min_lr=min(schedule.min_lr, lr),
            name=model,
            weights=settings.weights_of(model),
            seed=seed,
            image_size=settings.size_of(model),
            device=settings.device,
            on_error=settings.on_error,
            head=settings.head,
        )

    def of_model(self, name: str) -> Task:
        """The task of the first seed on all images, to measure the costs of a model."""
        config = self.config(name, seed=0)
        if self.settings.head is None:
            config = config.replace(freeze=())  # frozen parameters are parameters too
        return TASKS[self.settings.task].for_data(self.source, config)

    def of_run(self, run: Run) -> Task:
        """The task of a run; its outcomes include the inputs of the metric."""
        config = self.config(run.model, run.seed, run.rate)
        if self.settings.head is None:
            return self._classification(run, config)
        train = self.source.train
        if run.fraction < 1:
            order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
            train = train.subset(np.sort(order[: max(1, round(run.fraction * len(train)))]))
        source = replace(self.source, train=train)
        return TASKS[self.settings.task].for_data(source, config, needs_every_image=True, keep_outputs=True)

    def _classification(self, run: Run, config: TrainConfig) -> Task:
        self.load()
        train, val = self.pixels[self.settings.size_of(run.model)]
        position = {path: i for i, path in enumerate(self.source.train.paths)}
        fraction = self.source.train.fraction(run.fraction, SPLIT_SEED)
        rows = np.array([position[path] for path in fraction.paths])
        source = replace(self.source, train=fraction)
        if run.rate is not None:  # a trial
            kept, left = held_out(fraction)
            source = replace(self.source, train=fraction.subset(kept), val=fraction.subset(left))
            val, rows = train.subset(rows[left]), rows[kept]
        options: Any = {"needs_every_image": True, "keep_outputs": True}
        if self.settings.mode != "probe":
            return ClassificationTask.for_data(source, config, pixels=(train.subset(rows), val), **options)
        assert self.features is not None
        options |= {"pixels": (train, val), "store": self.features, "name": file_safe(run.model), "rows": rows}
        return ProbeTask.for_data(source, config.replace(freeze=()), **options)

    def training_memory(self, task: Task, model: Any) -> float:
        """Peak memory of one training step in MiB, at the recipe's batch size; of detectors on real images."""
        recipe, device = self.settings.recipe, self.settings.device
        if self.settings.head is None:
            if self.settings.mode == "probe":
                model.requires_grad_(False)
                for head in heads(model):
                    head.requires_grad_(True)
            size = task.config.image_size
            return peak_training_memory(model, (recipe.data.batch_size, 3, size, size), device)
        train_set, _ = task.datasets()
        parts = recipe.optimizer.grad_accum_steps
        first = epoch_order(train_set, 0, 0, recipe.data.aug_repeats)[: -(-recipe.data.batch_size // parts)]
        step = _Step(model, task, train_set[BatchIndices(0, first)])
        return peak_training_memory(step, (1, 3, 1, 1), device, loss=lambda loss: loss)


class _Step(nn.Module):
    """The loss of a fixed batch, for any input."""

    def __init__(self, model: nn.Module, task: Task, batch: Batch) -> None:
        super().__init__()
        self.model, self.task, self.batch = model, task, batch

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Mean over the images of the batch."""
        mine = self.batch.inputs, self.batch.labels
        inputs, labels = tree_map_only(torch.Tensor, lambda tensor: tensor.to(images.device), mine)
        return self.task.loss(self.model, self.batch._replace(inputs=inputs, labels=labels))
