"""Pascal VOC's layout: boxes, difficult ones, lists of parts, and XML that no one should trust."""

import os
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest

from glocal.data import load_detection, open_image
from glocal.data.annotated import ObjectError
from glocal.data.objects import where
from glocal.data.voc import parse_xml
from glocal.errors import GlocalError
from tests.data.annotating import harmed_text, voc_folder, voc_xml
from tests.data.making import picture


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def load(path, **options):
    return load_detection(str(path), progress=False, **options)


def test_objects_are_those_of_the_xml(tmp_path):
    root = voc_folder(tmp_path / "data", {"train": 8, "val": 5})
    source = load(root)
    assert source.classes == ("aeroplane", "dog", "sofa")
    assert (source.skipped, source.category_ids) == ((), (0, 1, 2))
    assert [len(sample.boxes) for sample in source.val] == [0, 1, 2, 3, 4]
    for sample in source.train:
        assert np.array_equal(sample.image, np.asarray(open_image(root / sample.path)))
        assert sample.path == f"JPEGImages/{sample.image_id}.jpg"
        assert sample.masks is None
        theirs = ElementTree.parse(root / "Annotations" / f"{sample.image_id}.xml").findall("object")
        assert [source.classes[label] for label in sample.labels] == [one.findtext("name") for one in theirs]
        assert sample.crowd.tolist() == [one.findtext("difficult") == "1" for one in theirs]
        corners = [
            [int(one.find("bndbox").findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax")] for one in theirs
        ]
        # pixels are counted from 1, and the last one belongs to the object: a box of one pixel is 1 x 1
        expected = np.array(corners).reshape(-1, 4) - [1, 1, 0, 0]
        assert sample.boxes.tolist() == expected.tolist()
        assert sample.area.tolist() == ((expected[:, 2] - expected[:, 0]) * (expected[:, 3] - expected[:, 1])).tolist()
    assert source.counts["train"].sum() == sum((~sample.crowd).sum() for sample in source.train)


def test_parts_come_from_the_lists(tmp_path):
    root = voc_folder(tmp_path / "data", {"train": 6, "val": 4})
    lists = root / "ImageSets" / "Main"
    (lists / "train.txt").write_text("train_0001 -1\ntrain_0003  1\r\n\n")
    source = load(root)
    assert source.train.paths == ("JPEGImages/train_0001.jpg", "JPEGImages/train_0003.jpg")
    assert source.warnings[0].startswith("ignored, not listed in ImageSets/Main: 4 (JPEGImages/train_0000.jpg")
    (lists / "trainval.txt").write_text("".join(f"train_{i:04d}\n" for i in range(1, 6)))
    assert (len(load(root).train), len(load(root).val)) == (2, 4)  # train and val go first
    (lists / "val.txt").unlink()
    source = load(root)
    assert (len(source.train), len(source.val)) == (4, 1)
    assert source.split == "20% of the images held out for val, split seed 0"
    shutil.rmtree(root / "ImageSets")
    assert len(load(root).train) == 8  # of ten


def one_image(root, xml, **options):
    """Five images in train, one of them as the XML says."""
    voc_folder(root, {"train": 5, "val": 3})
    content = xml if isinstance(xml, bytes) else xml.encode()
    (root / "Annotations" / "train_0003.xml").write_bytes(content)
    return load(root, **options)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((100, 1, 120, 10), "box outside the image"),
        ((10, 10, 9, 20), "box without area (0 x 11)"),
        ((10, 10, 5, 20), "box without area (-4 x 11)"),
        (("nan", 10, 15, 20), "box with NaN or far outside"),
        (("1e300", 10, 15, 20), "box with NaN or far outside"),
        (("", 10, 15, 20), "no box (expected bndbox with a number xmin, got '')"),
        ((1, 2, 10, "ten"), "no box (expected bndbox with a number ymax, got 'ten')"),
    ],
)
def test_a_bad_box_is_named(tmp_path, box, reason):
    voc_folder(tmp_path, {"train": 5, "val": 3})
    size = open_image(tmp_path / "JPEGImages/train_0003.jpg").size
    xml = voc_xml(size, [("dog", (3, 3, 9.5, 9.5), 0), ("dog", box, 0)])
    (tmp_path / "Annotations/train_0003.xml").write_text(xml)
    source = load(tmp_path, on_error="skip")
    (bad,) = source.skipped
    assert where(bad) == "Annotations/train_0003.xml, annotation #1"
    assert bad.reason.startswith(reason)
    assert source.train[3].boxes.tolist() == [[2, 2, 9.5, 9.5]]
    with pytest.raises(GlocalError, match=r"train_0003.xml, annotation #1: (no )?box"):
        load(tmp_path)


def test_classes_are_those_of_train(tmp_path):
    voc_folder(tmp_path, {"train": 4, "val": 3})
    size = open_image(tmp_path / "JPEGImages/val_0001.jpg").size
    objects = [("bird", (1, 1, 9, 9), 0), ("", (1, 1, 9, 9), 0), ("dog", (1, 1, 9, 9), 1)]
    (tmp_path / "Annotations/val_0001.xml").write_text(voc_xml(size, objects))
    source = load(tmp_path, on_error="skip")
    assert [bad.reason for bad in source.skipped] == ["unknown class (bird)", "no class"]
    assert source.val[1].crowd.tolist() == [True]


LAUGHS = b'<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;&x;&x;">]><annotation>&y;</annotation>'
FILE = b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>'


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (b"", "damaged XML (no element found"),
        (b"<annotation><object>", "damaged XML (no element found"),
        (b"<annotation></object>", "damaged XML (mismatched tag"),
        (b"\xff\xff\xff", "damaged XML"),
        (b'<?xml version="1.0" encoding="none"?><annotation/>', "damaged XML"),
        (LAUGHS, "XML with a document type"),
        (FILE, "XML with a document type"),
        (LAUGHS.decode().encode("utf-16"), "XML with a document type"),
        (b"<!DOCTYPE annotation><annotation/>", "XML with a document type"),
        (b"<annotation>&x;</annotation>", "damaged XML (undefined entity"),
        (b"<a>" * 5000, "XML nested more than 30 deep"),
        (b"<a/>" * 1_100_000, "unreadable, or too large"),
        (voc_xml((10, 10), []), "size differs from its annotation"),
        (voc_xml(("ten", 10), []), "invalid width or height"),
        (voc_xml(("-10", 10), []), "invalid width or height"),
    ],
)
def test_a_bad_file_of_annotations_is_named(tmp_path, xml, reason):
    source = one_image(tmp_path, xml, on_error="skip")
    (bad,) = source.skipped
    assert bad.reason.startswith(reason)
    assert bad.path in ("Annotations/train_0003.xml", "JPEGImages/train_0003.jpg")
    assert len(source.train) == 4


def test_xml_without_a_size_is_fine_and_other_elements_do_not_matter(tmp_path):
    xml = (
        "<annotation><object><name> dog </name><other/><bndbox><xmax>9</xmax><xmin>1</xmin><ymin>1</ymin><ymax>9</ymax>"
    )
    source = one_image(tmp_path, xml + "</bndbox></object></annotation>")
    assert source.train[3].boxes.tolist() == [[0, 0, 9, 9]]
    assert source.train.classes[source.train[3].labels[0]] == "dog"


def test_files_that_are_missing_or_listed_twice_are_named(tmp_path):
    voc_folder(tmp_path, {"train": 6, "val": 3})
    (tmp_path / "Annotations/train_0001.xml").unlink()
    (tmp_path / "JPEGImages/train_0002.jpg").unlink()
    (tmp_path / "JPEGImages/train_0003.jpg").write_bytes(b"no image")
    (tmp_path / "Annotations/train_0004.xml").unlink()
    os.mkfifo(tmp_path / "Annotations/train_0004.xml")  # opening it would wait for a writer
    with open(tmp_path / "ImageSets/Main/train.txt", "a") as file:
        file.write("train_0005\n../../secret\nfile\0name\n")
    source = load(tmp_path, on_error="skip")
    assert [(bad.path, bad.reason) for bad in source.skipped] == [
        ("Annotations/../../secret.xml", "a file outside the image folder (../../secret.xml)"),
        ("Annotations/file\0name.xml", "not a file name (it has a zero byte)"),
        ("Annotations/train_0001.xml", "no such file"),
        ("Annotations/train_0004.xml", "unreadable, or too large"),
        ("Annotations/train_0005.xml", "listed twice"),
        ("JPEGImages/train_0002", "no such file (in JPEGImages, with any extension)"),
        ("JPEGImages/train_0003.jpg", "not a readable JPEG, PNG, WebP, BMP, TIFF or GIF"),
    ]
    assert source.train.paths == ("JPEGImages/train_0000.jpg", "JPEGImages/train_0005.jpg")


def test_images_of_other_formats_and_in_folders_are_found(tmp_path):
    voc_folder(tmp_path, {"train": 3, "val": 3})
    size = open_image(tmp_path / "JPEGImages/train_0001.jpg").size
    (tmp_path / "JPEGImages/train_0001.jpg").unlink()
    picture(5, size).save(tmp_path / "JPEGImages/train_0001.PNG")
    for folder, extension in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (tmp_path / folder / "more").mkdir()
        (tmp_path / folder / f"train_0002.{extension}").rename(tmp_path / folder / "more" / f"x.{extension}")
    (tmp_path / "ImageSets/Main/train.txt").write_text("train_0001\nmore/x\n")
    assert load(tmp_path).train.paths == ("JPEGImages/train_0001.PNG", "JPEGImages/more/x.jpg")


def test_links_are_followed_only_if_asked(tmp_path):
    root = voc_folder(tmp_path / "data", {"train": 3, "val": 3})
    (root / "Annotations").rename(tmp_path / "elsewhere")
    (root / "Annotations").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GlocalError, match="Annotations itself, got a link"):
        load(root)
    assert len(load(root, follow_links=True).train) == 3


def test_a_list_that_is_no_text_is_named(tmp_path):
    voc_folder(tmp_path, {"train": 3, "val": 3})
    (tmp_path / "ImageSets/Main/val.txt").write_bytes(b"\xff\xfe\0")
    with pytest.raises(GlocalError, match=r"expected UTF-8 in .*val.txt"):
        load(tmp_path)


def test_60_damaged_files_are_listed(tmp_path):
    root = voc_folder(tmp_path, {"train": 5, "val": 3})
    file = root / "Annotations" / "train_0004.xml"
    text = file.read_text()
    rng = np.random.default_rng(0)
    listed = 0
    for _ in range(60):
        file.write_bytes(harmed_text(text, rng))
        source = load(root, on_error="skip")
        listed += bool(source.skipped)
        assert all(bad.reason for bad in source.skipped)
        assert all((sample.boxes[:, :2] < sample.boxes[:, 2:]).all() for sample in source.train)
    assert listed > 40


def test_text_of_elements_is_whole():
    root = parse_xml(b"<a>one<b>two</b>three &amp; four</a>")
    assert root.value("a") == "onethree & four"
    assert root.value("a", "b") == "two"
    assert root.value("a", "c", "d") == ""
    with pytest.raises(ObjectError, match="damaged XML"):
        parse_xml(b"<a>&#xffffffff;</a>")
