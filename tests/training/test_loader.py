import dataclasses
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from glocal.data import ImageError
from glocal.data.transforms import resize_crop
from glocal.training import (
    ImageBatches,
    TrainConfig,
    TrainingBatches,
    load_pixels,
    training_loader,
)
from glocal.training import loader as module
from glocal.training.loader import evaluation_loader
from tests.shapes import image_set

SIZE = 24


@pytest.fixture(scope="module")
def images():
    return image_set(20, seed=0)


@pytest.fixture(scope="module")
def cached(images):
    return load_pixels(images, SIZE)


def batches(data, count=6, **kwargs):
    return list(islice(iter(training_loader(data, 8, seed=5, **kwargs)), count))


def test_fit_scales_the_shorter_side_and_crops_the_centre():
    image = Image.fromarray(np.repeat(np.arange(60, dtype=np.uint8)[None], 20, axis=0)).convert(
        "RGB"
    )  # 60 wide, 20 high
    fitted = resize_crop(image, 20)
    assert np.array_equal(fitted[0, :, 0], np.arange(20, 40))


def test_an_epoch_holds_each_image_once_in_batches_of_nearly_one_size(images, cached):
    numbered = np.arange(20, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)  # the pixel of image i is i
    data = ImageBatches(images, 1, numbered)
    nine = [batch.inputs[:, 0, 0, 0].tolist() for batch in batches(data, 9)]
    assert [len(batch) for batch in nine] == 3 * [7, 7, 6]
    epochs = [[*nine[i], *nine[i + 1], *nine[i + 2]] for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_labels_go_with_their_images(images, cached):
    for batch in batches(TrainingBatches(cached, TrainConfig.of(flip=False), seed=0)):
        for image, label in zip(batch.inputs, batch.labels, strict=True):
            at = next(i for i in range(20) if np.array_equal(cached.pixels[i], image.permute(1, 2, 0)))
            assert images.labels[at] == label


@pytest.mark.parametrize(("augment", "flip"), [("none", False), ("none", True), ("light", True), ("randaugment", True)])
def test_workers_and_cache_change_nothing(images, cached, augment, flip):
    recipe = TrainConfig.of(augment=augment, flip=flip)
    expected = batches(TrainingBatches(cached, recipe, seed=0), num_workers=0)
    uncached = TrainingBatches(ImageBatches(images, SIZE), recipe, seed=0)
    for others in (batches(uncached, num_workers=0), batches(uncached, num_workers=2)):
        for one, other in zip(expected, others, strict=True):
            assert one.inputs.dtype == torch.uint8
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.labels, other.labels)


def test_evaluation_reads_all_in_order(images, cached, monkeypatch):
    monkeypatch.setattr(cached, "evaluation_batch", 8)
    read = list(evaluation_loader(cached))
    assert torch.equal(torch.cat([batch.labels for batch in read]), torch.from_numpy(images.labels))
    assert np.array_equal(torch.cat([batch.inputs for batch in read]).permute(0, 2, 3, 1), cached.pixels)
    assert [len(batch.labels) for batch in read] == [7, 7, 6]


def test_a_set_too_large_for_memory_is_not_kept(images, monkeypatch):
    monkeypatch.setattr(module, "CACHE_BYTES", 20 * SIZE * SIZE * 3 - 1)
    assert load_pixels(images, SIZE).pixels is None
    monkeypatch.setattr(module, "CACHE_BYTES", 20 * SIZE * SIZE * 3)
    assert load_pixels(images, SIZE).pixels is not None


def test_a_subset_is_read_from_the_same_pixels(cached):
    positions = np.array([3, 17])
    assert np.array_equal(cached.subset(positions).pixels, cached.pixels[positions])


class GoneBad:
    """A store in which one image can no longer be decoded."""

    def __init__(self, store, row):
        self.store, self.row = store, row

    def image(self, path, row):
        if row == self.row:
            raise ImageError(path, "truncated PNG")
        return self.store.image(path, row)


@pytest.fixture
def spoilt(images):
    return ImageBatches(dataclasses.replace(images, store=GoneBad(images.store, 13)), SIZE)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("augment", ["none", "light", "randaugment"])
def test_an_image_that_goes_bad_is_reported_and_the_others_are_as_before(spoilt, cached, num_workers, augment):
    recipe = TrainConfig.of(augment=augment)
    expected = batches(TrainingBatches(cached, recipe, seed=0), 3)
    got = batches(TrainingBatches(spoilt, recipe, seed=0), 3, num_workers=num_workers)
    (skipped,) = [skipped for batch in got for skipped in batch.skipped]
    assert (skipped.path, skipped.reason) == ("train/00013", "became unreadable: truncated PNG")
    for one, other in zip(expected, got, strict=True):
        kept = [i for i, image in enumerate(one.inputs) if any(torch.equal(image, left) for left in other.inputs)]
        assert len(kept) == len(one.labels) - len(other.skipped)
        assert torch.equal(one.inputs[kept], other.inputs)
        assert torch.equal(one.labels[kept], other.labels)
