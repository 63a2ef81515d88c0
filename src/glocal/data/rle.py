"""Masks as COCO stores them: run lengths, plain and compressed, and polygons.

https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c (Lin et al. 2014, https://arxiv.org/abs/1405.0312),
bit for bit, tested against pycocotools (tests/data/test_rle.py). Rewritten because annotation files are untrusted and
maskApi.c does not check sizes, counts and coordinates.

Runs count pixels down the columns, from left to right; the first run is of zeros.
"""

import math

import numpy as np

STEPS = 5  # a polygon is drawn on a grid this many times finer than pixels (maskApi.c, rleFrPoly)
MOST_STEPS = 4_000_000  # of one polygon on that grid, about 200 MB: the outline of a 64 Mpx image is 160,000
DIGITS = 6  # of 5 bits, that a compressed number can have: 2**29 is more than the pixels of any image


class MaskError(ValueError):
    """An invalid mask; the text is the reason."""


def decode_counts(text: str) -> np.ndarray:
    """Compressed run lengths, as pycocotools writes them -> plain ones.

    Returns:
        (R,) int64.

    Raises:
        MaskError: if the text is not valid.
    """
    try:
        digits = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise MaskError("damaged RLE (invalid characters)") from None
    if len(digits) == 0:
        return digits
    if digits.min() < 0 or digits.max() > 63:
        raise MaskError("damaged RLE (invalid characters)")
    last = np.flatnonzero(digits < 32)  # of each number; the other digits say that more follow
    if len(last) == 0 or last[-1] != len(digits) - 1:
        raise MaskError("damaged RLE (it ends inside a number)")
    lengths = np.diff(last, prepend=-1)
    if lengths.max() > DIGITS:
        raise MaskError("damaged RLE (a number that is too large)")
    place = np.arange(len(digits)) - np.repeat(last - lengths + 1, lengths)
    counts = np.add.reduceat((digits & 31) << 5 * place, last - lengths + 1)
    counts -= np.where(digits[last] & 16, 1 << 5 * lengths, 0)  # the sign
    counts[1::2] = np.cumsum(counts[1::2])  # from the fourth on, a number is the difference to the last but one
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def encode_counts(counts: np.ndarray) -> str:
    """Plain run lengths, (R,) int64 -> compressed ones, as pycocotools writes them."""
    left = np.asarray(counts, dtype=np.int64).copy()
    left[3:] -= counts[1:-2]
    digits = np.zeros((len(left), DIGITS + 1), dtype=np.uint8)
    used = np.zeros(digits.shape, dtype=bool)
    more = np.ones(len(left), dtype=bool)
    for place in range(DIGITS + 1):
        used[:, place] = more
        digit = left & 31
        left >>= 5
        more = more & (left != np.where(digit & 16, -1, 0))
        digits[:, place] = digit + 32 * more + 48
    return digits[used].tobytes().decode("ascii")


def check_counts(counts: np.ndarray, height: int, width: int) -> None:
    """Check that run lengths describe a mask of this size.

    Raises:
        MaskError: if one is negative, or their sum is not the number of pixels.
    """
    if len(counts) and counts.min() < 0:
        raise MaskError("damaged RLE (a negative count)")
    if len(counts) and counts.max() > height * width:  # a sum of such counts may not fit into 64 bits
        raise MaskError(
            f"RLE size differs from the image (a run of {counts.max()} pixels, the image has {width} x {height})"
        )
    if (pixels := int(counts.sum())) != height * width:
        raise MaskError(f"RLE size differs from the image (it has {pixels} pixels, the image {width} x {height})")


def mask_from_counts(counts: np.ndarray, height: int, width: int) -> np.ndarray:
    """Valid run lengths (`check_counts`) -> (H, W) bool."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def counts_from_mask(mask: np.ndarray) -> np.ndarray:
    """Mask, (H, W) bool -> (R,) int64 run lengths."""
    pixels = np.asarray(mask, dtype=bool).ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels, prepend=False))  # a mask that begins with ones has a first run of none
    return np.diff(changes, prepend=0, append=len(pixels)).astype(np.int64)


def check_polygon(points: np.ndarray, height: int, width: int) -> None:
    """Check a polygon, (P, 2) x y in pixels, against the size of its image.

    Raises:
        MaskError: if it has fewer than three points, is not finite, too far outside the image, or too long.
    """
    if len(points) < 3:
        raise MaskError(f"polygon with fewer than 3 points ({len(points)})")
    low, high, side = float(points.min()), float(points.max()), max(height, width)  # NaN, if one is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise MaskError("polygon with NaN or infinity")
    if low < -side or high > 2 * side:
        raise MaskError(f"polygon far outside the image (points from {low:g} to {high:g})")
    if len(points) * 3 * side * STEPS <= MOST_STEPS:
        return  # the common case, without the sum
    length = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if length * STEPS > MOST_STEPS:
        raise MaskError(f"polygon with too long an outline ({length:.0f} pixels)")


def mask_from_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Valid points (`check_polygon`), (P, 2) x y in pixels -> (H, W) bool, as maskApi.c's rleFrPoly draws it."""
    corners = np.trunc(STEPS * points + 0.5).astype(np.int64)
    u, v = _outline(corners, np.roll(corners, -1, axis=0))
    at = np.flatnonzero(u[1:] != u[:-1])
    x = (np.minimum(u[at], u[at + 1]) + 0.5) / STEPS - 0.5
    y = np.ceil(np.clip((np.minimum(v[at], v[at + 1]) + 0.5) / STEPS - 0.5, 0, height))
    column = (x == np.floor(x)) & (x >= 0) & (x < width)  # crossed in the middle of a pixel
    turns = np.sort((x[column] * height + y[column]).astype(np.int64))  # pixels from which on it is the other side
    return mask_from_counts(np.diff(turns, prepend=0, append=height * width), height, width)


def _outline(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of a fine grid along segments, each walked from its smaller coordinate and listed from start to end.

    Args:
        start: (P, 2) int64.
        end: likewise.

    Returns:
        u and v, (S,) int64 each.
    """
    size = np.abs(end - start)
    flat = size[:, 0] >= size[:, 1]  # one step a column; else one a row
    lengths = size.max(axis=1)
    long = np.where(flat, 0, 1)
    rows = np.arange(len(start))
    flip = start[rows, long] > end[rows, long]
    first, second = np.where(flip[:, None], end, start), np.where(flip[:, None], start, end)
    with np.errstate(invalid="ignore"):
        slope = np.nan_to_num((second - first)[rows, 1 - long] / lengths)  # 0 / 0 for a point that is there twice

    of = np.repeat(rows, lengths + 1)
    step = np.arange(len(of)) - np.repeat(np.cumsum(lengths + 1) - lengths - 1, lengths + 1)
    step = np.where(flip[of], lengths[of] - step, step)
    along = step + first[rows, long][of]
    across = np.trunc(first[rows, 1 - long][of] + slope[of] * step + 0.5).astype(np.int64)
    return np.where(flat[of], along, across), np.where(flat[of], across, along)
