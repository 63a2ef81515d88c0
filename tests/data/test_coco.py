"""COCO's JSON: what pycocotools reads from it, and everything that can be wrong with it."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from glocal.data import ImageError, SkippedObject, annotated, load_detection, measured, open_image, scan
from glocal.data.objects import where
from glocal.errors import GlocalError
from tests.data.annotating import coco_folder, coco_part, harmed_text, harmed_tree
from tests.data.making import encoded, picture

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
ALL_KINDS = ("polygon", "runs", "text")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def load(path, **options):
    return load_detection(str(path), progress=False, **options)


def changed(root: Path, change, part: str = "train") -> Path:
    """The folder with ``change(content)`` done to one of its JSON files."""
    file = root / "annotations" / f"instances_{part}2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return root


def reasons(source) -> list[tuple[str, str]]:
    return [(where(bad), bad.reason) for bad in source.skipped]


@pytest.mark.parametrize("kinds", [("polygon",), ("runs",), ("text",), ALL_KINDS])
def test_boxes_masks_and_labels_are_what_pycocotools_reads(tmp_path, kinds, capsys):
    root = coco_folder(tmp_path / "data", [3, 0, 1, 12], [2, 0], kinds=kinds)
    changed(root, lambda content: content["annotations"][2].update(iscrowd=1))
    source = load(root)
    assert source.classes == ("ant", "bee", "cat")
    assert source.category_ids == (3, 7, 90)
    assert source.split == "train and val as in the data"
    assert (source.skipped, len(source.train), len(source.val)) == ((), 4, 2)
    for part in ("train", "val"):
        dataset = getattr(source, part)
        theirs = COCO(root / "annotations" / f"instances_{part}2017.json")
        for sample in dataset:
            image = theirs.loadImgs(sample.image_id)[0]
            path = f"{part}2017/{image['file_name']}"
            assert sample.path == path
            assert np.array_equal(sample.image, np.asarray(open_image(root / path)))
            expected = theirs.loadAnns(theirs.getAnnIds(sample.image_id))
            number = len(expected)
            assert sample.masks.shape == (number, *sample.image.shape[:2])
            x, y, w, h = np.array([one["bbox"] for one in expected], dtype=np.float64).reshape(-1, 4).T
            assert np.allclose(sample.boxes, np.stack([x, y, x + w, y + h], axis=1), atol=1e-4)
            assert [source.category_ids[label] for label in sample.labels] == [one["category_id"] for one in expected]
            assert np.allclose(sample.area, [one["area"] for one in expected])
            assert sample.crowd.tolist() == [bool(one["iscrowd"]) for one in expected]
            for mask, one in zip(sample.masks, expected, strict=True):
                assert np.array_equal(mask, theirs.annToMask(one) > 0)
            dtypes = {"image": "uint8", "boxes": "float32", "labels": "int64", "crowd": "bool", "area": "float32"}
            assert {name: str(getattr(sample, name).dtype) for name in dtypes} == dtypes
            assert sample.image.flags.writeable
    counted = [one["category_id"] for one in theirs.dataset["annotations"]]
    assert source.counts["val"].tolist() == [counted.count(key) for key in source.category_ids]
    assert source.counts["train"].sum() == 15  # 16, and one of them is a crowd


def test_none_and_one_and_500_objects(tmp_path):
    source = load(coco_folder(tmp_path / "data", [500, 0, 1], [0, 0], kinds=ALL_KINDS))
    assert [len(sample.boxes) for sample in source.train] == [500, 0, 1]
    empty = source.train[1]
    assert (empty.boxes.shape, empty.labels.shape, empty.area.shape, empty.crowd.shape) == ((0, 4), (0,), (0,), (0,))
    assert empty.masks.shape == (0, *empty.image.shape[:2])
    assert "classes without objects in val: 3 (ant, bee, cat)" in source.warnings


def test_area_that_is_not_given_is_that_of_the_mask_or_the_box(tmp_path):
    def without_area(content):
        for one in content["annotations"]:
            one.pop("area")

    sample = load(changed(coco_folder(tmp_path / "masks", [4], [1]), without_area)).train[0]
    assert sample.area.tolist() == sample.masks.sum(axis=(1, 2)).tolist()
    sample = load(changed(coco_folder(tmp_path / "boxes", [4], [1], kinds=("box",)), without_area)).train[0]
    assert sample.masks is None
    width, height = (sample.boxes[:, 2:] - sample.boxes[:, :2]).T
    assert np.allclose(sample.area, width * height)


def test_masks_that_only_some_objects_have_are_not_used(tmp_path):
    source = load(coco_folder(tmp_path / "data", [4], [1], kinds=("polygon", "box")))
    assert source.train[0].masks is None
    assert "masks are ignored: 2 of 4 objects have none" in source.warnings


def test_sets_are_picked_from_pickled_and_walked_through(tmp_path):
    train = load(coco_folder(tmp_path / "data", [1, 2, 3], [1])).train
    part = train.subset([2, 0])
    assert [sample.image_id for sample in part] == [30, 10]
    assert part.paths == (train.paths[2], train.paths[0])
    again = pickle.loads(pickle.dumps(part))
    assert np.array_equal(again[0].masks, train[2].masks)
    assert len(train.subset([])) == 0
    with pytest.raises(IndexError):
        train[3]


def test_file_alone_is_split_by_images_and_seed(tmp_path):
    content = coco_part(tmp_path / "images", [1] * 20)
    file = tmp_path / "all.json"
    file.write_text(json.dumps(content))
    source = load(file)
    assert (len(source.train), len(source.val)) == (16, 4)
    assert source.split == "20% of the images held out for val, split seed 0"
    assert not set(source.train.paths) & set(source.val.paths)
    assert load(file).val.paths == source.val.paths
    assert load(file, split_seed=1).val.paths != source.val.paths
    assert load(file, split_seed=1).fingerprint != source.fingerprint
    assert len(load(file, val_fraction=0.5).val) == 10
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "images", moved / "pictures")
    shutil.copy(file, moved / "some.json")
    there = load(f"{moved}/some.json:{moved}/pictures")
    assert there.fingerprint == source.fingerprint  # it does not matter where data is
    assert there.val.paths == tuple(path.replace("images", "pictures") for path in source.val.paths)


def test_train_and_val_can_be_given_each(tmp_path):
    for part, first in (("train", 1), ("val", 501)):
        content = coco_part(tmp_path / f"{part},x" / "pictures", [2, 1], seed=first, first=first)
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    names = [f"{part}={tmp_path}/{part}.json:{tmp_path}/{part},x/pictures" for part in ("train", "val")]
    source = load(",".join(names))
    assert (len(source.train), len(source.val)) == (2, 2)
    assert source.val[0].image_id == 5010
    assert len(load(names[0]).val) == 1  # of two


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_{}2017.json", "images/{}2017"),
        ("annotations/instances_{}.json", "{}"),
        ("annotations/{}.json", "images/{}"),
        ("annotations/instances_{}2017.json", "images"),
        ("{}/_annotations.coco.json", "{}"),
    ],
)
def test_images_are_found_in_the_usual_places(tmp_path, annotations, images):
    for part, first in (("train", 1), ("val", 501)):
        folder = tmp_path / images.format(part)
        content = coco_part(folder, [2, 1], seed=first, first=first)
        file = tmp_path / annotations.format(part)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    source = load(tmp_path)
    assert source.train.paths[0] == os.path.join(images.format("train"), "001.png")
    assert source.val.paths[0] == os.path.join(images.format("val"), "501.png")


def of_first(**values):
    return lambda content: content["annotations"][0].update(values)


SQUARE = [1, 1, 9, 1, 9, 9, 1, 9]
BAD_OBJECTS = {
    "box outside the image": of_first(bbox=[500, 5, 10, 10]),
    "box outside the image ": of_first(bbox=[-20, 5, 20, 10]),
    "box without area": of_first(bbox=[5, 5, 0, 10]),
    "box without area ": of_first(bbox=[5, 5, 10, -3]),
    "box with NaN or far outside": of_first(bbox=[5, float("nan"), 10, 10]),
    "box with NaN or far outside ": of_first(bbox=[5, float("inf"), 10, 10]),
    "box with a number that is too large": of_first(bbox=[5, 10**400, 10, 10]),
    "box with a value that is not a number": of_first(bbox=[5, "5", 10, 10]),
    "box with a value that is not a number ": of_first(bbox=[5, True, 10, 10]),
    "no box (expected bbox with 4 numbers)": of_first(bbox=[5, 5, 10]),
    "no box (expected bbox with 4 numbers) ": of_first(bbox=None),
    "invalid area (0)": of_first(area=0),
    "invalid area (-3)": of_first(area=-3),
    "invalid area (nan)": of_first(area=float("nan")),
    "area with a value that is not a number": of_first(area="7"),
    "unknown category (8)": of_first(category_id=8),
    "unknown category": of_first(category_id=[1]),
    "unknown image": of_first(image_id=77),
    "unknown image ": of_first(image_id=None),
    "the same id as another annotation": of_first(id=1001),
    "no id (expected an integer or text)": of_first(id=1.5),
    "no id (expected an integer or text) ": lambda content: content["annotations"][0].pop("id"),
    "expected an object, got something else": lambda content: content["annotations"].__setitem__(0, [1]),
    "iscrowd is neither 0 nor 1": of_first(iscrowd=2),
    "polygon with fewer than 3 points (2)": of_first(segmentation=[[1, 1, 5, 5]]),
    "polygon with fewer than 3 points (0)": of_first(segmentation=[[]]),
    "polygon is not a list of x and y": of_first(segmentation=[[1, 1, 5, 5, 3, 3, 3]]),
    "polygon is not a list of x and y ": of_first(segmentation=SQUARE),
    "polygon with NaN or infinity": of_first(segmentation=[[*SQUARE, float("nan"), 3]]),
    "polygon with a value that is not a number": of_first(segmentation=[[*SQUARE, None, 3]]),
    "polygon far outside the image": of_first(segmentation=[[*SQUARE, 1e6, 3]]),
    "segmentation is neither polygons nor RLE": of_first(segmentation="text"),
    "RLE size differs from the image": of_first(segmentation={"size": [5, 5], "counts": [25]}),
    "RLE size differs from the image ": of_first(segmentation={"counts": [25]}),
}


def of_rle(counts):
    def change(content):
        image = content["images"][0]
        size = [image["height"], image["width"]]
        content["annotations"][0]["segmentation"] = {"size": size, "counts": counts}

    return change


BAD_OBJECTS |= {
    "RLE size differs from the image (it has 25 pixels": of_rle([20, 5]),
    "RLE size differs from the image (a run of": of_rle([2**40, 5]),
    "damaged RLE (a negative count)": of_rle([20, -5]),
    "damaged RLE (a count is not an integer": of_rle([20.5, 5]),
    "damaged RLE (a count is not an integer, or": of_rle([1e300]),
    "RLE with a value that is not a number": of_rle(["a"]),
    "damaged RLE (no counts)": of_rle(None),
    "damaged RLE (invalid characters)": of_rle("~~\u00e9"),
    "damaged RLE (it ends inside a number)": of_rle("P"),
}


@pytest.mark.parametrize("reason", BAD_OBJECTS)
def test_a_bad_object_is_named_and_the_others_stay(tmp_path, reason):
    root = coco_folder(tmp_path / "data", [3, 2], [1])
    clean = load(root)
    changed(root, BAD_OBJECTS[reason])
    with pytest.raises(GlocalError, match=r"usable images and annotations in .*, got 1 unusable") as error:
        load(root)
    assert reason.strip() in str(error.value)
    source = load(root, on_error="skip")
    (bad,) = source.skipped
    assert isinstance(bad, SkippedObject)
    assert bad.reason.startswith(reason.strip())
    assert bad.path in ("train2017/001.png", "annotations/instances_train2017.json")
    nameless = reason.startswith(("no id", "expected an object"))
    assert bad.annotation == ("#0" if nameless else 1001 if reason.startswith("the same id") else 1000)
    # what is left is what was there before, without the first or (of the same ids) the second
    kept = 1 if reason.startswith("the same id") else 0
    left = [i for i in range(3) if i != kept]
    assert np.array_equal(source.train[0].masks[1], clean.train[0].masks[left[1]])
    assert [len(sample.boxes) for sample in source.train] == [2, 2]


def of_image(**values):
    return lambda content: content["images"][0].update(values)


BAD_IMAGES = {
    "no such file": of_image(file_name="missing.png"),
    "not a file name": of_image(file_name=""),
    "not a file name ": of_image(file_name=17),
    "not a file name (it has a zero byte)": of_image(file_name="a\0.png"),
    "not a file name (it has an unpaired surrogate)": of_image(file_name="\ud800.png"),
    "a file outside the image folder (/etc/passwd)": of_image(file_name="/etc/passwd"),
    "a file outside the image folder (../../x.png)": of_image(file_name="../../x.png"),
    "size differs from its annotation": of_image(width=200),
    "invalid width or height": of_image(width="80"),
    "invalid width or height ": of_image(height=0),
    "invalid width or height  ": of_image(width=None),
    "the same id as another image (20)": of_image(id=20),
    "the same file as another image (id 10)": lambda content: content["images"][1].update(file_name="./001.png"),
    "no id (expected an integer or text)": of_image(id=None),
    "no id (expected an integer or text) ": of_image(id=[1]),
    "expected an object, got something else": lambda content: content["images"].__setitem__(0, 5),
}


@pytest.mark.parametrize("reason", BAD_IMAGES)
def test_a_bad_image_is_named_and_its_objects_go_with_it(tmp_path, reason):
    root = changed(coco_folder(tmp_path / "data", [3, 2, 1], [1]), BAD_IMAGES[reason])
    with pytest.raises(GlocalError, match="unusable"):
        load(root)
    source = load(root, on_error="skip")
    (bad,) = [bad for bad in source.skipped if not isinstance(bad, SkippedObject)]
    assert bad.reason.startswith(reason.strip())
    assert [bad.reason for bad in source.skipped if isinstance(bad, SkippedObject)] in (
        [],  # or, where nothing says whose they are
        ["unknown image"] * 3,
    )
    assert len(source.train) == 2


def test_what_the_gate_refuses_is_listed_and_an_image_may_have_no_size(tmp_path):
    root = coco_folder(tmp_path / "data", [1, 1, 1], [1])
    (root / "train2017" / "001.png").write_bytes(b"no image")

    def without_size(content):
        for image in content["images"]:
            del image["width"], image["height"]

    changed(root, without_size)
    source = load(root, on_error="skip")
    assert reasons(source) == [("train2017/001.png", "not a readable JPEG, PNG, WebP, BMP, TIFF or GIF")]
    assert len(source.train) == 2


def test_an_image_that_exif_turns_is_told(tmp_path):
    root = coco_folder(tmp_path / "data", [1, 1], [1])
    content = json.loads((root / "annotations/instances_train2017.json").read_text())
    size = content["images"][0]["width"], content["images"][0]["height"]
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "train2017/001.png").write_bytes(encoded(picture(1, size), "JPEG", exif=exif))
    ((_, reason),) = reasons(load(root, on_error="skip"))
    assert reason == (
        f"size differs from its annotation ({size[1]} x {size[0]}; upright, by its EXIF orientation, "
        f"not {size[0]} x {size[1]})"
    )


def test_boxes_that_stand_out_are_clipped_and_counted(tmp_path):
    root = coco_folder(tmp_path / "data", [4], [1], kinds=("box",))
    content = json.loads((root / "annotations/instances_train2017.json").read_text())
    width, height = content["images"][0]["width"], content["images"][0]["height"]
    boxes = [[-0.5, 2, 10, 10], [-5, -5, 10, 10], [width - 4, height - 4, 9, 9], [0, 0, width, height]]

    def change(content):
        for one, box in zip(content["annotations"], boxes, strict=True):
            one["bbox"] = box

    source = load(changed(root, change))
    expected = [[0, 2, 9.5, 12], [0, 0, 5, 5], [width - 4, height - 4, width, height], [0, 0, width, height]]
    assert source.train[0].boxes.tolist() == expected
    assert "boxes clipped to their image by more than a pixel: 2" in source.warnings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged JSON"),
        (b'{"images": [', "damaged JSON"),
        (b"\xff\xfe{}", "damaged JSON"),
        (b"[" * 100_000, "lists nested too deeply"),
        (b"9" * 5000, "damaged JSON"),
        (b"[]", "got no list images and no list annotations and no list categories"),
        (b'{"images": [1], "annotations": {}, "categories": []}', "got no list annotations"),
        (b'{"images": [], "annotations": [], "categories": []}', "expected images in .*, got an empty list"),
        (b'{"images": [1], "annotations": [], "categories": []}', "expected images with a file_name"),
    ],
)
def test_a_file_that_is_no_coco_json_is_named(tmp_path, content, message):
    root = coco_folder(tmp_path / "data", [2], [1])
    (root / "annotations/instances_train2017.json").write_bytes(content)
    with pytest.raises(GlocalError, match=message) as error:
        load(root, on_error="skip")
    assert "instances_train2017.json" in str(error.value)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], "at least one category"),
        ([{"id": 3}], r"got no name in categories\[0\]"),
        ([{"id": 3, "name": "\ud800"}], "got no name"),
        ([{"name": "ant"}], "an id that is not an integer"),
        ([{"id": "3", "name": "ant"}], "an id that is not an integer"),
        ([{"id": 10**30, "name": "ant"}], "an id that is not an integer"),
        ([{"id": 3, "name": "ant"}, {"id": 3, "name": "bee"}], r"the id 3 twice in categories\[1\]"),
        (["ant"], "an id that is not an integer"),
    ],
)
def test_categories_that_cannot_be_used_are_named(tmp_path, categories, message):
    root = changed(coco_folder(tmp_path / "data", [2], [1]), lambda content: content.update(categories=categories))
    with pytest.raises(GlocalError, match=message):
        load(root, on_error="skip")


def test_val_must_have_the_categories_of_train(tmp_path):
    root = coco_folder(tmp_path / "data", [2], [1])
    changed(root, lambda content: content["categories"][0].update(id=4), part="val")
    with pytest.raises(GlocalError, match=r"expected the categories of .* got others: bee \(4\); give each category"):
        load(root)
    changed(root, lambda content: content.update(categories=[{"id": 90, "name": "cat"}], annotations=[]), part="val")
    assert load(root).val.classes == ("ant", "bee", "cat")  # fewer are fine


def test_categories_of_one_name_are_told_apart_by_their_ids(tmp_path):
    root = coco_folder(tmp_path / "data", [2], [1])
    for part in ("train", "val"):
        changed(root, lambda content: content["categories"][0].update(name="ant"), part=part)
    assert load(root).classes == ("ant (3)", "ant (7)", "cat")


def test_what_is_no_data_is_named(tmp_path):
    with pytest.raises(GlocalError, match=r"expected a folder in the layout .*, which is neither"):
        load(tmp_path / "missing")
    with pytest.raises(GlocalError, match="nearest: items-on-photos"):
        load("item-on-photos")
    with pytest.raises(GlocalError, match=r"got neither$"):
        load(tmp_path)
    (tmp_path / "VOCdevkit/VOC2012/Annotations").mkdir(parents=True)
    with pytest.raises(GlocalError, match=r"Pascal VOC's layout is in .*VOC2012: pass one"):
        load(tmp_path)
    with pytest.raises(GlocalError, match=r"expected a readable .*no.json"):
        load(tmp_path / "no.json")
    with pytest.raises(GlocalError, match="on_error: expected one of stop, skip"):
        load(tmp_path, on_error="go")
    with pytest.raises(GlocalError, match="val_fraction"):
        load(tmp_path, val_fraction=1.0)
    root = coco_folder(tmp_path / "data", [1], [1])
    with pytest.raises(GlocalError, match="a folder of images, got nothing at nowhere"):
        load(f"{root}/annotations/instances_val2017.json:nowhere")
    shutil.rmtree(root / "train2017")
    with pytest.raises(GlocalError, match="got none of the first 1 there; give their folder"):
        load(root)
    (root / "annotations/instances_train2014.json").write_text("{}")
    with pytest.raises(
        GlocalError, match=r"one annotation file for train .*, got .*2014.json, .*2017.json; choose with"
    ):
        load(root)
    os.mkfifo(tmp_path / "pipe.json")  # opening it would wait for a writer
    with pytest.raises(GlocalError, match=r"got something else at .*pipe.json"):
        load(tmp_path / "pipe.json")


def test_parts_without_images_or_objects_are_named(tmp_path):
    with pytest.raises(GlocalError, match="expected objects in train"):
        load(coco_folder(tmp_path / "none", [0, 0], [1]))
    root = coco_folder(tmp_path / "bad", [1], [1])
    (root / "val2017" / "501.png").write_bytes(b"")
    with pytest.raises(GlocalError, match=r"expected images in .* of val, got no usable ones"):
        load(root, on_error="skip")
    with pytest.raises(GlocalError, match="at least 2 usable images"):
        load(f"{root}/annotations/instances_train2017.json")


def test_links_are_followed_only_if_asked(tmp_path):
    root = coco_folder(tmp_path / "data", [1, 1, 1], [1])
    (root / "train2017").rename(tmp_path / "elsewhere")
    (root / "train2017").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GlocalError, match="train2017 itself, got a link; --follow-links follows it"):
        load(root)
    assert len(load(root, follow_links=True).train) == 3
    (root / "train2017").unlink()
    (tmp_path / "elsewhere").rename(root / "train2017")
    (root / "train2017/001.png").rename(tmp_path / "001.png")
    (root / "train2017/001.png").symlink_to(tmp_path / "001.png")
    (root / "train2017/inner").symlink_to(tmp_path)
    changed(root, lambda content: content["images"][1].update(file_name="inner/001.png"))
    link = "a file behind a link (inner/001.png; --follow-links follows it)"
    assert reasons(load(root, on_error="skip")) == [
        ("annotations/instances_train2017.json: images[1]", link),
        ("train2017/001.png", "expected a regular file, got a link"),
    ]


def test_images_are_decoded_once_and_remembered(tmp_path, monkeypatch):
    root = coco_folder(tmp_path / "data", [1] * (scan.FEW + 5), [1])
    (root / "train2017" / "003.png").write_bytes(b"bad")
    first = load(root, on_error="skip", workers=2)
    read = []
    measure_file = measured.measure_file
    monkeypatch.setattr(
        measured, "measure_file", lambda folder, name, **rest: read.append(name) or measure_file(folder, name, **rest)
    )
    again = load(root, on_error="skip")
    assert again.fingerprint == first.fingerprint
    assert reasons(again) == reasons(first)
    assert read == ["003.png", "501.png"]  # what was bad, and val, which is too small to remember
    (root / "train2017" / "007.png").write_bytes(b"bad now")
    assert [path for path, _ in reasons(load(root, on_error="skip"))] == ["train2017/003.png", "train2017/007.png"]


def test_masks_that_take_too_much_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(annotated, "MOST_MASK_BYTES", 40_000)
    source = load(coco_folder(tmp_path / "data", [20, 2], [1]), on_error="skip")
    ((path, reason),) = reasons(source)
    assert path == "train2017/001.png"
    assert reason.startswith("masks above the limit (20 of them have")


def test_an_image_that_goes_bad_later_is_named(tmp_path):
    root = coco_folder(tmp_path / "data", [1, 1], [1])
    source = load(root)
    picture(3, (50, 50)).save(root / "train2017/001.png")
    with pytest.raises(ImageError, match=r"train2017/001.png: has changed since it was checked"):
        source.train[0]
    (root / "train2017/002.png").unlink()
    with pytest.raises(ImageError, match=r"train2017/002.png: no such file"):
        source.train[1]


@pytest.mark.parametrize(
    "change",
    [
        of_first(bbox=[1, 1, 5, 5]),
        of_first(category_id=90),
        of_first(iscrowd=1),
        of_first(area=17),
        of_first(segmentation=[SQUARE]),
        lambda content: content["images"][1].update(id=5),
        lambda content: content["annotations"].pop(),
    ],
)
def test_fingerprint_changes_with_objects(tmp_path, change):
    before = load(coco_folder(tmp_path / "data", [2, 1], [1])).fingerprint
    assert load(tmp_path / "data").fingerprint == before
    assert load(changed(tmp_path / "data", change), on_error="skip").fingerprint != before


def test_fingerprint_changes_with_images_and_categories(tmp_path):
    root = coco_folder(tmp_path / "data", [2, 1], [1])
    before = load(root).fingerprint
    content = (root / "train2017/001.png").read_bytes()
    image = picture(99, load(root).train[0].image.shape[1::-1])
    image.save(root / "train2017/001.png")
    assert load(root).fingerprint != before
    (root / "train2017/001.png").write_bytes(content)
    assert load(root).fingerprint == before
    for part in ("train", "val"):
        changed(root, lambda content: content["categories"][0].update(name="wasp"), part=part)
    assert load(root).fingerprint != before


def test_the_same_image_in_train_and_val_is_told(tmp_path):
    root = coco_folder(tmp_path / "data", [1, 1], [1])
    shutil.copy(root / "train2017/002.png", root / "val2017/501.png")

    def without_size(content):
        del content["images"][0]["width"], content["images"][0]["height"]
        content["annotations"] = []

    changed(root, without_size, part="val")
    assert any("val2017/501.png = train2017/002.png" in warning for warning in load(root).warnings)


@pytest.mark.parametrize("harm", [harmed_text, harmed_tree])
def test_60_damaged_files_are_refused_or_listed(tmp_path, harm):
    root = coco_folder(tmp_path / "data", [3, 0, 2, 4], [2], kinds=ALL_KINDS)
    file = root / "annotations/instances_train2017.json"
    text = file.read_text()
    rng = np.random.default_rng(0)
    outcomes = {"refused": 0, "listed": 0, "clean": 0}
    for _ in range(60):
        file.write_bytes(harm(text, rng))
        try:
            source = load(root, on_error="skip")
        except GlocalError as error:
            assert "expected" in str(error)
            outcomes["refused"] += 1
            continue
        assert all(bad.reason for bad in source.skipped)
        outcomes["listed" if source.skipped else "clean"] += 1
        for sample in source.train:
            height, width = sample.image.shape[:2]
            assert np.isfinite(sample.boxes).all()
            assert (sample.boxes[:, :2] < sample.boxes[:, 2:]).all()
            assert (sample.boxes >= 0).all()
            assert (sample.boxes <= [width, height, width, height]).all()
            assert sample.masks is None or sample.masks.shape == (len(sample.boxes), height, width)
    assert min(outcomes["refused"], outcomes["listed"]) > 5
