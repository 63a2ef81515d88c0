"""items-on-photos: the same samples for all, and labels that are true."""

import hashlib
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glocal.data import builtin, load_data, load_detection, load_segmentation, pasted
from glocal.errors import GlocalError

PHOTOS = Path(builtin.__file__).parent / "photos"


@pytest.fixture(scope="module")
def source():
    return load_detection("items-on-photos")


def same(left, right) -> bool:
    arrays = ("image", "boxes", "labels", "masks", "crowd", "area")
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in arrays)


def test_it_is_there_for_both_tasks(source):
    assert (len(source.train), len(source.val)) == (4800, 200)
    assert source.classes == builtin.CLASSES
    assert source.category_ids == tuple(range(1, 11))
    maps = load_segmentation("items-on-photos")
    assert (len(maps.train), len(maps.val)) == (4800, 200)
    assert maps.classes == ("background", *builtin.CLASSES)
    assert source.train.paths[7] == maps.train.paths[7] == "items-on-photos/train/00007"


@pytest.mark.parametrize("part", ["train", "val"])
def test_boxes_and_areas_are_those_of_the_masks_and_nothing_is_hidden(source, part):
    numbers = []
    for index in range(100):
        sample = getattr(source, part)[index]
        numbers.append(len(sample.labels))
        assert sample.image.shape == (128, 128, 3)
        assert 1 <= len(sample.labels) <= 8
        assert sample.masks.sum(axis=0).max() <= 1  # a pixel shows one item
        for box, mask, area in zip(sample.boxes, sample.masks, sample.area, strict=True):
            ys, xs = np.nonzero(mask)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert area == mask.sum() > 20
        assert not sample.crowd.any()
    assert set(numbers) >= set(range(1, 8))


def test_label_maps_are_the_masks(source):
    maps = load_segmentation("items-on-photos")
    for index in range(30):
        objects, labels = source.val[index], maps.val[index]
        assert np.array_equal(objects.image, labels.image)
        expected = np.zeros((128, 128), dtype=np.int64)
        for mask, label in zip(objects.masks, objects.labels, strict=True):
            expected[mask] = label + 1
        assert np.array_equal(labels.label_map, expected)
        assert labels.label_map.dtype == np.int64


def test_samples_follow_from_seed_part_and_index_alone(source):
    again = load_detection("items-on-photos")
    assert same(source.train[1234], again.train[1234])
    assert same(pickle.loads(pickle.dumps(source.val))[3], source.val[3])
    assert same(source.train.subset([5])[0], source.train[5])
    assert same(pasted.items_on_photos(train=10, val=5).train[9], source.train[9])
    assert not same(source.train[0], source.train[1])
    assert not same(source.train[0], source.val[0])
    assert not same(pasted.items_on_photos(seed=1).train[0], source.train[0])
    command = "from glocal.data import load_detection as l; import hashlib as h; "
    command += "print(h.sha256(l('items-on-photos').train[3].image.tobytes()).hexdigest())"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == hashlib.sha256(source.train[3].image.tobytes()).hexdigest()


def test_the_fingerprint_says_what_it_is_made_of(source):
    assert load_detection("items-on-photos").fingerprint == source.fingerprint
    others = [
        load_detection("items-on-photos:96"),
        pasted.items_on_photos(seed=1),
        pasted.items_on_photos(train=10),
        pasted.items_on_photos(val=10),
    ]
    assert len({source.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_what_it_is_made_of_has_not_changed(source):
    """A new version of a library that draws otherwise would change everyone's results: raise VERSION, and these."""
    sample = source.val[0]
    assert sample.labels.tolist() == [9, 0, 7, 2, 7]
    assert sample.boxes[:2].tolist() == [[66, 12, 111, 37], [19, 58, 45, 88]]
    assert sample.image.mean() == pytest.approx(93.4270, abs=1e-3)


def test_items_and_parts_of_photographs_of_val_are_not_those_of_train():
    train, val = pasted._materials("train"), pasted._materials("val")
    for name, left, right in zip(pasted.PHOTOS, train[0], val[0], strict=True):
        with Image.open(PHOTOS / f"{name}.png") as photo:
            whole = np.asarray(photo.convert("RGB"))
        assert np.array_equal(np.concatenate([np.asarray(left), np.asarray(right)], axis=1), whole)
    assert not {item.tobytes() for item in train[1]} & {item.tobytes() for item in val[1]}


def test_all_classes_come_about_equally_often(source):
    counts = np.bincount(np.concatenate([source.train[i].labels for i in range(400)]), minlength=10)
    assert counts.min() > 0.6 * counts.mean()
    assert 3 < counts.sum() / 400 < 5


@pytest.mark.parametrize("size", [64, 97, 256])
def test_any_size(size):
    source = load_detection(f"items-on-photos:{size}")
    for index in range(20):
        sample = source.train[index]
        assert sample.image.shape == (size, size, 3)
        assert sample.masks.any(axis=(1, 2)).all()


def test_every_item_can_be_seen_in_the_smallest_images():
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        _, items, _ = pasted._materials(part)
        for item in items[:: 10 if part == "train" else 2]:
            _, alpha = pasted._item(item, pasted.LEAST_SIZE, rng)
            assert (alpha >= pasted.OPAQUE).sum() > 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("items-on-photos:", "expected items-on-photos or items-on-photos:SIZE"),
        ("items-on-photos:big", "got items-on-photos:big"),
        ("items-on-photos:-5", "expected items-on-photos"),
        ("items-on-photos:9", "a size of 64 to 2048 pixels, got 9"),
        ("items-on-photos:9999", "got 9999"),
    ],
)
def test_sizes_that_are_none_are_named(name, message):
    for door in (load_detection, load_segmentation):
        with pytest.raises(GlocalError, match=message):
            door(name)


def test_it_is_no_data_for_classification():
    with pytest.raises(GlocalError, match="images with a class each, got items-on-photos"):
        load_data("items-on-photos")


def test_numbers_that_are_none_are_named():
    for options in ({"seed": -1}, {"train": 0}, {"val": 0}):
        with pytest.raises(GlocalError, match="expected a seed from 0 and at least 1 image"):
            pasted.items_on_photos(**options)


def test_a_sample_is_made_in_a_few_milliseconds(source):
    source.train[0]
    start = time.process_time()
    for index in range(50):
        source.train[index]
    assert (time.process_time() - start) / 50 < 0.010


def test_photographs_are_small_and_their_licences_are_named():
    files = sorted(PHOTOS.glob("*.png"))
    licence = (PHOTOS / "LICENSE").read_text()
    assert {file.stem for file in files} == set(pasted.PHOTOS)
    assert sum(file.stat().st_size for file in files) < 1.5 * 2**20
    for file in files:
        assert file.name in licence
        with Image.open(file) as image:
            assert min(image.size) >= 300
