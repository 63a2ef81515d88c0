"""Images, boxes, masks and label maps stay together, whatever is drawn."""

import numpy as np
import pytest
from PIL import Image

from glocal.data import IGNORE
from glocal.data.transforms import (
    FILL,
    MAX_ASPECT_RATIO,
    JitterParams,
    crop_or_pad,
    draws,
    jitter_detection,
    jitter_params,
    jitter_segmentation,
    offset_of,
    resize_crop,
    resize_labels,
    shorter_side_size,
)
from tests.tasks.making import box_of, objects


def test_a_mirrored_image_by_hand():
    image = np.zeros((4, 6, 3), np.uint8)
    image[1, 1], image[3, 5] = 200, 100
    masks = np.zeros((2, 4, 6), bool)
    masks[0, 1:3, 1:3], masks[1, 0, 5] = True, True
    boxes = np.array([[1, 1, 3, 3], [5, 0, 6, 1]], np.float32)
    seen, moved, labels, mirrored = jitter_detection(
        image, boxes, np.array([4, 7]), masks, JitterParams(True, 1.0, 0.0, 0.0)
    )
    assert moved.tolist() == [[3, 1, 5, 3], [0, 0, 1, 1]]
    assert labels.tolist() == [4, 7]
    assert np.argwhere(mirrored[0]).tolist() == [[1, 3], [1, 4], [2, 3], [2, 4]]
    assert np.argwhere(mirrored[1]).tolist() == [[0, 0]]
    assert (seen[1, 4, 0], seen[3, 0, 0]) == (200, 100)
    again = jitter_detection(seen, moved, labels, mirrored, JitterParams(True, 1.0, 0.0, 0.0))
    assert np.array_equal(again[0], image)
    assert np.array_equal(again[1], boxes)
    assert np.array_equal(again[3], masks)


def test_twice_as_large_and_cut_by_hand():
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    masks = np.zeros((3, 4, 4), bool)
    masks[0, 2:4, 2:4], masks[1, 0, 0], masks[2, 1:3, 1:3] = True, True, True
    boxes = np.array([[2, 2, 4, 4], [0, 0, 1, 1], [1, 1, 3, 3]], np.float32)
    # 8 x 8, cut to its lower right quarter: its origin lies at (-4, -4)
    seen, moved, labels, cut = jitter_detection(image, boxes, np.arange(3), masks, JitterParams(False, 2.0, 0.99, 0.99))
    assert moved.tolist() == [[0, 0, 4, 4], [0, 0, 2, 2]], "2 b - 4, clipped; the second object is gone"
    assert labels.tolist() == [0, 2]
    assert cut[0].all()
    assert np.argwhere(cut[1]).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert seen.shape == image.shape


def test_half_as_large_and_filled_by_hand():
    image = np.full((4, 4, 3), 9, np.uint8)
    masks = np.ones((1, 4, 4), bool)
    seen, moved, _, filled = jitter_detection(
        image, np.array([[0, 0, 4, 4]], np.float32), np.zeros(1, int), masks, JitterParams(False, 0.5, 0.5, 0.0)
    )
    assert moved.tolist() == [[1, 0, 3, 2]], "half, at 0.5 of the 3 places across and the topmost"
    assert box_of(filled[0]) == (1, 0, 3, 2)
    assert (seen[0:2, 1:3] == 9).all()
    assert seen[3, 3].tolist() == list(FILL)


@pytest.mark.parametrize("seed", range(20))
def test_boxes_stay_those_of_their_masks(seed):
    sample = objects(seed, size=(40, 56), number=6)
    params = jitter_params(draws(seed, 0, np.array([seed]))[0], flip=True, scale_range=(0.8, 1.25))
    image, boxes, labels, masks = jitter_detection(sample.image, sample.boxes, sample.labels, sample.masks, params)
    assert image.shape == sample.image.shape
    assert len(boxes) == len(labels) == len(masks)
    for box, mask in zip(boxes, masks, strict=True):
        assert np.abs(np.array(box_of(mask)) - box).max() <= 1.01, "a pixel of rounding"


def test_each_place_is_within():
    for share in (0.0, 0.3, 0.999):
        for inner in (3, 7, 8, 20):
            place = offset_of(JitterParams(False, 1.0, share, share), (inner, inner), (8, 8))
            low, high = sorted((0, 8 - inner))
            assert low <= place.top == place.left <= high
    assert offset_of(JitterParams(False, 1.0, 0.999, 0), (20, 20), (8, 8)) == (0, -12)


def test_label_maps_are_never_mixed():
    labels = np.array([[0, 5], [IGNORE, 9]])
    assert resize_labels(labels, 4, 4).tolist() == np.repeat(np.repeat(labels, 2, 0), 2, 1).tolist()
    assert resize_labels(np.arange(16).reshape(4, 4), 2, 2).tolist() == [[5, 7], [13, 15]]
    padded = crop_or_pad(labels, offset_of(JitterParams(False, 1, 0, 0), (2, 2), (3, 3)), 3, 3, IGNORE)
    assert padded.tolist() == [[0, 5, 255], [255, 9, 255], [255, 255, 255]]


def test_pixels_and_their_labels_stay_together():
    rng = np.random.default_rng(0)
    label_map = rng.integers(0, 5, (30, 44))
    image = np.repeat(label_map[..., None] * 40, 3, axis=2).astype(np.uint8)
    for number in range(10):
        params = jitter_params(draws(0, number, np.array([3]))[0], flip=True, scale_range=(1.0, 1.0))
        seen, labels = jitter_segmentation(image, label_map, params._replace(scale=1.0), 30)
        assert np.array_equal(seen[..., 0], labels * 40)
    seen, labels = jitter_segmentation(image, label_map, JitterParams(False, 0.5, 0.0, 0.0), 30)
    assert seen.shape == (30, 30, 3)
    assert (labels == IGNORE).sum() == 30 * 30 - 15 * 22


def test_scales_and_sides_are_drawn():
    params = [jitter_params(drawn, flip=True, scale_range=(0.5, 2.0)) for drawn in draws(1, 2, np.arange(4000))]
    scales = np.log2([each.scale for each in params])
    assert -1 <= scales.min() < -0.98
    assert 0.98 < scales.max() <= 1
    assert abs(scales.mean()) < 0.05
    assert abs(np.mean([each.flip for each in params]) - 0.5) < 0.03
    assert not any(jitter_params(drawn, flip=False, scale_range=None).flip for drawn in draws(1, 2, np.arange(50)))


def test_the_shorter_side_and_no_endless_longer_one():
    assert shorter_side_size(40, 60, 20) == (20, 30)
    assert shorter_side_size(60, 40, 10.4) == (16, 10)
    assert shorter_side_size(1, 2000, 512) == (512, 512 * MAX_ASPECT_RATIO)
    assert shorter_side_size(2000, 1, 0.4) == (6, 1)
    image, label_map = np.zeros((1, 2000, 3), np.uint8), np.ones((1, 2000), np.int64)
    seen, labels = jitter_segmentation(image, label_map, JitterParams(False, 2.0, 0.5, 0.5), 64)
    assert seen.shape == (64, 64, 3)
    assert (labels == 1).all()


def test_a_square_and_a_rectangle_are_the_centre_of_the_image():
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(31, 57, 3), dtype=np.uint8))
    for crop_pct in (1.0, 0.875):
        square = resize_crop(image, 32, crop_pct)
        assert np.array_equal(square, resize_crop(image, (32, 32), crop_pct))
        # Pillow's own crop box, computed by hand: the centre square of 31 x crop_pct pixels
        side = 31 * crop_pct
        box = ((57 - side) / 2, (31 - side) / 2, (57 + side) / 2, (31 + side) / 2)
        expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC, box=box))
        assert np.abs(square.astype(int) - expected).max() <= 1
    assert resize_crop(image, (16, 48), 0.9, "bilinear").shape == (16, 48, 3)
