"""Disturbed images keep what they should, and nothing else."""

import numpy as np
import pytest
import torch

from glocal.recommend.disturb import (
    BLURS,
    CLEAN,
    CONDITIONS,
    SHOWN,
    SHUFFLES,
    Condition,
    DisturbedTrainSet,
    DisturbedValSet,
    disturb,
)
from glocal.training import ImageBatches, TrainConfig, TrainingBatches
from glocal.training.loader import BatchIndices
from tests.shapes import image_set

RECIPE = TrainConfig.of(flip=False)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def batches():
    found = image_set(40, seed=0)
    return ImageBatches(found, 32, np.stack([np.asarray(found.image(i)) for i in range(40)]))


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def patches(image, side):
    cut = image.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return sorted(patch.numpy().tobytes() for patch in cut)


@pytest.mark.parametrize("condition", SHUFFLES, ids=lambda c: c.name)
def test_shuffled_patches_are_the_same_patches_elsewhere(images, condition):
    made = disturb(images, condition, generator())
    side = int(32 / condition.level)
    for before, after in zip(images, made, strict=True):
        assert patches(before, side) == patches(after, side)
    assert not torch.equal(made, images)
    orders = {(made[i] != images[i]).flatten().numpy().tobytes() for i in range(6)}
    assert len(orders) > 1  # an order of its own for each image
    assert torch.equal(made, disturb(images, condition, generator()))


@pytest.mark.parametrize("condition", BLURS, ids=lambda c: c.name)
def test_a_blur_is_the_gaussian_it_says(images, condition):
    point = torch.zeros(1, 3, 97, 97, dtype=torch.float32)
    point[:, :, 48, 48] = 1
    made = disturb(point, condition, generator())[0, 0]
    distance = torch.arange(97) - 48.0
    assert float(made.sum()) == pytest.approx(1, abs=1e-4)
    assert float((made.sum(0) * distance.square()).sum().sqrt()) == pytest.approx(97 * condition.level, rel=0.03)
    blurred = disturb(images, condition, generator())
    assert blurred.dtype == torch.uint8
    assert blurred.float().std() < images.float().std()


def test_the_names_say_the_sizes():
    assert [c.name for c in CONDITIONS] == [
        "as they are",
        "patches of 1/2 of the side shuffled",
        "patches of 1/4 of the side shuffled",
        "patches of 1/8 of the side shuffled",
        "blurred by 1/32 of the side",
        "blurred by 1/16 of the side",
        "blurred by 1/8 of the side",
    ]


def test_training_images_meet_every_condition_by_a_draw_of_their_own(batches):
    source = TrainingBatches(batches, RECIPE, seed=3)
    learned = DisturbedTrainSet(source)
    key = BatchIndices(0, np.arange(40))
    plain, shown = source[key], learned[key]
    assert torch.equal(shown.labels, plain.labels)
    numbers = plain.seeds.numpy() % len(SHOWN)
    assert len(set(numbers.tolist())) >= 6
    for number, condition in enumerate(SHOWN):
        own = np.flatnonzero(numbers == number)
        changed = [not torch.equal(shown.inputs[i], plain.inputs[i]) for i in own]
        assert all(changed) if condition != CLEAN else not any(changed)
        if condition.kind == "blur":
            assert torch.equal(shown.inputs[own], disturb(plain.inputs[own], condition, generator()))
        if condition.kind == "shuffle":
            side = int(32 / condition.level)
            assert all(patches(shown.inputs[i], side) == patches(plain.inputs[i], side) for i in own)
    assert torch.equal(learned[key].inputs, shown.inputs)
    assert not torch.equal(learned[BatchIndices(1, np.arange(40))].inputs, shown.inputs)


def test_test_images_are_the_same_whenever_they_are_read(batches):
    tested = DisturbedValSet(batches, Condition("shuffle", 4))
    key = BatchIndices(0, np.arange(8, 16))
    assert torch.equal(tested[key].inputs, tested[key].inputs)
    assert torch.equal(DisturbedValSet(batches, CLEAN)[key].inputs, batches[key].inputs)
    assert len(tested) == 40
