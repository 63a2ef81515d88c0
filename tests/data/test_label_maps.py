"""Images and label maps in the layouts of ADE20K, Cityscapes, Pascal VOC and a plain one."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glocal.data import IGNORE, ImageError, load_segmentation, measured, open_image, scan
from glocal.errors import GlocalError
from tests.data.annotating import label_png, voc_folder
from tests.data.making import flipped, picture


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def load(path, **options):
    return load_segmentation(str(path), progress=False, **options)


def pairs(
    images: Path,
    maps: Path,
    names: list[str],
    values: list[int],
    *,
    seed: int = 0,
    ends: tuple[str, str] = (".jpg", ".png"),
    palette: bool = False,
) -> dict[str, np.ndarray]:
    """Pictures of odd sizes and maps of some of the values, all of them in the first; name -> map."""
    rng = np.random.default_rng(seed)
    written = {}
    for number, name in enumerate(names):
        width, height = (int(side) for side in rng.integers(20, 50, 2))
        path = images / f"{name}{ends[0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(100 * seed + number, (width, height)).save(path)
        labels = rng.choice(np.array(values, dtype=np.uint8), (height, width))
        labels.flat[: len(values)] = values
        label_png(maps / f"{name}{ends[1]}", labels, palette=palette)
        written[name] = labels
    return written


def plain(root: Path, train: int = 4, val: int = 2, values: tuple[int, ...] = (0, 1, 2, 255), **options) -> Path:
    for part, count, seed in (("train", train, 1), ("val", val, 2)):
        names = [f"{i:03d}" for i in range(count)]
        pairs(root / "images" / part, root / "masks" / part, names, list(values), seed=seed, **options)
    return root


def reasons(source) -> list[tuple[str, str]]:
    return [(bad.path, bad.reason) for bad in source.skipped]


@pytest.mark.parametrize("palette", [False, True])
def test_plain_folders_are_read_as_they_are(tmp_path, palette):
    names = ["a", "b/c", "x.y"]
    maps = pairs(tmp_path / "images/train", tmp_path / "masks/train", names, [0, 1, 4, 255], palette=palette)
    pairs(tmp_path / "images/val", tmp_path / "masks/val", ["v"], [0, 1, 3], seed=3)
    source = load(tmp_path)
    assert source.classes == ("0", "1", "2", "3", "4")
    assert source.split == "train and val as in the data"
    assert source.train.paths == ("images/train/a.jpg", "images/train/b/c.jpg", "images/train/x.y.jpg")
    for name, sample in zip(names, source.train, strict=True):
        assert np.array_equal(sample.image, np.asarray(open_image(tmp_path / sample.path)))
        assert (sample.image.dtype, sample.label_map.dtype) == (np.uint8, np.int64)
        assert np.array_equal(sample.label_map, maps[name])
        assert sample.label_map.max() == IGNORE
    assert source.counts["train"].tolist() == [3, 3, 0, 0, 3]
    assert "classes without pixels in train: 2 (2, 3)" in source.warnings
    again = pickle.loads(pickle.dumps(source.train.subset([2, 1])))
    assert np.array_equal(again[0].label_map, maps["x.y"])
    with pytest.raises(IndexError):
        again[2]


def test_names_of_classes_come_from_classes_txt(tmp_path):
    root = plain(tmp_path)
    (root / "classes.txt").write_text("background\nant\r\nbee\ncat\n\n")
    source = load(root)
    assert source.classes == ("background", "ant", "bee", "cat")
    (root / "classes.txt").write_text("background\nant\n")
    with pytest.raises(GlocalError, match=r"label map has values without a class \(2; there are 2 classes\)"):
        load(root)
    for text, message in (
        ("a\n\nb", "got nothing in line 2"),
        ("a\nb\na", "got a twice"),
        ("", "got nothing"),
        ("one", "expected 2 to 255 classes"),
        ("\n".join(map(str, range(256))), "expected 2 to 255 classes .* got 256"),
    ):
        (root / "classes.txt").write_text(text)
        with pytest.raises(GlocalError, match=message):
            load(root)
    (root / "classes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(GlocalError, match="expected UTF-8"):
        load(root)


def test_undivided_images_are_split(tmp_path):
    names = [f"{i:02d}" for i in range(10)]
    pairs(tmp_path / "images", tmp_path / "masks", names, [0, 1])
    source = load(tmp_path)
    assert (len(source.train), len(source.val)) == (8, 2)
    assert source.split == "20% of the images held out for val, split seed 0"
    assert not set(source.train.paths) & set(source.val.paths)
    assert load(tmp_path, split_seed=1).val.paths != source.val.paths
    for folder in ("images", "masks"):
        (tmp_path / folder).rename(tmp_path / "moved")
        (tmp_path / folder).mkdir()
        (tmp_path / "moved").rename(tmp_path / folder / "train")
    assert len(load(tmp_path).val) == 2
    (tmp_path / "images/validation").mkdir()
    with pytest.raises(GlocalError, match=r"expected a readable folder, got .*masks/validation"):
        load(tmp_path)


def test_ade20k_counts_classes_from_one(tmp_path):
    pairs(tmp_path / "images/training", tmp_path / "annotations/training", ["a", "b"], [0, 1, 2, 150])
    pairs(tmp_path / "images/training", tmp_path / "annotations/training", ["d"], [0, 1], seed=2)
    pairs(tmp_path / "images/validation", tmp_path / "annotations/validation", ["c"], [0, 3], seed=1)
    source = load(tmp_path)
    assert len(source.classes) == 150
    assert set(np.unique(source.train[0].label_map)) == {IGNORE, 0, 1, 149}
    assert set(np.unique(source.val[0].label_map)) == {IGNORE, 2}
    header = "Idx\tRatio\tTrain\tVal\tName\n"
    rows = [f"{i}\t0.1\t10\t1\t{'wall' if i == 1 else f'thing {i}, object'}\n" for i in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text(header + "".join(rows))
    assert load(tmp_path).classes[:2] == ("wall", "thing 2, object")
    (tmp_path / "classes.txt").write_text("wall\nfloor\nsky\n")
    source = load(tmp_path, on_error="skip")  # 150 is no class now
    assert source.classes == ("wall", "floor", "sky")
    assert len(source.skipped) == 2


def cityscapes(root: Path, kind: str, values: list[int]) -> dict[str, np.ndarray]:
    for part, seed in (("train", 1), ("val", 2)):
        written = pairs(
            root / "leftImg8bit" / part,
            root / "gtFine" / part,
            ["aachen/aachen_000000_000019", "bonn/bonn_000001_000019"],
            values,
            seed=seed,
            ends=("_leftImg8bit.png", f"_gtFine_{kind}.png"),
        )
        for name in written:  # files that are there too, and no label maps
            (root / "gtFine" / part / f"{name}_gtFine_polygons.json").write_text("{}")
            label_png(root / "gtFine" / part / f"{name}_gtFine_instanceIds.png", np.full((3, 3), 26001, np.uint16))
    return written


def test_cityscapes_has_19_classes_by_either_file(tmp_path):
    names = (
        "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
    )
    names += "rider, car, truck, bus, train, motorcycle, bicycle"
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    others = [i for i in range(34) if i not in ids]
    maps = cityscapes(tmp_path / "ids", "labelIds", [*ids, *others, 255])  # 255 is -1, the licence plate
    source = load(tmp_path / "ids")
    assert ", ".join(source.classes) == names
    label_map = source.val[1].label_map
    theirs = maps["bonn/bonn_000001_000019"]
    for value, label in [*zip(ids, range(19), strict=True), *((other, 255) for other in (*others, 255))]:
        assert (label_map[theirs == value] == label).all()
    maps = cityscapes(tmp_path / "both", "labelIds", ids)
    maps = cityscapes(tmp_path / "both", "labelTrainIds", [0, 5, 18, 255])
    assert np.array_equal(load(tmp_path / "both").val[1].label_map, maps["bonn/bonn_000001_000019"])
    (tmp_path / "both/gtFine/train/aachen/aachen_000000_000019_gtFine_labelTrainIds.png").unlink()
    assert load(tmp_path / "both").skipped == ()  # those by id are whole
    (tmp_path / "both/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png").unlink()
    ((path, reason),) = reasons(load(tmp_path / "both", on_error="skip"))
    assert path == "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    assert reason == "no label map of this name in gtFine/train"


def test_pascal_voc_has_its_21_classes(tmp_path):
    root = voc_folder(tmp_path, {"train": 3, "val": 2}, task="Segmentation")
    for path in (root / "JPEGImages").iterdir():
        width, height = open_image(path).size
        values = np.full((height, width), 20, np.uint8)
        values[:2] = [[0], [255]]
        label_png(root / "SegmentationClass" / f"{path.stem}.png", values, palette=True)
    source = load(root)
    assert (source.classes[0], source.classes[20], len(source.classes)) == ("background", "tvmonitor", 21)
    assert set(np.unique(source.train[2].label_map)) == {0, 20, 255}
    assert (len(source.train), len(source.val)) == (3, 2)
    (root / "SegmentationClass/train_0001.png").unlink()
    (root / "JPEGImages/train_0002.jpg").unlink()
    assert reasons(load(root, on_error="skip")) == [
        ("JPEGImages/train_0001.jpg", "no label map of this name"),
        ("JPEGImages/train_0002", "no such file (in JPEGImages, with any extension)"),
    ]
    shutil.rmtree(root / "ImageSets")
    assert len(load(root, on_error="skip").train) == 2  # of the three with both


def test_files_that_cannot_be_used_are_named(tmp_path):
    root = plain(tmp_path, train=9)
    (root / "images/train/000.jpg").write_bytes(b"no image")
    (root / "masks/train/001.png").write_bytes(b"no image")
    label_png(root / "masks/train/002.png", np.zeros((7, 9), np.uint8))
    size = open_image(root / "images/train/003.jpg").size
    label_png(root / "masks/train/003.png", np.full(size[::-1], 7, np.uint8))
    (root / "masks/train/004.png").unlink()
    (root / "images/train/005.jpg").unlink()
    picture(1, open_image(root / "images/train/006.jpg").size).save(root / "masks/train/006.png")
    picture(1).save(root / "images/train/007.webp")
    content = (root / "masks/train/008.png").read_bytes()
    (root / "masks/train/008.png").write_bytes(flipped(content, 60))
    (root / "classes.txt").write_text("a\nb\nc\n")
    (root / "masks/train/.hidden.png").write_bytes(b"")
    source = load(root, on_error="skip")
    found = reasons(source)
    assert [path for path, _ in found] == [
        "images/train/000.jpg",
        "images/train/004.jpg",
        "images/train/007.webp",
        "masks/train/001.png",
        "masks/train/002.png",
        "masks/train/003.png",
        "masks/train/005.png",
        "masks/train/006.png",
        "masks/train/008.png",
    ]
    expected = [
        "not a readable JPEG",
        "no label map of this name in masks/train",
        "the same name as images/train/007.jpg",
        "not a readable PNG",
        "label map size differs from its image (9 x 7, not ",
        "label map has values without a class (7; there are 3 classes)",
        "no image of this name in images/train",
        "label map: expected a palette or a grey PNG, got one of mode RGB",
        "cannot be decoded",
    ]
    for (_, reason), start in zip(found, expected, strict=True):
        assert reason.startswith(start)
    assert source.train.paths == ("images/train/007.jpg",)
    with pytest.raises(GlocalError, match=r"got 9 unusable\n.*images/train/000.jpg: not a readable"):
        load(root)


def test_values_of_16_bits_are_none_of_the_classes(tmp_path):
    root = plain(tmp_path)
    size = open_image(root / "images/train/000.jpg").size
    label_png(root / "masks/train/000.png", np.arange(size[0] * size[1], dtype=np.uint16).reshape(size[::-1]))
    label_png(root / "masks/train/001.png", np.full(open_image(root / "images/train/001.jpg").size[::-1], 1, np.uint16))
    assert len(load(root, on_error="skip").train) == 3
    assert set(np.unique(load(root, on_error="skip").train[0].label_map)) == {1}  # 16 bits with a class are fine


def test_masks_of_0_and_255_are_a_mistake(tmp_path):
    with pytest.raises(GlocalError, match=r"only 0 and 255 \(ignored pixels\); store"):
        load(plain(tmp_path, values=(0, 255)))


def test_black_and_white_masks_are_classes_0_and_1(tmp_path):
    root = plain(tmp_path, values=(0, 255))
    for path in (root / "masks").rglob("*.png"):
        with Image.open(path) as image:
            bits = image.convert("1")
        bits.save(path)
    source = load(root)
    assert source.classes == ("0", "1")
    assert set(np.unique(source.train[0].label_map)) == {0, 1}


def test_what_is_no_data_is_named(tmp_path):
    with pytest.raises(GlocalError, match="expected a folder or items-on-photos, got nothing"):
        load(tmp_path / "missing")
    with pytest.raises(GlocalError, match="got none of these pairs of folders"):
        load(tmp_path)
    root = plain(tmp_path / "data", train=1)
    with pytest.raises(GlocalError, match="on_error"):
        load(root, on_error="go")
    with pytest.raises(GlocalError, match="val_fraction"):
        load(root, val_fraction=0)
    (root / "images/train/000.jpg").write_bytes(b"")
    with pytest.raises(GlocalError, match=r"of train, got no usable ones\n  images/train/000.jpg: empty file"):
        load(root, on_error="skip")


def test_links_are_followed_only_if_asked(tmp_path):
    root = plain(tmp_path / "data", train=3)
    (root / "masks/train/001.png").rename(tmp_path / "001.png")
    (root / "masks/train/001.png").symlink_to(tmp_path / "001.png")
    (root / "images/train/loop").symlink_to(root / "images/train")
    source = load(root, on_error="skip")
    assert reasons(source) == [("images/train/001.jpg", "no label map of this name in masks/train")]
    assert "links were not followed: 2 (images/train/loop, masks/train/001.png)" in source.warnings[0]
    assert len(load(root, follow_links=True).train) == 3
    (root / "masks").rename(tmp_path / "masks")
    (root / "masks").symlink_to(tmp_path / "masks")
    with pytest.raises(GlocalError, match="got a link"):
        load(root)


def test_the_fingerprint_is_that_of_both_files(tmp_path):
    root = plain(tmp_path / "data")
    before = load(root).fingerprint
    assert load(shutil.copytree(root, tmp_path / "copy")).fingerprint == before
    labels = np.asarray(Image.fromarray(load(root).train[0].label_map.astype(np.uint8)))
    changed = labels.copy()
    changed[0, 0] = 2
    label_png(root / "masks/train/000.png", changed)
    assert load(root).fingerprint != before


def test_the_same_image_in_train_and_val_is_told(tmp_path):
    root = plain(tmp_path)
    for folder, end in (("images", "jpg"), ("masks", "png")):
        shutil.copy(root / folder / f"train/001.{end}", root / folder / f"val/000.{end}")
    assert any("images/val/000.jpg = images/train/001.jpg" in warning for warning in load(root).warnings)


def test_files_are_decoded_once_and_remembered(tmp_path, monkeypatch):
    root = plain(tmp_path, train=scan.FEW + 6)
    (root / "masks/train/003.png").write_bytes(b"")
    first = load(root, on_error="skip", workers=2)
    read = []
    measure_file = measured.measure_file
    monkeypatch.setattr(
        measured, "measure_file", lambda folder, name, **rest: read.append(name) or measure_file(folder, name, **rest)
    )
    again = load(root, on_error="skip")
    assert (again.fingerprint, again.skipped) == (first.fingerprint, first.skipped)
    assert read == ["masks/train/003.png"]
    assert again.counts["train"].tolist() == first.counts["train"].tolist()


def test_a_file_that_changes_later_is_named(tmp_path):
    root = plain(tmp_path)
    source = load(root)
    size = source.train[0].label_map.shape
    label_png(root / "masks/train/000.png", np.full(size, 9, np.uint8))
    with pytest.raises(ImageError, match=r"masks/train/000.png: has changed .* values without a class"):
        source.train[0]
    label_png(root / "masks/train/000.png", np.full(size, 300, np.uint16))
    with pytest.raises(ImageError, match="values without a class"):
        source.train[0]
    label_png(root / "masks/train/000.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(ImageError, match="its size differs from its image's"):
        source.train[0]


def test_60_damaged_masks_are_listed_or_fine(tmp_path):
    root = plain(tmp_path)
    file = root / "masks/train/002.png"
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    listed = 0
    for _ in range(60):
        at = int(rng.integers(len(content)))
        harmed = (flipped(content, at), content[:at], content[:at] + os.urandom(9) + content[at:])[int(rng.integers(3))]
        file.write_bytes(harmed)
        source = load(root, on_error="skip")
        listed += bool(source.skipped)
        assert all(bad.reason and bad.path == "masks/train/002.png" for bad in source.skipped)
        for sample in source.train:
            assert set(np.unique(sample.label_map)) <= {0, 1, 2, 255}
    assert listed > 50
