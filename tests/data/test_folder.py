"""Users' folders: splits, classes, links, names, and bad files among the good."""

import os
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

from glocal.data import check_folder, load_data, scan
from glocal.errors import GlocalError
from tests.data import crashing
from tests.data.making import damage, encoded, folder, picture


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def load(path, **options):
    return load_data(str(path), progress=False, **options)


def test_a_folder_of_classes_is_split_by_class_and_seed(tmp_path):
    folder(tmp_path / "data", {"cat": 20, "bee": 10, "ant": 5})
    source = load(tmp_path / "data")
    assert source.classes == ("ant", "bee", "cat")
    assert np.bincount(source.val.labels).tolist() == [1, 2, 4]
    assert np.bincount(source.train.labels).tolist() == [4, 8, 16]
    assert not set(source.train.paths) & set(source.val.paths)
    assert len({*source.train.paths, *source.val.paths}) == 35
    assert source.split == "20% of each class held out for val, split seed 0"
    assert all(
        path.split(os.sep)[0] == source.classes[label]
        for path, label in zip(source.train.paths, source.train.labels, strict=True)
    )
    assert load(tmp_path / "data").val.paths == source.val.paths
    assert load(tmp_path / "data", split_seed=1).val.paths != source.val.paths
    image = source.val.image(0)
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(tmp_path / "data" / source.val.paths[0])))


def test_train_and_val_are_taken_as_they_are(tmp_path):
    folder(tmp_path / "train", {"a": 3, "b": 4})
    folder(tmp_path / "val", {"b": 1, "a": 2})
    source = load(tmp_path)
    assert (len(source.train), len(source.val)) == (7, 3)
    assert source.val.classes == ("a", "b")
    assert source.val.labels.tolist() == [0, 0, 1]
    assert source.train.paths[0] == os.path.join("train", "a", "000.png")


def test_train_alone_is_split(tmp_path):
    folder(tmp_path / "train", {"a": 10, "b": 10})
    assert len(load(tmp_path).val) == 4


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ({"a": 2, "b": 2}, {"a": 1, "c": 1}, "val has classes missing in train: c; val lacks classes of train: b"),
        ({"a": 2, "b": 2}, {"a": 1}, "val lacks classes of train: b"),
        ({"a": 2, "b": 0}, {"a": 1, "b": 1}, r"at least 1 readable image in each class of train, got b \(0\)"),
        ({"a": 2, "b": 1}, {"a": 1, "b": 0}, r"at least 1 readable image in each class of val, got b \(0\)"),
        ({"a": 2}, {"a": 1}, "expected at least 2 classes, got 1: a"),
    ],
)
def test_classes_that_do_not_fit_are_named(tmp_path, train, val, message):
    folder(tmp_path / "train", train)
    folder(tmp_path / "val", val)
    with pytest.raises(GlocalError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a": 3, "b": 0}, r"at least 2 readable images in each class, got b \(0\)"),
        ({"a": 3, "b": 1}, r"at least 2 readable images in each class, got b \(1\)"),
        ({"a": 3}, "expected at least 2 classes, got 1: a"),
    ],
)
def test_unsplit_folders_too(tmp_path, classes, message):
    folder(tmp_path / "data", classes)
    with pytest.raises(GlocalError, match=message):
        load(tmp_path / "data")


def test_what_is_no_data_is_named(tmp_path):
    with pytest.raises(
        GlocalError,
        match=r"expected a folder or one of fashion-mini, fashion-mnist, .*, mix, got .*missing, which is neither",
    ):
        load(tmp_path / "missing")
    with pytest.raises(GlocalError, match="nearest: fashion-mini"):
        load("fashion-mimi")
    (tmp_path / "file").write_text("x")
    with pytest.raises(GlocalError, match="expected a folder of images, got a file"):
        load(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GlocalError, match="got a folder without class folders"):
        load(tmp_path / "empty")
    with pytest.raises(GlocalError, match="on_error: expected stop or skip, got ignore"):
        load(tmp_path / "empty", on_error="ignore")
    with pytest.raises(GlocalError, match="which is neither"):
        load("x" * 5000)


def test_parts_under_other_names_are_no_classes(tmp_path):
    folder(tmp_path / "data" / "train", {"a": 2, "b": 2})
    folder(tmp_path / "data" / "test", {"a": 2, "b": 2})
    with pytest.raises(GlocalError, match="val beside train, got test; rename"):
        load(tmp_path / "data")
    (tmp_path / "data" / "train").rename(tmp_path / "data" / "Training")
    with pytest.raises(GlocalError, match="train and val, or class folders, got Training, test; rename"):
        load(tmp_path / "data")


def test_a_class_may_be_called_train(tmp_path):
    root = folder(tmp_path / "data", {"bus": 3, "train": 3, "test": 3})
    assert load(root).classes == ("bus", "test", "train")


def test_hidden_and_linked_folders_make_no_part_of_a_class(tmp_path):
    root = folder(tmp_path / "data", {"bus": 3, "train": 3, "test": 3})
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "test" / "__MACOSX").mkdir()
    assert load(root).classes == ("bus", "test", "train")
    (root / "train" / "more").symlink_to(tmp_path)
    source = load(root)
    assert source.classes == ("bus", "test", "train")
    assert os.path.join("train", "more") in source.warnings[0]


def test_what_is_in_no_class_is_told(tmp_path):
    folder(tmp_path / "data" / "train", {"a": 2, "b": 2})
    folder(tmp_path / "data" / "val", {"a": 2, "b": 2})
    folder(tmp_path / "data" / "notes", {"a": 2})
    (tmp_path / "data" / "README.md").write_text("about")
    picture().save(tmp_path / "data" / "train" / "lost.png")
    unused = ", ".join(["README.md", os.path.join("notes", ""), os.path.join("train", "lost.png")])
    assert load(tmp_path / "data").warnings[0] == f"ignored, outside the class folders: 3 ({unused})"


def test_20_damaged_files_among_300(tmp_path):
    """Exactly those 20 are listed, and what is left is what the cleaned folder gives."""
    root = folder(tmp_path / "data", {"a": 100, "b": 90, "c": 90})
    bad = damage(root, ["a", "b", "c"])
    with pytest.raises(GlocalError, match=r"only readable images in .*, got 20 unreadable") as error:
        load(root)
    assert "and 15 more" in str(error.value)
    assert "--on-error skip" in str(error.value)

    source = load(root, on_error="skip")
    assert [skipped.path for skipped in source.skipped] == bad
    assert all(skipped.reason for skipped in source.skipped)
    clean = tmp_path / "clean"
    shutil.copytree(root, clean)
    for path in bad:
        (clean / path).unlink()
    cleaned = load(clean)
    assert not cleaned.skipped
    for part in ("train", "val"):
        left, right = getattr(source, part), getattr(cleaned, part)
        assert left.paths == right.paths
        assert left.labels.tolist() == right.labels.tolist()
    assert source.fingerprint == cleaned.fingerprint


def test_a_class_left_empty_by_skipping_is_an_error(tmp_path):
    root = folder(tmp_path / "data", {"a": 4, "b": 4, "c": 0})
    for i in range(3):
        (root / "c" / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(GlocalError, match=r"got c \(0\)"):
        load(root, on_error="skip")


def test_hidden_folders_and_system_files_are_no_classes_and_no_images(tmp_path):
    root = folder(tmp_path / "data", {"a": 3, "b": 3, ".ipynb_checkpoints": 2, "__MACOSX": 1})
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / "a" / name).write_text("x")
    source = load(root)
    assert source.classes == ("a", "b")
    assert len(source.train) + len(source.val) == 6


def test_other_files_are_listed_not_dropped(tmp_path):
    root = folder(tmp_path / "data", {"a": 3, "b": 3})
    (root / "a" / "notes.txt").write_text("hello")
    os.mkfifo(root / "b" / "pipe")  # opening it would wait for a writer
    assert [(bad.path, bad.reason) for bad in load(root, on_error="skip").skipped] == [
        (os.path.join("a", "notes.txt"), "not a readable JPEG, PNG, WebP, BMP, TIFF or GIF"),
        (os.path.join("b", "pipe"), "expected a regular file, got a pipe"),
    ]


def test_files_in_nested_folders_belong_to_the_class(tmp_path):
    root = folder(tmp_path / "data", {"a": 3, "b": 3})
    folder(root / "a", {"morning": 2})
    source = load(root)
    assert len(source.train) + len(source.val) == 8


def test_links_are_not_followed_unless_asked_and_loops_end(tmp_path):
    root = folder(tmp_path / "data", {"a": 6, "b": 6})
    folder(tmp_path / "outside", {"c": 4})
    (root / "a" / "self").symlink_to(root / "a", target_is_directory=True)
    (root / "c").symlink_to(tmp_path / "outside" / "c", target_is_directory=True)
    (root / "b" / "twin.png").symlink_to(root / "b" / "000.png")
    (root / "a" / "loop").symlink_to("loop")
    links = ", ".join(["c", os.path.join("a", "loop"), os.path.join("a", "self"), "..."])
    source = load(root)
    assert source.classes == ("a", "b")
    assert len(source.train) + len(source.val) == 12
    assert source.warnings == (f"links were not followed: 4 ({links}); --follow-links follows them",)
    followed = load(root, follow_links=True, on_error="skip")
    assert followed.classes == ("a", "b", "c")
    assert len(followed.train) + len(followed.val) == 16
    assert [(bad.path, bad.reason) for bad in followed.skipped] == [
        (os.path.join("a", "loop"), "unreadable (Too many levels of symbolic links)"),
        (os.path.join("b", "twin.png"), f"the same file as {os.path.join('b', '000.png')}"),
    ]


def test_a_hard_link_counts_once(tmp_path):
    root = folder(tmp_path / "data", {"a": 3, "b": 3})
    os.link(root / "a" / "000.png", root / "b" / "zzz.png")
    assert [bad.path for bad in load(root, on_error="skip").skipped] == [os.path.join("b", "zzz.png")]


def test_strange_names_stay_apart_and_are_shown_escaped(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    root = folder(tmp_path / "data", {composed: 2, decomposed: 2, "<script>": 2, "a\nb\x1b[31m": 2, "\u202eevil": 2})
    broken = os.fsencode(root / "<script>") + b"/\xff\xfe.png"
    with open(broken, "wb") as file:
        file.write(encoded(picture(), "PNG"))
    source = load(root)
    assert len(source.classes) == 5
    assert len(source.train) + len(source.val) == 11
    for part in (source.train, source.val):
        for i in range(len(part)):
            part.image(i)
    with open(os.fsencode(root / "<script>") + b"/\xfd.png", "wb") as file:
        file.write(b"")
    with pytest.raises(GlocalError) as error:
        load(root)
    assert "<script>/\\udcfd.png: empty file" in str(error.value)


def test_the_same_image_in_train_and_val_is_told(tmp_path):
    folder(tmp_path / "train", {"a": 3, "b": 3})
    folder(tmp_path / "val", {"a": 1, "b": 1})
    shutil.copy(tmp_path / "train" / "a" / "001.png", tmp_path / "val" / "b" / "copy.png")
    (warning, *_) = load(tmp_path).warnings
    # the generated ones are equal too
    assert warning.startswith("images of val that are also in train, byte for byte: 3 (val/a/000.png = train/a/000.png")


def test_the_fingerprint_changes_with_what_is_there(tmp_path):
    root = folder(tmp_path / "data", {"a": 5, "b": 5})
    before = load(root).fingerprint
    assert load(root).fingerprint == before
    content = (root / "a" / "000.png").read_bytes()
    (root / "a" / "000.png").write_bytes((root / "a" / "001.png").read_bytes())
    assert load(root).fingerprint != before
    (root / "a" / "000.png").write_bytes(content)
    assert load(root).fingerprint == before
    (root / "a" / "new.png").write_bytes(encoded(picture(77), "PNG"))
    assert load(root).fingerprint != before


def test_fractions_keep_every_class_and_nest(tmp_path):
    source = load(folder(tmp_path / "data", {"a": 50, "b": 20, "c": 3}))
    train = source.train
    tenth, third = train.fraction(0.1, seed=3), train.fraction(0.3, seed=3)
    assert np.bincount(tenth.labels).tolist() == [4, 2, 1]
    assert np.bincount(third.labels).tolist() == [12, 5, 1]
    assert set(tenth.paths) < set(third.paths) < set(train.paths)
    assert train.fraction(0.1, seed=4).paths != tenth.paths
    assert train.fraction(1.0, seed=0) is train
    assert np.array_equal(np.asarray(tenth.image(2)), np.asarray(train.image(train.paths.index(tenth.paths[2]))))
    for wrong in (0, -0.1, 1.5):
        with pytest.raises(GlocalError, match="fraction: expected a number above 0 and at most 1"):
            train.fraction(wrong, seed=0)


def test_workers_and_cache_find_the_same(tmp_path, monkeypatch):
    scan_file = scan.scan_file
    root = folder(tmp_path / "data", {"a": 50, "b": 40})
    bad = damage(root, ["a", "b"], count=8)
    alone = check_folder(root, workers=1, progress=False)
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / "cache"))
    together = check_folder(root, workers=2, progress=False)
    assert together.files == alone.files
    assert list((tmp_path / "cache" / "scans").iterdir())
    (root / "a" / "000.png").write_bytes(b"changed")
    (root / bad[0]).write_bytes(encoded(picture(5), "PNG"))
    read = []
    monkeypatch.setattr(
        scan, "scan_file", lambda root, path, **rest: read.append(path) or scan_file(root, path, **rest)
    )
    again = check_folder(root, progress=False)
    assert sorted(read) == sorted([os.path.join("a", "000.png"), *bad])  # the other images are known
    assert [skipped.path for skipped in again.skipped] == sorted([os.path.join("a", "000.png"), *bad[1:]])


def test_a_decoder_that_crashes_its_process_is_a_bad_file(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "CHUNK", 4)
    paths = [f"{i}" for i in range(scan.FEW + 2)]
    found = list(scan._scan_items(partial(crashing.look, culprit="5"), paths, 2))
    assert [path for path, _ in found] == paths
    assert {path: scanned.reason for path, scanned in found if scanned.reason} == {"5": "crashed the decoder"}


@pytest.mark.parametrize("through_stdin", [False, True])
def test_a_script_without_main_guard_checks_many_images(tmp_path, through_stdin):
    root = folder(tmp_path / "data", {"a": 40, "b": 40})
    assert scan.FEW < 80
    script = tmp_path / "script.py"
    script.write_text(f"""
from glocal.data import load_data
source = load_data({str(root)!r}, on_error="skip", workers=2)
print(len(source.train), len(source.val), source.skipped)
""")
    command = [sys.executable, "-" if through_stdin else script]
    with script.open() as text:
        done = subprocess.run(command, stdin=text, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("64 16 ()\n", "")


def test_an_image_that_goes_bad_later_is_named(tmp_path):
    source = load(folder(tmp_path / "data", {"a": 3, "b": 3}))
    path = tmp_path / "data" / source.train.paths[0]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=source.train.paths[0]):
        source.train.image(0)


# Images that choose nothing


def test_test_beside_train_and_val(tmp_path):
    folder(tmp_path / "train", {"a": 3, "b": 4, "c": 2})
    folder(tmp_path / "val", {"a": 2, "b": 1, "c": 1})
    before = load(tmp_path)
    assert before.test is None
    folder(tmp_path / "test", {"c": 2, "a": 1})
    source = load(tmp_path)
    assert source.test.name == "test"
    assert source.test.classes == source.classes == ("a", "b", "c")
    assert source.test.labels.tolist() == [0, 2, 2]
    assert source.test.paths[0] == os.path.join("test", "a", "000.png")
    assert (len(source.train), len(source.val)) == (9, 4)
    assert any(warning == "classes without images in test: 1 (b)" for warning in source.warnings)
    assert not any("ignored" in warning for warning in source.warnings)
    assert source.fingerprint != before.fingerprint
    # without labels it is ignored, and so it is no part of the fingerprint
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "test").mkdir()
    (tmp_path / "test/000.png").write_bytes((tmp_path / "val/a/000.png").read_bytes())
    flat = load(tmp_path)
    assert flat.test is None
    assert flat.fingerprint == before.fingerprint
    assert any(f"ignored, outside the class folders: 1 (test{os.sep})" in warning for warning in flat.warnings)


def test_a_class_of_test_that_train_has_not_is_named(tmp_path):
    for part, classes in {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}, "test": {"a": 1, "d": 1}}.items():
        folder(tmp_path / part, classes)
    with pytest.raises(
        GlocalError,
        match=r"expected only class folders of train in .*test, got d; rename them to classes of train \(a, b\)",
    ):
        load(tmp_path)


def test_test_images_that_are_elsewhere_are_said(tmp_path):
    for seed, part in enumerate(("train", "val", "test")):
        folder(tmp_path / part, {"a": 2, "b": 2})
        for path in (tmp_path / part).rglob("*.png"):
            Image.fromarray(
                np.random.default_rng((seed, hash(path.stem) % 7)).integers(0, 255, (8, 8, 3), np.uint8)
            ).save(path)
    shutil.copy(tmp_path / "train/a/000.png", tmp_path / "test/b/copy.png")
    shutil.copy(tmp_path / "val/a/000.png", tmp_path / "test/a/copy.png")
    warnings = load(tmp_path).warnings
    for other, name in (("train", "b"), ("val", "a")):
        twin = os.path.join("test", name, "copy.png")
        assert any(f"images of test that are also in {other}, byte for byte: 1 ({twin} = " in text for text in warnings)
