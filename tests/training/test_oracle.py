"""`Trainer.fit` against a bare loop: the same weights, bit for bit."""

import random

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2

from glocal.data.transforms import Normalize
from glocal.models.creation import create
from glocal.tasks import ClassificationTask
from glocal.training import TrainConfig, TrainingBatches, load_pixels
from glocal.training.loader import BatchIndices
from glocal.training.trainer import Trainer
from tests.shapes import data_source

EPOCHS, BATCH = 2, 20


def bare_loop(config, source, seed):
    """What a reader of a tutorial would write, but for the draws, which are functions of seed, epoch and step."""
    model = create(config.model.name, num_classes=3, image_size=32, seed=seed).to(memory_format=torch.channels_last)
    images = TrainingBatches(load_pixels(source.train, 32), config, seed)
    normalize = Normalize(timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05, fused=True)
    num_steps = EPOCHS * len(images) // BATCH
    schedule = timm.scheduler.CosineLRScheduler(
        optimizer, 100_000 - 10_000, warmup_t=10_000, warmup_prefix=True, t_in_epochs=False
    )
    for step in range(num_steps):
        epoch, part = divmod(step, len(images) // BATCH)
        order = np.random.default_rng((seed, epoch, 0)).permutation(len(images))
        batch = images[BatchIndices(epoch, np.array_split(order, len(images) // BATCH)[part])]
        drawn = int(np.random.SeedSequence((seed, step, 0)).generate_state(1, np.uint64)[0]) >> 1
        torch.manual_seed(drawn), random.seed(drawn), np.random.seed(drawn % 2**32)
        schedule.step_update(round(step / num_steps * 100_000))
        loss = F.cross_entropy(model.train()(normalize(batch.inputs)), batch.labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["resnet_micro", "vit_micro"])
def test_the_loop_is_the_bare_loop(name, seed):
    config = TrainConfig.of(
        name=name, seed=seed, epochs=EPOCHS, batch_size=BATCH, lr=1e-2, image_size=32, drop_path=0.0, augment="light"
    )
    source = data_source()
    task = ClassificationTask.for_data(source, config)
    trained = Trainer(task, config, macs=1).fit(task.create_model(), *task.datasets()).model.state_dict()
    expected = bare_loop(config, source, seed)
    assert [key for key in expected if not torch.equal(trained[key], expected[key])] == []


def test_another_order_of_two_lines_is_noticed(monkeypatch):
    """Clipping after the step changes the weights."""
    config = TrainConfig.of(name="vit_micro", epochs=EPOCHS, batch_size=BATCH, lr=1e-2, image_size=32, augment="light")
    monkeypatch.setattr(Trainer, "_clip_gradients", lambda trainer: 1.0)
    task = ClassificationTask.for_data(data_source(), config)
    trained = Trainer(task, config, macs=1).fit(task.create_model(), *task.datasets()).model.state_dict()
    expected = bare_loop(config, data_source(), 0)
    assert any(not torch.equal(trained[key], expected[key]) for key in expected)
