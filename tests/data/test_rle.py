"""Run lengths and polygons against pycocotools, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from glocal.data.rle import (
    MaskError,
    check_counts,
    check_polygon,
    counts_from_mask,
    decode_counts,
    encode_counts,
    mask_from_counts,
    mask_from_polygon,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

sizes = st.integers(1, 70)


@given(sizes, sizes, st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_masks_and_run_lengths_are_those_of_pycocotools(height, width, density, seed):
    coarse = np.random.default_rng(seed).random((height, width)) < density
    theirs = coco.encode(np.asfortranarray(coarse.astype(np.uint8)))
    counts = counts_from_mask(coarse)
    text = encode_counts(counts)
    assert text == theirs["counts"].decode()
    assert decode_counts(text).tolist() == counts.tolist()
    assert np.array_equal(mask_from_counts(counts, height, width), coarse)
    check_counts(counts, height, width)


@pytest.mark.parametrize("runs", [[5_000_000, 3, 1, 9_999_996], [15_000_000], [0, 15_000_000], [7, 14_999_900, 93]])
def test_long_runs(runs):
    mask = mask_from_counts(np.array(runs), 3000, 5000)
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert encode_counts(np.array(runs)) == theirs
    assert decode_counts(theirs).tolist() == runs
    assert np.array_equal(coco.decode({"size": [3000, 5000], "counts": theirs.encode()}) > 0, mask)


def drawn_by_pycocotools(points, height, width):
    return coco.decode(coco.frPyObjects([points.ravel().tolist()], height, width))[:, :, 0] > 0


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(3, 30),
    st.sampled_from([0, 1, 2, 6]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=500, deadline=None)
def test_polygons_are_drawn_as_pycocotools_draws_them(height, width, count, digits, seed):
    """Also points outside, repeated ones, self-crossings, and coordinates on pixels' edges and centres."""
    rng = np.random.default_rng(seed)
    points = np.round(rng.uniform(-0.3, 1.3, (count, 2)) * [width, height], digits)
    points[rng.integers(count)] = points[rng.integers(count)]
    if rng.random() < 0.3:
        points[:, rng.integers(2)] = np.repeat(points[:1, 0], count)  # on one line
    check_polygon(points, height, width)
    assert np.array_equal(mask_from_polygon(points, height, width), drawn_by_pycocotools(points, height, width))


def test_a_square_of_whole_pixels_is_that_square():
    mask = mask_from_polygon(np.array([[2.0, 1], [5, 1], [5, 3], [2, 3]]), 6, 8)
    assert mask.sum() == 6
    assert mask[1:3, 2:5].all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\u00e9", "invalid characters"),
        (" !", "invalid characters"),
        ("ppp", "invalid characters"),
        ("0P", "ends inside a number"),
        ("o" * 6 + "0", "too large"),
    ],
)
def test_text_that_is_no_rle_is_refused(text, message):
    with pytest.raises(MaskError, match=message):
        decode_counts(text)


@given(st.text(alphabet=[chr(i) for i in range(48, 112)], max_size=60))
def test_any_text_is_decoded_or_refused(text):
    try:
        check_counts(decode_counts(text), 7, 9)
    except MaskError:
        return
    assert mask_from_counts(decode_counts(text), 7, 9).shape == (7, 9)


def test_counts_that_do_not_fit_are_refused():
    check_counts(np.array([10, 20, 33]), 7, 9)
    with pytest.raises(MaskError, match=r"size differs from the image \(it has 62 pixels, the image 9 x 7\)"):
        check_counts(np.array([10, 20, 32]), 7, 9)
    with pytest.raises(MaskError, match="negative"):
        check_counts(np.array([70, -7]), 7, 9)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[1, 1], [2, 2]], r"fewer than 3 points \(2\)"),
        ([[1, 1], [2, np.nan], [3, 3]], "NaN"),
        ([[1, 1], [2, np.inf], [3, 3]], "NaN or infinity"),
        ([[1, 1], [2, 1e9], [3, 3]], "far outside"),
        ([[1, 1], [-300, 1], [3, 3]], "far outside"),
        ([[0, 0], [200, 200]] * 4001, "too long an outline"),
    ],
)
def test_polygons_that_cannot_be_drawn_are_refused(points, message):
    with pytest.raises(MaskError, match=message):
        check_polygon(np.array(points, dtype=float), 100, 200)
