"""What a recipe's settings do to loss, gradient and weights, against formulas written out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from glocal.data.transforms import Normalize
from glocal.errors import GlocalError
from glocal.models.creation import create, freeze
from glocal.tasks.classification import class_weights
from glocal.training import (
    Budget,
    TrainConfig,
    TrainingBatches,
    load_pixels,
    predict,
)
from glocal.training.loader import epoch_order, training_loader
from glocal.training.schedule import LRSchedule
from glocal.training.trainer import Trainer
from tests.shapes import classification_task, image_set

RECIPE = TrainConfig.of(batch_size=20, lr=1e-2, optimizer="momentum", weight_decay=0.0, clip_grad=0.0, warmup=0.0)


@pytest.fixture(scope="module")
def sets():
    return load_pixels(image_set(60, seed=0), 16), load_pixels(image_set(30, seed=1, name="val"), 16)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.GELU(), nn.Linear(8, 3))


def run(sets, recipe, budget="2ep", model=None, **kwargs):
    batches = TrainingBatches(sets[0], recipe, 0)
    task = classification_task(recipe, labels=batches.labels, keep_outputs=True)
    trainer = Trainer(task, task.config, Budget.parse(budget), macs=1000, **kwargs)
    return trainer.fit(model or network(), batches, sets[1])


def test_a_step_in_parts_is_the_whole_step(sets):
    whole = run(sets, RECIPE).model.state_dict()
    for parts in (3, 7):  # 20 images in 7 parts: of 3 and of 2 images
        in_parts = run(sets, RECIPE.replace(grad_accum_steps=parts)).model.state_dict()
        for name in whole:
            torch.testing.assert_close(in_parts[name], whole[name], rtol=1e-5, atol=1e-6)


def test_the_parts_of_all_processes_are_the_step(sets):
    data = TrainingBatches(sets[0], RECIPE, 0)

    def read(rank=0, world_size=1, parts=1, start=0, count=6):
        ranks = {"rank": rank, "world_size": world_size, "grad_accum_steps": parts}
        sampler = iter(training_loader(data, 20, 0, 0, **ranks, start=start).sampler)
        return [next(sampler) for _ in range(count * parts)]

    steps = [set(key.indices.tolist()) for key in read()]
    for world_size, parts in ((2, 1), (2, 3), (3, 2)):
        of_ranks = [read(rank, world_size, parts) for rank in range(world_size)]
        for step in range(6):
            keys = [key for rank in of_ranks for key in rank[step * parts : (step + 1) * parts]]
            assert sorted(np.concatenate([key.indices for key in keys]).tolist()) == sorted(steps[step])
            assert sum(key.weight for key in keys) == pytest.approx(world_size * parts)
        later = read(1, world_size, parts, start=4, count=2)
        assert all(np.array_equal(a.indices, b.indices) for a, b in zip(later, of_ranks[1][4 * parts :], strict=True))


def test_too_many_parts_are_refused(sets):
    with pytest.raises(GlocalError, match=r"16 devices x 2 micro-batches, got steps of 20 images"):
        training_loader(TrainingBatches(sets[0], RECIPE, 0), 20, 0, 0, world_size=16, grad_accum_steps=2)


def test_repeats_fill_an_epoch_with_fewer_images(sets):
    data = TrainingBatches(sets[0], RECIPE, 0)
    indices = epoch_order(data, 0, 0, repeats=3)
    assert len(indices) == 60
    assert len(set(indices.tolist())) == 60
    images, counts = np.unique(indices % 60, return_counts=True)
    assert len(images) == 20
    assert set(counts) == {3}
    assert np.array_equal(indices.reshape(20, 3)[:, 0] % 60, epoch_order(data, 0, 0)[:20])


def test_class_weights_by_hand():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = class_weights(labels, 3, 1.0)
    torch.testing.assert_close(weights * torch.tensor([0.6, 0.3, 0.1]), torch.full((3,), 1 / 3))
    half = class_weights(labels, 3, 0.5)
    torch.testing.assert_close(half[2] / half[0], torch.tensor(6**0.5))
    assert (half.numpy() * np.array([0.6, 0.3, 0.1])).sum() == pytest.approx(1)
    assert class_weights(labels, 3, 0.0) is None


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_the_balanced_loss_is_the_weighted_mean_over_images(mixup):
    labels = np.array([0] * 6 + [1] * 3 + [2])
    recipe = TrainConfig.of(class_balance=1.0, label_smoothing=0.1, mixup=mixup)
    model = network()
    task = classification_task(recipe, labels=labels)
    inputs, targets = torch.randn(10, 3, 16, 16), torch.from_numpy(labels)
    logits = model(inputs).log_softmax(1)
    weights = class_weights(labels, 3, 1.0)
    if mixup:
        soft = torch.softmax(torch.randn(10, 3), 1)
        expected = -(soft * weights * logits).sum(1).mean()
        torch.testing.assert_close(task.loss_of(model, inputs, soft, 0.0), expected)
    else:
        smooth = 0.9 * F.one_hot(targets, 3) + 0.1 / 3
        expected = (-(smooth * logits).sum(1) * weights[targets]).mean()
        torch.testing.assert_close(task.loss_of(model, inputs, targets, 0.1), expected)


def test_the_average_of_the_weights_is_what_is_tested(sets):
    model, seen = network(), []

    def note(_):
        seen.append([p.detach().clone() for p in model.parameters()])

    result = run(sets, RECIPE.replace(ema=0.5), "1ep", model, progress=note)
    average = seen[0]  # timm's begins with the weights after the first step
    for weights in seen[1:]:
        average = [0.5 * a + 0.5 * w for a, w in zip(average, weights, strict=True)]
    assert len(seen) == 3
    for kept, expected in zip(result.model.parameters(), average, strict=True):
        torch.testing.assert_close(kept, expected)
    logits = predict(result.model, Normalize((0.5,) * 3, (0.25,) * 3), sets[1]).numpy()
    np.testing.assert_allclose(logits, result.outcomes.logits)


def test_rates_are_scaled_by_the_batch():
    recipe = TrainConfig.of(batch_size=1024, lr=5e-4, lr_batch_size=512, min_lr=1e-5)
    assert recipe.optimizer.lr * recipe.lr_scale == pytest.approx(1e-3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.optimizer.lr * recipe.lr_scale)
    schedule = LRSchedule(optimizer, recipe)
    schedule.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-5)


def test_steps_of_a_tenth():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = LRSchedule(optimizer, TrainConfig.of(lr=1.0, schedule="step", warmup=0.1))
    for progress, expected in ((0.05, 0.5), (0.1, 1.0), (0.39, 1.0), (0.41, 0.1), (0.69, 0.1), (0.71, 0.01)):
        schedule.step(progress)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_freezing_by_name():
    model = create("vit_micro", num_classes=3, image_size=32, seed=0)
    freeze(model, ["backbone"])
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    model = create("vit_micro", num_classes=3, image_size=32, seed=0)
    freeze(model, ["blocks.0", "*.norm1"])
    left = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("blocks.0.") or ".norm1." in name for name in left)
    assert any(name.startswith("blocks.1.") for name in left)
    with pytest.raises(GlocalError, match=r"got 'block'; nearest: blocks"):
        freeze(model, ["block"])
    with pytest.raises(GlocalError, match="leaves nothing to train"):
        freeze(model, ["*"])


def test_statistics_of_a_frozen_norm_do_not_move(sets):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    for parameter in (*model[0].parameters(), *model[1].parameters()):
        parameter.requires_grad_(False)
    frozen, free = model[1].running_mean.clone(), model[3].running_mean.clone()
    run(sets, RECIPE, "1ep", model)
    assert torch.equal(model[1].running_mean, frozen)
    assert not torch.equal(model[3].running_mean, free)
