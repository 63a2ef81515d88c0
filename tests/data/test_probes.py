"""Probes: the same images for all, and classes that nothing but the stated distance tells apart."""

import hashlib
import inspect
import itertools
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from glocal.data import builtin_names, load_data
from glocal.data.probes import PROBES, arrangement, load_probe, mix, pathfinder, texture
from glocal.errors import GlocalError

NAMES = tuple(PROBES)
DIGESTS = {
    "texture": "88055a52a7563228",
    "pathfinder": "3186199518a3ba7d",
    "arrangement": "5ac3236445dd059d",
    "mix": "19b6457e46350726",
}
"""Of the first 20 training images."""


def pixels(images, count):
    return np.stack([np.asarray(images.image(i))[..., 0] for i in range(count)])


def twins(probe, distance, count=40):
    """The same image of each class: (count, classes, H, W) drawn from the same generators."""
    labels = range(len(probe.CLASSES))
    return np.array([[probe.draw(np.random.default_rng(i), c, distance) for c in labels] for i in range(count)])


@pytest.mark.parametrize("name", NAMES)
def test_a_probe_is_a_data_set_of_its_own_name(name):
    source = load_data(name)
    assert name in builtin_names()
    assert source.name == name
    assert (len(source.train), len(source.val)) == (6000, 1500)
    for images in (source.train, source.val):
        known = {(c, d) for c in range(len(source.classes)) for d in PROBES[name].distances}
        counts = [((images.labels == c) & (images.distances == d)).sum() for c, d in known]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == len(images)
    assert (source.train.image(0).mode, source.train.image(0).size) == ("RGB", (32, 32))
    part = source.val.subset([7, 3])
    assert part.distances.tolist() == source.val.distances[[7, 3]].tolist()
    assert len(source.train.fraction(0.1, 0).distances) == 600


@pytest.mark.parametrize("name", NAMES)
def test_images_follow_from_seed_part_and_row_alone(name):
    source, again = load_probe(name), load_probe(name, train=60, val=60)
    assert np.array_equal(pixels(source.train, 50), pixels(again.train, 50))
    assert np.array_equal(pixels(pickle.loads(pickle.dumps(source.val)), 5), pixels(again.val, 5))
    assert source.train.image(1234) == source.train.subset([1234]).image(0)
    assert not np.array_equal(pixels(source.train, 1), pixels(source.val, 1))
    assert not np.array_equal(pixels(source.train, 1), pixels(load_probe(name, seed=1).train, 1))
    assert len({image.tobytes() for image in pixels(source.train, 300)} | set()) == 300
    assert source.fingerprint != load_probe(name, seed=1).fingerprint != again.fingerprint


def digest(name):
    """Of the first 20 training images."""
    images = load_data(name).train
    return hashlib.sha256(b"".join(images.image(i).tobytes() for i in range(20))).hexdigest()[:16]


def test_another_process_draws_the_same_and_the_version_stands_for_them():
    """Where this fails and the change is wanted, raise the probe's version in glocal/data/probes."""
    draw = f"for name in {NAMES}: print(digest(name))"
    code = f"import hashlib\nfrom glocal.data import load_data\n{inspect.getsource(digest)}\n{draw}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert dict(zip(NAMES, found, strict=True)) == {name: digest(name) for name in NAMES} == DIGESTS


@pytest.mark.parametrize("name", NAMES)
def test_one_distance_alone(name):
    distance = PROBES[name].distances[1]
    source = load_data(f"{name}:{distance}")
    assert source.name == f"{name}:{distance}"
    assert set(source.train.distances) == set(source.val.distances) == {distance}
    assert source.fingerprint != load_data(name).fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pathfinder:", "a distance (length of a contour) of"),
        ("pathfinder:far", "got pathfinder:far"),
        ("texture:3", "side of a block of 2x2 cells) of 2, 4, 6 pixels, got texture:3"),
        ("arrangement:10:14", "got arrangement:10:14"),
        ("textur", "nearest: texture"),
    ],
)
def test_a_wrong_distance_is_named(name, message):
    with pytest.raises(GlocalError) as error:
        load_data(name)
    assert message in str(error.value)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"val": 7}, {"train": 0}])
def test_numbers_out_of_range_are_named(wrong):
    with pytest.raises(GlocalError, match="expected a seed from 0 and at least 8 images per part"):
        load_probe("pathfinder", **wrong)


def test_a_folder_of_the_same_name_is_mentioned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_data("mix").warnings == ()
    (tmp_path / "mix").mkdir()
    assert load_data("mix").warnings == (
        "mix is the built-in probe; for the folder or file of that name here, use ./mix",
    )
    with pytest.raises(GlocalError, match="a folder without class folders"):
        load_data("./mix")


# texture


def products(images, rows, columns):
    """Mean product of the pixels (+1 or -1) at these offsets, over all places."""
    signs = np.where(images > 128, 1.0, -1.0)
    height, width = (size - max(offsets) for size, offsets in zip(signs.shape[1:], (rows, columns), strict=True))
    taken = [signs[:, r : r + height, c : c + width] for r, c in zip(rows, columns, strict=True)]
    return float(np.prod(taken, axis=0).mean())


@pytest.mark.parametrize("distance", texture.DISTANCES)
def test_textures_differ_in_the_parity_of_blocks_alone(distance):
    cell, images = distance // 2, twins(texture, distance, 1500)
    for label, sign in enumerate((1, -1)):
        own = images[:, label]
        block = products(own, (0, 0, cell, cell), (0, cell, 0, cell))
        assert block == pytest.approx(sign * (2 * texture.FAITHFUL - 1), abs=0.02)
        assert products(own, (0,), (0,)) == pytest.approx(0, abs=0.01)  # mean; variance follows, as squares are 1
        # spectrum: no two cells are correlated, near or far
        for row, column in itertools.product((0, 1, 2, 5, 9), repeat=2):
            if (row, column) != (0, 0) and max(row, column) * cell < 32:
                assert products(own, (0, row * cell), (0, column * cell)) == pytest.approx(0, abs=0.025)
        # third order
        for corner in ((0, 0, cell), (0, cell, cell)):
            assert products(own, (0, cell, cell), corner) == pytest.approx(0, abs=0.02)
        # what four corners of a rectangle say fades with its area
        far = 4 * cell
        assert abs(products(own, (0, 0, far, far), (0, far, 0, far))) < 0.06


def test_the_pairs_of_a_texture_are_uniform_exactly():
    """By enumeration of every draw of a 3x3 lattice, weighted: any three cells are as if tossed, in both classes."""
    tosses = np.array(list(itertools.product((0, 1), repeat=9))).reshape(-1, 3, 3)
    inner = tosses[:, 1:, 1:].reshape(len(tosses), -1).sum(1)
    weight = texture.FAITHFUL ** (4 - inner) * (1 - texture.FAITHFUL) ** inner / 2**5
    lattice = tosses.cumsum(1).cumsum(2) % 2
    for odd in (False, True):
        made = lattice.copy()
        if odd:
            made[:, 1::2, 1::2] ^= 1
        flat = made.reshape(len(made), 9)
        for chosen in itertools.combinations(range(9), 3):
            code = flat[:, chosen] @ [1, 2, 4]
            assert np.bincount(code, weight, minlength=8) == pytest.approx(np.full(8, 1 / 8))
        parity = made[:, :2, :2].reshape(-1, 4).sum(1) % 2
        assert np.bincount(parity, weight)[int(odd)] == pytest.approx(texture.FAITHFUL)


# arrangement


def parts_of(image):
    """{grey level: places of parts}, read off the pixels: whole squares of one extreme level."""
    found = {}
    for level in (arrangement.DARK, arrangement.LIGHT):
        ys, xs = np.nonzero(image == level)
        left = {(y, x) for y, x in zip(ys.tolist(), xs.tolist(), strict=True)}
        corners = []
        while left:
            y, x = min(left)
            square = {(y + i, x + j) for i in range(arrangement.PART) for j in range(arrangement.PART)}
            assert square <= left
            left -= square
            corners.append((y, x))
        found[level] = corners
    return found


def places(found):
    """Corners as one reads."""
    return sorted(itertools.chain(*found.values()))


@pytest.mark.parametrize("distance", arrangement.DISTANCES)
def test_arrangements_have_the_same_parts_at_the_same_places(distance):
    for images in twins(arrangement, distance):
        found = [parts_of(image) for image in images]
        kinds = {tuple((level, len(corners)) for level, corners in one.items()) for one in found}
        assert kinds == {((arrangement.DARK, 2), (arrangement.LIGHT, 2))}
        frames = {tuple(places(one)) for one in found}
        assert len(frames) == 1
        (top, left), (_, right), (bottom, _), _ = frames.pop()
        assert right - left == bottom - top == distance
        for name, one in zip(arrangement.CLASSES, found, strict=True):
            (y, x), (other_y, other_x) = one[arrangement.LIGHT]
            assert name == {(True, False): "rows", (False, True): "columns", (False, False): "diagonals"}[
                y == other_y, x == other_x
            ]  # fmt: skip


@pytest.mark.parametrize(("known", "right"), [(0, 1 / 3), (1, 1 / 3), (2, 2 / 3), (3, 1)])
def test_how_often_those_are_right_who_know_some_corners(known, right):
    """By counting images: the best answer to every combination of colours, for whichever corners are known."""
    images = np.concatenate([twins(arrangement, distance, 300) for distance in arrangement.DISTANCES])
    colours = np.array([[_corners(image) for image in of_class] for of_class in images.swapaxes(0, 1)])
    for corners in itertools.combinations(range(4), known):
        code = colours[..., list(corners)] @ (2 ** np.arange(known)) if known else np.zeros(colours.shape[:2], int)
        counts = np.stack([np.bincount(of_class, minlength=8) for of_class in code])  # (classes, combinations)
        assert counts.max(0).sum() / counts.sum() == pytest.approx(right, abs=0.02)


def _corners(image):
    """Whether each corner's part is light, as one reads."""
    found = parts_of(image)
    return [place in found[arrangement.LIGHT] for place in places(found)]


@pytest.mark.parametrize("distance", arrangement.DISTANCES)
def test_a_bag_of_patches_is_the_same_in_every_class(distance, monkeypatch):
    """On one grey, as the ground is drawn alike for all classes: what is made of single patches is the same."""
    monkeypatch.setattr(arrangement, "GROUND", (128, 128))
    for images in twins(arrangement, distance, 10):
        bags = [bag_of_patches(image, arrangement.GAP + 1) for image in images]
        assert all(bag == bags[0] for bag in bags)
    if distance == min(arrangement.DISTANCES):  # a fault that is planted: wider patches see two parts, or less of some
        assert bag_of_patches(images[0], arrangement.GAP + 2) != bag_of_patches(images[2], arrangement.GAP + 2)


def bag_of_patches(image, side):
    seen = np.lib.stride_tricks.sliding_window_view(image, (side, side)).reshape(-1, side * side)
    return Counter(map(bytes, seen))


def test_the_ground_of_an_arrangement_is_the_same_in_every_class():
    for images in twins(arrangement, 14, 20):
        ground = np.isin(images, arrangement.GROUND)
        assert (ground == ground[0]).all()
        assert (images[:, ground[0]] == images[0, ground[0]]).all()
        assert set(np.unique(images)) == {arrangement.DARK, arrangement.LIGHT, *arrangement.GROUND}


# pathfinder


@pytest.mark.parametrize("distance", pathfinder.DISTANCES)
def test_pathfinders_differ_in_the_place_of_one_marker_alone(distance):
    for i in range(40):
        joined, apart = (pathfinder.draw(np.random.default_rng(i), label, distance).astype(int) for label in (0, 1))
        contours, short = pathfinder.scene(np.random.default_rng(i), distance)
        assert (contours.shape[0], len(short)) == (2, pathfinder.DISTRACTORS)
        (p, q), (r, s) = contours[:, [0, -1]]
        assert abs(q - p) == pytest.approx(abs(r - p))
        assert abs(q - p) == pytest.approx(abs(s - r))
        lengths = np.abs(np.diff(contours)).sum(1)
        assert lengths == pytest.approx(distance, rel=0.02)
        assert np.abs(contours[0][:, None] - contours[1]).min() >= pathfinder.APART
        assert np.abs(short[:, :, None] - np.array([p, q, r])).min() > pathfinder.MARKER + pathfinder.WIDTH / 2
        for end, image in ((q, joined), (r, apart), (p, joined), (p, apart)):
            assert image[round(end.imag - 0.5), round(end.real - 0.5)] == pathfinder.SPOT
        y, x = np.nonzero(joined != apart)
        off = x + 0.5 + 1j * (y + 0.5)
        reach = pathfinder.MARKER + 1
        assert (np.minimum(abs(off - q), abs(off - r)) <= reach).all()  # elsewhere the two images are one


def test_markers_lie_alike_in_both_classes():
    """Over many scenes: place, distance and direction of the second marker, and the number of lit pixels."""
    found = {"joined": [], "apart": []}
    ink = {"joined": [], "apart": []}
    for i in range(4000):
        distance = pathfinder.DISTANCES[i % len(pathfinder.DISTANCES)]
        label = i // len(pathfinder.DISTANCES) % 2
        contours, _ = pathfinder.scene(np.random.default_rng(i), distance)
        (p, q), (r, _) = contours[:, [0, -1]]
        second = (q, r)[label]
        name = pathfinder.CLASSES[label]
        step = second - p
        found[name].append([p.real, p.imag, second.real, second.imag, abs(step), np.angle(step), np.angle(step * step)])
        ink[name].append(
            pathfinder.draw(np.random.default_rng(i), label, distance).astype(float).sum() if i < 800 else 0
        )
    for one, other in zip(np.transpose(found["joined"]), np.transpose(found["apart"]), strict=True):
        assert stats.ks_2samp(one, other).pvalue > 1e-3
    lit = [[value for value in ink[name] if value] for name in ink]
    assert stats.ks_2samp(*lit).pvalue > 1e-3


def test_most_scenes_are_nearly_straight_and_upright_and_a_few_are_not():
    contours = np.array([pathfinder.scene(np.random.default_rng(i), 14)[0][0] for i in range(1000)])
    ends = contours[:, -1] - contours[:, 0]
    stretched = np.abs(ends) / np.abs(np.diff(contours)).sum(1)
    off = np.degrees(np.abs((np.angle(ends) + np.pi / 4) % (np.pi / 2) - np.pi / 4))
    assert np.median(stretched) > 0.995
    assert (stretched < 0.9).mean() > 0.02
    assert np.median(off) < 5
    assert (off > 15).mean() > 0.02


# mix


def test_either_half_of_a_mix_says_half():
    """Classes that share their texture differ in the layout alone, and the other way round."""
    assert mix.CLASSES == ("even rows", "even columns", "odd rows", "odd columns")
    levels = {mix.DARK, mix.LIGHT}
    for images in twins(mix, 14, 30):
        layouts = [_corners(image) for image in images]
        assert layouts[0] == layouts[2] != layouts[1] == layouts[3]
        for texture_ in (0, 2):
            one, other = images[texture_ : texture_ + 2]
            assert set(np.unique(one[one != other])) == {arrangement.DARK, arrangement.LIGHT}
        for layout in (0, 1):
            one, other = images[layout], images[2 + layout]
            assert set(np.unique(one[one != other])) == levels
