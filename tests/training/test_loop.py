import dataclasses
import json
import math
import random
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn

from glocal.data import ImageError
from glocal.data.transforms import Normalize
from glocal.training import (
    Budget,
    ImageBatches,
    TrainConfig,
    TrainingBatches,
    TrainingError,
    load_pixels,
)
from glocal.training.evaluation import evaluate_batches, predict
from glocal.training.loader import evaluation_loader
from glocal.training.nan_guard import NaNGuard
from glocal.training.schedule import LRSchedule
from glocal.training.train_state import TrainState
from glocal.training.trainer import Trainer
from tests.shapes import classification_task, image_set

RECIPE = TrainConfig.of(batch_size=16, lr=1e-2)


@pytest.fixture(scope="module")
def sets():
    return load_pixels(image_set(60, seed=0), 32), load_pixels(image_set(30, seed=1, name="val"), 32)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(8, 16, 5, stride=2),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def run(sets, model=None, recipe=RECIPE, budget="3ep", seed=0, strict=True, **kwargs):
    batches = TrainingBatches(sets[0], recipe, seed)
    options = {"needs_every_image": strict, "keep_outputs": strict}
    task = classification_task(recipe.replace(seed=seed), labels=batches.labels, **options)
    trainer = Trainer(task, task.config, Budget.parse(budget), macs=1000, **kwargs)
    return trainer.fit(model or network(), batches, sets[1])


def test_normalize_by_hand():
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    got = Normalize((0.5, 0.25, 0.0), (0.5, 0.25, 1.0))(pixels)[..., 0, 0]
    torch.testing.assert_close(got, torch.tensor([[-1.0, -1.0, 0.0], [1.0, 3.0, 1.0]]))


def test_it_learns(sets):
    result = run(sets, budget="20ep")
    assert result.state.curve[-1].val_score >= 0.9
    assert result.state.curve[-1].train_loss < result.state.curve[0].train_loss
    assert (result.outcomes.logits.argmax(1) == sets[1].labels).mean() == result.state.curve[-1].val_score
    assert not result.model.training


def test_counts_by_hand(sets):
    result = run(sets, budget="3ep")  # 60 images: 4 batches of 15 an epoch
    assert (result.state.step, result.epochs) == (12, 3.0)
    assert [point.epoch for point in result.state.curve] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert [point.step for point in result.state.curve] == [2, 4, 6, 8, 10, 12]
    assert result.flop == 6 * 1000 * 180
    assert result.images_per_s == pytest.approx(180 / result.state.trained)
    assert result.state.trained <= result.state.wall


def test_a_long_budget_is_evaluated_ten_times(sets):
    assert [point.epoch for point in run(sets, budget="20ep").state.curve] == list(range(2, 21, 2))


class SlowToRead(ImageBatches):
    def __getitem__(self, key):
        time.sleep(0.3)
        return super().__getitem__(key)


def test_evaluation_is_not_time_of_training(sets):
    slow = SlowToRead(sets[1].images, 32, sets[1].pixels)
    result = run((sets[0], slow), budget="3ep")
    assert 1.5 < result.state.wall - result.state.trained < 2.1  # five evaluations on the way, the sixth after the end
    result = run((sets[0], slow), budget="0.5s")
    assert 0.5 <= result.state.trained < 0.7
    assert result.state.wall > 2


def test_flop_are_a_budget_too(sets):
    result = run(sets, budget=f"{6 * 1000 * 60 * 2}flop")
    assert result.epochs == 2.0


def test_seconds_are_a_budget_too(sets):
    result = run(sets, budget="0.5s")
    assert 0.5 <= result.state.trained < 0.7
    assert result.state.curve[-1].seconds == result.state.trained


@pytest.mark.parametrize(
    "recipe", [RECIPE, TrainConfig.of(batch_size=15, mixup=0.2, cutmix=1.0, augment="randaugment")]
)
def test_a_run_depends_on_its_seed_alone(sets, recipe):
    first = run(sets, recipe=recipe)
    torch.rand(7), np.random.rand(3), random.random()
    run(sets, network(5), recipe=recipe, seed=3)
    again = run(sets, recipe=recipe)
    assert np.array_equal(first.outcomes.logits, again.outcomes.logits)
    assert [p.train_loss for p in first.state.curve] == [p.train_loss for p in again.state.curve]
    assert not np.array_equal(first.outcomes.logits, run(sets, recipe=recipe, seed=1).outcomes.logits)


def test_generators_and_signals_are_left_as_they_were(sets):
    handler = signal.getsignal(signal.SIGINT)
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = torch.rand(1), np.random.rand(), random.random()
    model = network()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    run(sets, model)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected
    assert signal.getsignal(signal.SIGINT) is handler


def test_it_says_nothing_and_writes_nothing(sets, tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    run(sets)
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)
    assert not list(tmp_path.iterdir())


class Diverges(nn.Module):
    """Its loss is not finite from the third step on."""

    def __init__(self):
        super().__init__()
        self.head, self.calls = nn.Linear(3, 3), 0

    def forward(self, x):
        self.calls += self.training
        return self.head(x.mean((2, 3))) * (math.nan if self.calls > 2 else 1)


def test_a_loss_that_is_not_finite_ends_the_run(sets):
    with pytest.raises(TrainingError, match=r"the loss became nan at step 3 \(epoch 0.75\)"):
        run(sets, Diverges())


def test_the_guard_is_asked_once_for_each_step(sets, monkeypatch):
    """What it does not allow, the optimizer does not do, and its statistics are put back."""
    model, asked = network(), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    monkeypatch.setattr(NaNGuard, "allows_step", lambda _, norm: asked.append(norm))  # None: no
    state = run(sets, model, RECIPE.replace(nan_skips=100)).state
    assert len(asked) == state.step == state.nan_skips
    assert [name for name in before if not torch.equal(model.state_dict()[name], before[name])] == []


def test_ctrl_c_stays_ctrl_c(sets):
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(progress):
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(sets, progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler


def test_progress_goes_from_the_first_step_to_the_end(sets):
    seen = []
    run(sets, progress=seen.append)
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert done[-1] == 1
    assert seen[-1].point.step == 12
    assert [p.step for p in seen if p.point is None] == [1]


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [parameter], "lr": 1.0}, {"params": [], "lr": 1.0, "lr_scale": 0.5}])
    schedule = LRSchedule(optimizer, TrainConfig.of(lr=1.0, warmup=0.2, min_lr=0.1))
    for progress, expected in ((0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.6, 0.55), (1, 0.1)):
        schedule.step(progress)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        assert optimizer.param_groups[1]["lr"] == pytest.approx(expected / 2)


class GoneBad:
    """A store in which one image can no longer be decoded."""

    def __init__(self, store):
        self.store = store

    def image(self, path, row):
        if row == 13:
            raise ImageError(path, "truncated PNG")
        return self.store.image(path, row)


@pytest.mark.parametrize("part", [0, 1])
def test_an_image_that_goes_bad_ends_the_run_and_is_named(sets, part):
    images = dataclasses.replace(sets[part].images, store=GoneBad(sets[part].images.store))
    spoilt = [*sets]
    spoilt[part] = ImageBatches(images, 32)
    with pytest.raises(TrainingError, match="00013: became unreadable: truncated PNG"):
        run(spoilt)


def test_or_is_left_out_and_reported_once(sets):
    images = dataclasses.replace(sets[0].images, store=GoneBad(sets[0].images.store))
    result = run((ImageBatches(images, 32), sets[1]), recipe=RECIPE.replace(on_error="skip"))
    assert [skipped.path for skipped in result.state.skipped] == ["train/00013"]
    assert result.flop == 6 * 1000 * 59 * 3
    assert TrainState.from_dict(json.loads(json.dumps(result.state.to_dict()))) == result.state


class OwnLoss(nn.Module):
    """A network with a loss of its own, as one of two heads has."""

    def __init__(self):
        super().__init__()
        self.body = network()
        self.asked: list[float] = []

    def forward(self, x):
        return self.body(x)

    def training_loss(self, x, target, criterion):
        loss = criterion(self.body(x), target)
        self.asked.append(loss.item())
        return 0 * loss


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_a_model_with_a_loss_of_its_own_is_trained_by_it(sets, mixup):
    model = OwnLoss()
    before = [p.clone() for p in model.parameters()]
    result = run(sets, model, RECIPE.replace(mixup=mixup, weight_decay=0.0), "1ep")
    assert len(model.asked) == result.state.step
    assert all(loss > 0 for loss in model.asked)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "its loss was constant"


def test_a_test_image_that_goes_bad_is_left_out_too(sets):
    images = dataclasses.replace(sets[1].images, store=GoneBad(sets[1].images.store))
    result = run((sets[0], ImageBatches(images, 32)), recipe=RECIPE.replace(on_error="skip"), strict=False)
    assert [skipped.path for skipped in result.state.skipped] == ["val/00013"]
    assert len(result.outcomes) == 29
    assert result.outcomes.logits is None


class AllBad(GoneBad):
    """Every image of a set went bad."""

    def image(self, path, row):
        raise ImageError(path, "truncated PNG")


def test_a_batch_without_a_readable_image_is_done_too_so_that_processes_stay_together(sets):
    images = dataclasses.replace(sets[1].images, store=AllBad(sets[1].images.store))
    model, seen = network(), []
    model.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    data = ImageBatches(images, 32)
    task = classification_task(RECIPE, keep_outputs=True)
    for rank in range(2):  # one batch for two processes: the second has none, and does one too
        with torch.no_grad():
            batches = evaluation_loader(data, rank=rank, world_size=2)
            found = list(evaluate_batches(task, model, batches, "cpu"))
        assert [(tuple(part.logits.shape), len(batch.skipped)) for part, batch in found] == [((0, 3), [30, 0][rank])]
        assert seen == [1] * (rank + 1)


def test_a_set_that_went_bad_has_no_outputs(sets):
    images = dataclasses.replace(sets[1].images, store=AllBad(sets[1].images.store))
    with pytest.raises(TrainingError, match="became unreadable"):
        predict(network(), Normalize((0.5,) * 3, (0.25,) * 3), ImageBatches(images, 32))
