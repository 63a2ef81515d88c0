"""Shards: which files, samples, labels and classes; damaged and hostile tars; reading, order and the cache."""

import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from glocal.data import ImageError, ImageLimits, check_folder, load_data, shard_index, shards, shuffled, split_folder
from glocal.data.folder import hold_out
from glocal.data.shard_index import read_index, split_name
from glocal.data.shard_names import expand_braces, list_shards
from glocal.errors import GlocalError
from tests.data.making import DAMAGES, damage, encoded, folder, picture


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def load(data, **options):
    return load_data(str(data), **{"progress": False, "workers": 1, **options})


def png(seed: int) -> bytes:
    return encoded(picture(seed), "PNG")


def sample(key: str, label: int, seed: int | None = None) -> list[tuple[str, bytes]]:
    """An image and its label; without a seed, the image is one of its key."""
    return [(f"{key}.png", png(int(key) if seed is None else seed)), (f"{key}.cls", str(label).encode())]


def samples(start: int, count: int, classes: int = 2) -> list[tuple[str, bytes]]:
    """``count`` samples with the keys 0000, 0001 ..., classes in turn."""
    return [member for i in range(start, start + count) for member in sample(f"{i:04d}", i % classes)]


def tar(path: Path, members: list, kind: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of (name, bytes) and `tarfile.TarInfo`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                archive.addfile(info(*member), io.BytesIO(member[1]))
    return path


def info(name: str, content: bytes = b"", **fields) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    for key, value in fields.items():
        setattr(header, key, value)
    return header


def listed(source) -> dict[str, str]:
    return {bad.path: bad.reason for bad in source.skipped}


# With WebDataset


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's
def test_what_webdataset_writes_is_read_as_webdataset_reads_it(tmp_path):
    root = tmp_path / "shards"
    root.mkdir()
    for part, start, count in (("train", 0, 25), ("val", 100, 7)):
        with webdataset.ShardWriter(str(root / f"{part}-%06d.tar"), maxcount=10, verbose=0) as writer:
            for i in range(start, start + count):
                writer.write(
                    {"__key__": f"{i:05d}", "png": picture(i), "cls": i % 3, "json": {"seed": i}, "txt": "hello"}
                )
    source = load(root / "train-{000000..000002}.tar")
    assert source.skipped == source.warnings == ()
    assert source.classes == ("0", "1", "2")
    assert source.split == "train and val as in the shards"
    for part, pattern in ((source.train, "train-{000000..000002}.tar"), (source.val, "val-000000.tar")):
        theirs = list(
            webdataset.WebDataset(str(root / pattern), shardshuffle=False, empty_check=False)
            .decode("rgb8")
            .to_tuple("__key__", "png", "cls")
        )
        assert len(part) == len(theirs) in (25, 7)
        for i, (key, pixels, label) in enumerate(theirs):
            assert part.paths[i].endswith(f".tar/{key}.png")
            assert part.labels[i] == label
            assert np.array_equal(np.asarray(part.image(i)), pixels)
    assert source.train.groups.tolist() == 10 * [0] + 10 * [1] + 5 * [2]
    assert source.val.groups.tolist() == 7 * [3]
    assert source.train.paths[20] == "train-000002.tar/00020.png"


def test_a_folder_of_classes_and_its_shards_have_equal_pixels(tmp_path):
    root = folder(tmp_path / "photos", {"ant": 12, "bee": 9})
    paths = sorted(path.relative_to(root) for path in root.glob("*/*.png"))
    members = []
    for path in paths:
        content = (root / path).read_bytes()
        name = str(path.with_suffix(""))
        members += [(f"{name}.PNG", content), (f"{name}.json", json.dumps({"class": path.parent.name}).encode())]
    tar(tmp_path / "shards" / "a.tar", members[:20])
    tar(tmp_path / "shards" / "b.tar", members[20:])
    of_files, of_shards = load(root), load(tmp_path / "shards")
    assert of_shards.classes == ("ant", "bee")
    seen = {}
    for source in (of_files, of_shards):
        for part in (source.train, source.val):
            for i in range(len(part)):
                key = part.paths[i].removeprefix("a.tar/").removeprefix("b.tar/").lower()
                seen.setdefault(key, []).append((part.labels[i], np.asarray(part.image(i)).tobytes()))
    assert len(seen) == 21
    assert all(len(both) == 2 and both[0] == both[1] for both in seen.values())
    assert len(of_shards.val) == len(of_files.val) == 4


# Which files


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("t-{8..11}.tar", ["t-8.tar", "t-9.tar", "t-10.tar", "t-11.tar"]),
        ("t-{08..11}.tar", ["t-08.tar", "t-09.tar", "t-10.tar", "t-11.tar"]),
        ("t-{000..002}.tar", ["t-000.tar", "t-001.tar", "t-002.tar"]),
        ("t-{0..2}.tar", ["t-0.tar", "t-1.tar", "t-2.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("{a,x{1..2}}.tar", ["a.tar", "x1.tar", "x2.tar"]),
        ("t{,-old}.tar", ["t.tar", "t-old.tar"]),
        ("{x}.tar", ["{x}.tar"]),
        ("t-{7..7}.tar", ["t-7.tar"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces_are_expanded_as_by_the_shell(pattern, names):
    assert sorted(expand_braces(pattern)) == sorted(names)
    in_bash = subprocess.run(["bash", "-c", f"printf '%s\n' {pattern}"], capture_output=True, text=True).stdout.split()
    assert sorted(in_bash) == sorted(names)


@pytest.mark.parametrize(
    "pattern", ["{5..2}.tar", "{0..1000000}.tar", "{0..99999999999999999999}.tar", "{0..9999}" * 9]
)
def test_ranges_that_fall_or_are_endless_are_refused(pattern):
    with pytest.raises(GlocalError, match=r"expected an ascending range|expected at most 1,000,000 shards"):
        expand_braces(pattern)


def test_missing_shards_are_named(tmp_path):
    for i in (0, 1, 4, 9):
        tar(tmp_path / f"t-{i:02d}.tar", samples(10 * i, 4))
    with pytest.raises(
        GlocalError, match=r"expected 10 shards, got 4; missing: 6 \(.*t-02.tar, .*t-03.tar, .*t-05.tar, ...\)"
    ):
        load(tmp_path / "t-{00..09}.tar")
    with pytest.raises(GlocalError, match=r"expected 1 shard, got 0; missing: 1 \(.*no.tar\)"):
        load(tmp_path / "no.tar")
    with pytest.raises(GlocalError, match=r"got no match for .*u-\*.tar"):
        load(tmp_path / "u-*.tar")
    assert len(list_shards(str(tmp_path / "t-*.tar")).parts[""]) == 4
    assert len(list_shards(str(tmp_path / "t-{00,04}.tar")).parts[""]) == 2


def test_val_is_looked_for_beside_train(tmp_path):
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        for i in range(count):
            tar(tmp_path / f"{part}-{i:06d}.tar", samples({"train": 0, "val": 100, "test": 200}[part] + 20 * i, 6))
    names = {"train": [f"train-{i:06d}.tar" for i in range(3)], "val": [f"val-{i:06d}.tar" for i in range(2)]}
    for pattern in ("train-{000000..000002}.tar", "train-*.tar", ""):
        found = list_shards(str(tmp_path / pattern) if pattern else str(tmp_path))
        assert {part: [os.path.basename(file) for file in files] for part, files in found.parts.items()} == names
    source = load(tmp_path)
    assert (len(source.train), len(source.val)) == (18, 12)
    assert source.warnings == ("ignored, in neither train nor val: 1 (test-000000.tar)",)
    assert source.val.paths[6] == "val-000001.tar/0120.png"
    one = load(tmp_path / "train-000001.tar")  # whatever number
    assert (len(one.train), len(one.val)) == (6, 12)
    assert list(list_shards(str(tmp_path / "val-{000000..000001}.tar")).parts) == [""]
    with pytest.raises(GlocalError, match=r"shards of one part, got those of train and val in .*: 2 \(val-000000.tar"):
        load(tmp_path / "*.tar")


def test_names_of_timms_imagenet_are_understood(tmp_path):
    tar(tmp_path / "imagenet1k-train-0000.tar", samples(0, 4))
    tar(tmp_path / "imagenet1k-validation-00.tar", samples(10, 4))
    assert list(list_shards(str(tmp_path / "imagenet1k-train-{0000..0000}.tar")).parts) == ["train", "val"]


def test_without_val_a_part_is_held_out_by_key(tmp_path):
    tar(tmp_path / "one" / "train-0.tar", samples(0, 20))
    tar(tmp_path / "two" / "train-0.tar", samples(0, 7))
    tar(tmp_path / "two" / "train-1.tar", samples(7, 13))
    one, two = load(tmp_path / "one"), load(tmp_path / "two" / "train-{0..1}.tar")
    assert one.split == "20% of each class held out for val, split seed 0"
    assert np.bincount(one.val.labels).tolist() == [2, 2]
    assert np.bincount(one.train.labels).tolist() == [8, 8]

    def keys(part):
        return [path.rpartition("/")[2] for path in part.paths]

    assert keys(one.val) == keys(two.val)
    assert one.fingerprint == two.fingerprint  # how samples are spread over shards does not count
    assert keys(load(tmp_path / "one", split_seed=1).val) != keys(one.val)
    assert not set(keys(one.train)) & set(keys(one.val))
    held = hold_out({str(c): [f"{i:04d}" for i in range(20) if i % 2 == c] for c in range(2)}, 0, 0.2)[1]
    assert sorted(key.removesuffix(".png") for key in keys(one.val)) == sorted([*held["0"], *held["1"]])


def test_what_is_no_shard_is_said(tmp_path):
    plain = tar(tmp_path / "a" / "train-0.tar", samples(0, 4))
    for name in ("train-0.tar.gz", "train-0.tgz", "train-{0..3}.tar.zst"):
        with pytest.raises(GlocalError, match=r"expected plain .tar shards, got .*compressed.*unpack it"):
            load(tmp_path / name)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "train-0.tar").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(GlocalError, match=r"train-0.tar: not a plain tar but one compressed with gzip \(unpack it\)"):
        load(tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "train-0.tar.xz").touch()
    with pytest.raises(GlocalError, match=r"expected plain .tar shards"):
        load(tmp_path / "c")
    for url in ("s3://bucket/train-{0..3}.tar", "https://x.org/a.tar", "pipe:cat a.tar"):
        with pytest.raises(GlocalError, match="local or mounted file system"):
            load(url)
    tar(tmp_path / "d" / "val-0.tar", samples(0, 4))
    with pytest.raises(GlocalError, match=r"rename the training shards to train-\*.tar"):
        load(tmp_path / "d")
    folder(tmp_path / "e", {"ant": 5, "bee": 5})
    tar(tmp_path / "e" / "train-0.tar", samples(0, 4))
    assert load(tmp_path / "e").classes == ("ant", "bee")  # class folders come first
    tar(tmp_path / "f" / "{x}-*.tar", samples(0, 10))
    assert len(load(tmp_path / "f" / "{x}-*.tar").train) == 8  # a file of this very name


# Samples, labels, classes


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("0001.jpg", ("0001", "jpg")),
        ("a/b.c/0001.JPG", ("a/b.c/0001", "jpg")),
        ("0001.left.jpg", ("0001", "left.jpg")),
        ("./0001.cls", ("./0001", "cls")),
        ("README", ("", "")),
        ("a/._0001.jpg", ("", "")),
        ("0001.", ("", "")),
    ],
)
def test_keys_end_at_the_first_dot_of_the_base_name(name, parts):
    assert split_name(name) == parts


def test_labels_come_from_cls_or_json_and_names_from_the_file(tmp_path):
    kinds = [b"0", b" 1\n", {"label": 1}, {"cls": 0}, {"class": "dog"}, {"label": "a cat", "cls": 1, "class": 7}]
    members = []
    for i, kind in enumerate(4 * kinds):
        label = ("json", json.dumps(kind).encode()) if isinstance(kind, dict) else ("cls", kind)
        members += [(f"{i:04d}.png", png(i)), (f"{i:04d}.{label[0]}", label[1])]
    tar(tmp_path / "a.tar", members)
    (tmp_path / "classes.txt").write_bytes("\ufeffcat\r\ndog\r\n\r\n".encode())
    source = load(tmp_path / "a.tar")
    assert source.classes == ("cat", "dog")
    expected = {f"a.tar/{i:04d}.png": [0, 1, 1, 0, 1, 1][i % 6] for i in range(24)}
    got = {
        path: label for part in (source.train, source.val) for path, label in zip(part.paths, part.labels, strict=True)
    }
    assert got == expected


@pytest.mark.parametrize(
    ("metas", "classes"),
    [
        ([{"class": "dog"}, {"class": "cat"}], ("cat", "dog")),
        ([{"label": 0, "class": "dog"}, {"label": 1, "class": "cat"}], ("dog", "cat")),
        ([{"label": 0, "class": "dog"}, {"label": 1}], ("0", "1")),
        ([{"label": 0, "class": "dog"}, {"label": 1, "class": "cat"}, {"class": "dog"}], ("dog", "cat")),
    ],
)
def test_names_come_from_the_json_where_it_has_them_all(tmp_path, metas, classes):
    members = [
        member
        for i in range(12)
        for member in ((f"{i}.png", png(i)), (f"{i}.json", json.dumps(metas[i % len(metas)]).encode()))
    ]
    tar(tmp_path / "a.tar", members)
    source = load(tmp_path / "a.tar")
    assert source.classes == classes
    for path, label in zip(source.train.paths, source.train.labels, strict=True):
        meta = metas[int(path[6:-4]) % len(metas)]
        assert meta.get("label", label) == label
        assert classes[label] in (str(label), meta.get("class"))


@pytest.mark.parametrize(
    ("metas", "message"),
    [
        (
            [{"label": 0, "class": "dog"}, {"label": 0, "class": "cat"}],
            "one class name for each label .*, got dog and cat for 0",
        ),
        (
            [{"label": 0, "class": "dog"}, {"label": 1, "class": "dog"}],
            "one class name for each label .*, got 0 and 1 for dog",
        ),
    ],
)
def test_names_that_do_not_fit_are_an_error(tmp_path, metas, message):
    tar(
        tmp_path / "a.tar",
        [m for i, meta in enumerate(metas) for m in ((f"{i}.png", png(i)), (f"{i}.json", json.dumps(meta).encode()))],
    )
    with pytest.raises(GlocalError, match=message):
        load(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n\ndog\n", "class name in each line of .*classes.txt, got nothing in line 2"),
        (b"cat\ndog\ncat", "each class once in .*, got cat 2 times"),
        (b"cat\n\xff\n", "expected UTF-8 in .*, got other bytes at 4"),
        (b"", "expected images with labels in the shards, got no usable ones"),
    ],
)
def test_a_class_file_that_cannot_be_used_is_named(tmp_path, content, message):
    tar(tmp_path / "a.tar", samples(0, 8))
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(GlocalError, match=message):
        load(tmp_path / "a.tar", on_error="skip")


def test_samples_that_cannot_be_used_are_listed_with_reasons(tmp_path):
    members = samples(0, 10)
    members += [
        ("n1.cls", b"0"),
        ("n2.png", png(50)),
        *[("n3.png", png(51)), ("n3.cls", b"7")],
        *[("n4.png", png(52)), ("n4.cls", b"-1")],
        *[("n5.png", png(53)), ("n5.cls", b"9" * 5000)],
        *[("n6.png", png(54)), ("n6.json", b"[" * 100_000)],
        *[("n7.png", png(55)), ("n7.json", b'{"label": true}')],
        *[("n8.png", png(56)), ("n8.json", b'{"label": 12345678901}')],
        *[("n9.a.png", png(57)), ("n9.b.png", png(58)), ("n9.cls", b"0")],
        *[("na.png", b""), ("na.cls", b"0")],
        *[("nb.ppm", png(59)), ("nb.cls", b"1")],
        *[("nc.png", png(60)), ("nc.json", b'{"class": "\\ud800"}')],
        *[("nd.png", png(61)), ("nd.json", b'{"class": "cow"}')],
        *sample("0003", 1),
        ("README", b"hello"),
        ("._0001.png", b"from a Mac"),
    ]
    tar(tmp_path / "a.tar", members)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    source = load(tmp_path / "a.tar", on_error="skip")
    assert listed(source) == {
        "a.tar/n1.cls": "no image (only n1.cls)",
        "a.tar/n2.png": "no label (expected .cls or .json of the same key next to it)",
        "a.tar/n3.png": "label out of range (7, there are 2 classes)",
        "a.tar/n4.png": "no label (.cls: expected a decimal number, got '-1')",
        "a.tar/n5.png": "no label (.cls: expected at most 64 bytes, got 5,000)",
        "a.tar/n6.png": "no label (.json: expected JSON, got something else)",
        "a.tar/n7.png": 'no label (.json: expected "label" or "cls" with a number, or "class" with a name)',
        "a.tar/n8.png": "label out of range (12345678901, expected 0 to 999,999)",
        "a.tar/n9.a.png": "several images of one key (n9.a.png, n9.b.png; a key ends at the first dot of the name)",
        "a.tar/na.png": "empty file",
        "a.tar/nb.ppm": "no image (only nb.ppm, nb.cls)",
        "a.tar/nc.png": 'no label (.json: expected "label" or "cls" with a number, or "class" with a name)',
        "a.tar/nd.png": "unknown class (cow)",
        "a.tar/0003.png": "the same key as a.tar/0003.png",
    }
    assert [bad.path for bad in source.skipped] == sorted(listed(source))
    assert source.warnings[0] == "ignored, in no sample: 2 (a.tar/README, a.tar/._0001.png)"
    assert len(source.train) + len(source.val) == 10
    with pytest.raises(GlocalError, match=r"got 14 unreadable\n.*a.tar/0003.png: the same key"):
        load(tmp_path / "a.tar")


def test_a_label_of_val_beyond_those_of_train_is_out_of_range(tmp_path):
    tar(tmp_path / "train-0.tar", samples(0, 8))
    tar(tmp_path / "val-0.tar", [*samples(20, 4), *sample("0030", 5)])
    source = load(tmp_path, on_error="skip")
    assert listed(source) == {"val-0.tar/0030.png": "label out of range (5, there are 2 classes)"}


def test_a_key_may_be_in_both_parts_and_equal_bytes_are_told(tmp_path):
    tar(tmp_path / "train-0.tar", samples(0, 8))
    tar(tmp_path / "val-0.tar", [*sample("0000", 0, seed=70), *sample("0001", 1, seed=3)])
    source = load(tmp_path)
    assert source.skipped == ()
    (warning,) = source.warnings
    assert warning.startswith(
        "images of val that are also in train, byte for byte: 1 (val-0.tar/0001.png = train-0.tar/0003.png)"
    )


def test_empty_classes_and_empty_shards(tmp_path):
    tar(tmp_path / "a" / "a.tar", samples(0, 8, classes=2) + sample("0020", 4) + sample("0021", 4))
    with pytest.raises(GlocalError, match=r"at least 2 readable images in each class, got 2 \(0\), 3 \(0\)"):
        load(tmp_path / "a")
    tar(tmp_path / "b" / "b.tar", [])
    with pytest.raises(GlocalError, match="expected images with labels in the shards, got no usable ones"):
        load(tmp_path / "b")
    tar(tmp_path / "b" / "c.tar", samples(0, 8))
    assert load(tmp_path / "b").skipped == ()  # a tar without members is whole
    (tmp_path / "b" / "d.tar").touch()
    assert listed(load(tmp_path / "b", on_error="skip")) == {"d.tar": "empty file"}


# Damaged and hostile


def test_20_damaged_images_among_300(tmp_path):
    """Exactly those 20 are listed, and what is left is what shards without them give."""
    kinds = list(DAMAGES)
    members, bad = [], set()
    for i in range(300):
        key = f"{i:04d}"
        content = png(i)
        if i % 15 == 4:
            content = DAMAGES[kinds[len(bad) % len(kinds)]]()
            bad.add(key)
        members.append(((f"{key}.png", content), (f"{key}.cls", str(i % 3).encode())))
    assert len(bad) == 20
    for at in range(3):
        tar(tmp_path / "data" / f"{at}.tar", [one for both in members[100 * at : 100 * at + 100] for one in both])
    tar(tmp_path / "clean" / "0.tar", [one for i, both in enumerate(members) if i % 15 != 4 for one in both])
    with pytest.raises(GlocalError, match=r"got 20 unreadable\n") as error:
        load(tmp_path / "data" / "{0..2}.tar")
    assert f"`glocal check '{tmp_path}/data/{{0..2}}.tar'` lists all" in str(error.value)
    source, clean = load(tmp_path / "data", on_error="skip"), load(tmp_path / "clean")
    assert [path.split("/")[1][:-4] for path in listed(source)] == sorted(bad)
    assert all(listed(source).values())
    assert clean.skipped == ()
    assert source.fingerprint == clean.fingerprint
    for part in ("train", "val"):
        left, right = getattr(source, part), getattr(clean, part)
        assert left.labels.tolist() == right.labels.tolist()
        assert [path.split("/")[1] for path in left.paths] == [path.split("/")[1] for path in right.paths]


def test_reasons_are_those_of_the_image_loader(tmp_path):
    root = folder(tmp_path / "photos", {"ant": 3, "bee": 3})
    paths = damage(root, ["ant"], count=8)
    members = [
        m
        for path in paths
        for m in ((f"{Path(path).stem}.jpg", (root / path).read_bytes()), (f"{Path(path).stem}.cls", b"0"))
    ]
    tar(tmp_path / "a.tar", samples(0, 8) + members)
    of_files = {Path(bad.path).name: bad.reason for bad in check_folder(root, progress=False).skipped}
    of_shards = {Path(bad.path).name: bad.reason for bad in check_folder(tmp_path / "a.tar", progress=False).skipped}
    assert of_files == of_shards
    assert len(of_files) == 8


def test_a_truncated_shard_is_used_up_to_the_damage(tmp_path):
    whole = tar(tmp_path / "whole.tar", samples(0, 10))
    content = whole.read_bytes()
    with tarfile.open(whole) as archive:
        at = {member.name: member.offset_data for member in archive}
    root = tmp_path / "cut"
    root.mkdir()
    shard = root / "a.tar"
    for end, used, names in [
        (at["0007.png"] + 20, 7, {"a.tar": "inside 0007.png", "a.tar/0007.png": "is truncated (it claims"}),
        (
            at["0007.cls"],
            7,
            {"a.tar": "inside 0007.cls", "a.tar/0007.cls": "is truncated", "a.tar/0007.png": "no label"},
        ),
        (
            at["0007.cls"] - 300,
            7,
            {"a.tar": f"ends at byte {at['0007.cls'] - 300} without", "a.tar/0007.png": "no label"},
        ),
        (at["0007.png"] - 512, 7, {"a.tar": "without an end mark"}),
        (at["0009.cls"] + 1, 10, {"a.tar": "without an end mark"}),
    ]:
        shard.write_bytes(content[:end])
        source = load(shard, on_error="skip")
        assert len(source.train) + len(source.val) == used
        assert listed(source).keys() == names.keys()
        assert all(text in listed(source)[path] for path, text in names.items())
        for part in (source.train, source.val):
            for i in range(len(part)):
                assert np.array_equal(np.asarray(part.image(i)), np.asarray(picture(int(part.paths[i][6:10]))))
        with pytest.raises(GlocalError, match=r"a.tar: shard truncated"):
            load(shard)


def test_a_damaged_header_and_joined_shards_are_told(tmp_path):
    content = bytearray(tar(tmp_path / "w" / "w.tar", samples(0, 10)).read_bytes())
    with tarfile.open(tmp_path / "w" / "w.tar") as archive:
        at = next(member.offset for member in archive if member.name == "0008.png")
    content[at + 3] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    source = load(tmp_path / "a.tar", on_error="skip")
    assert listed(source) == {"a.tar": f"shard damaged (at byte {at}: no valid header)"}
    assert len(source.train) + len(source.val) == 8
    (tmp_path / "a.tar").write_bytes((tmp_path / "w" / "w.tar").read_bytes() * 2)
    assert "continues after its end mark" in listed(load(tmp_path / "a.tar", on_error="skip"))["a.tar"]
    (tmp_path / "a.tar").write_bytes(b"hello" * 1000)
    checked = check_folder(tmp_path / "a.tar", progress=False)
    assert [bad.reason for bad in checked.skipped] == ["not a tar (its first header is damaged)"]
    (tmp_path / "p.tar").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "p.tar")
    assert [bad.reason for bad in check_folder(tmp_path / "p.tar", progress=False).skipped] == [
        "expected a regular file, got something else"
    ]


def test_hostile_members_do_nothing(tmp_path):
    outside = tmp_path / "x.png"
    members = [
        *samples(0, 8),
        *[("../../x.png", png(80)), ("../../x.cls", b"0")],
        *[("/etc/y.png", png(81)), ("/etc/y.cls", b"1")],
        *[("a\nb\x1b[2J.png", png(82)), ("a\nb\x1b[2J.cls", b"0")],
        *[("caf\udce9.png", png(83)), ("caf\udce9.cls", b"1")],
        *[info("l1.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), ("l1.cls", b"0")],
        *[info("l2.png", type=tarfile.LNKTYPE, linkname="0000.png"), ("l2.cls", b"0")],
        *[info("l3.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5), ("l3.cls", b"0")],
        *[info("l4.png", type=tarfile.FIFOTYPE), ("l4.cls", b"0")],
        *[("l5.png", png(84)), info("l5.cls", type=tarfile.SYMTYPE, linkname="0000.cls")],
        info("folder", type=tarfile.DIRTYPE),
        *[("l6.png", png(85)), info("l6.txt", type=tarfile.SYMTYPE, linkname="x"), ("l6.cls", b"0")],
    ]
    before = sorted(tmp_path.rglob("*"))
    tar(tmp_path / "s" / "a.tar", members)
    source = load(tmp_path / "s" / "a.tar", on_error="skip")
    no_file = "(only files are supported)"
    assert listed(source) == {
        "a.tar/l1.png": f"is a link {no_file}",
        "a.tar/l2.png": f"is a link {no_file}",
        "a.tar/l3.png": f"is a device {no_file}",
        "a.tar/l4.png": f"is a pipe {no_file}",
        "a.tar/l5.cls": f"is a link {no_file}",
        "a.tar/l5.png": "no label (expected .cls or .json of the same key next to it)",
        "a.tar/l6.txt": f"is a link {no_file}",
    }
    names = {path.removeprefix("a.tar/") for part in (source.train, source.val) for path in part.paths}
    assert names - {f"{i:04d}.png" for i in range(8)} == {
        "../../x.png",
        "/etc/y.png",
        "a\nb\x1b[2J.png",
        "caf\udce9.png",
        "l6.png",
    }
    for part in (source.train, source.val):
        for i in range(len(part)):
            part.image(i)
    assert not outside.exists()
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "s", tmp_path / "s" / "a.tar"])


def resized(content: bytes, name: str, size: bytes) -> bytes:
    """A tar whose member claims a size: 12 bytes for its field; the checksum is made right."""
    at = content.index(name.encode() + b"\0")
    header = bytearray(content[at : at + 512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:at] + bytes(header) + content[at + 512 :]


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (b"77777777777\0", "truncated"),
        (b"\x80" + b"\0" * 3 + b"\x0f" + b"\xff" * 7, "truncated"),
        (b"\x80" + b"\xff" * 11, "truncated"),
        (b"\xff" * 12, "no valid size"),  # -1: tarfile went back in the file and never came to its end
        (b"\xff" * 10 + b"\xfe\0", "no valid size"),
        (b"-0000000512\0", "no valid size"),
        (b"0000_000512\0", "no valid size"),
        (b"hello world\0", "no valid size"),
    ],
)
def test_claimed_sizes_take_no_memory_and_no_time(tmp_path, size, reason):
    content = tar(tmp_path / "w" / "w.tar", samples(0, 9)).read_bytes()
    (tmp_path / "a.tar").write_bytes(resized(content, "0008.png", size))
    source = load(tmp_path / "a.tar", on_error="skip")
    assert reason in listed(source)["a.tar"]
    assert len(source.train) + len(source.val) == 8


def test_an_image_of_8_gib_is_refused_by_its_header(tmp_path, monkeypatch):
    """The bytes are there (a hole in the file), so the shard is whole."""
    content = tar(tmp_path / "a.tar", samples(0, 8)).read_bytes().rstrip(b"\0")
    with open(tmp_path / "a.tar", "r+b") as file:
        file.seek(-(-len(content) // 512) * 512)
        file.write(resized(info("big.png").tobuf(), "big.png", b"\x80" + (2**33).to_bytes(11, "big")))
        file.seek(2**33, os.SEEK_CUR)
        file.write(info("big.cls", b"1").tobuf() + b"1".ljust(512, b"\0") + bytes(1024))
    sizes, read = [], shard_index.read_at
    monkeypatch.setattr(
        shard_index, "read_at", lambda file, at, size: sizes.append(size) or read(file, at, min(size, 10**6))
    )
    source = load(tmp_path / "a.tar", on_error="skip")
    assert max(sizes) < 10_000
    assert listed(source) == {"a.tar/big.png": "has 8192.0 MiB, the limit is 256.0 MiB"}
    assert len(source.train) + len(source.val) == 8


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_kind_of_tar(tmp_path, kind):
    long = "n" * 60 + "/" + "m" * 60 + "/" + "k" * 30
    if kind != tarfile.USTAR_FORMAT:
        long = "n" * 200 + "/" + long + "\u00e9"
    members = [*samples(0, 8), (f"{long}.png", png(90)), (f"{long}.cls", b"1"), *sample("0009", 1)]
    shard = tar(tmp_path / "a.tar", members, kind)
    index = read_index(str(shard))
    with tarfile.open(shard) as archive:
        theirs = [(member.name, member.offset_data, member.size) for member in archive if member.name.endswith("png")]
    assert [(one.name, one.offset, one.size) for one in index.samples] == theirs
    assert len(theirs) == 10
    assert index.damage is None


def test_what_gnu_tar_writes_is_read(tmp_path):
    root = tmp_path / "files" / ("deep" * 30)
    root.mkdir(parents=True)
    for name, content in samples(0, 6):
        (root / name).write_bytes(content)
    with open(root / "0007.png", "wb") as file:  # holes, which --sparse leaves out: more than a header has room for
        for at in range(40):
            file.seek(at * 2**17)
            file.write(png(7).ljust(4096, b"x"))
    (root / "0007.cls").write_text("1")
    os.link(root / "0000.png", root / "0008.png")
    (root / "0008.cls").write_text("0")
    for kind in ("gnu", "posix", "oldgnu"):
        shard = tmp_path / f"{kind}.tar"
        command = [
            "tar",
            "--sort=name",
            "--sparse",
            f"--format={kind}",
            "-C",
            str(tmp_path / "files"),
            "-cf",
            str(shard),
            ".",
        ]
        subprocess.run(command, check=True)
        source = load(shard, on_error="skip")
        prefix = f"{kind}.tar/./{root.name}"
        assert listed(source) == {
            f"{prefix}/0007.png": "is a sparse file (not supported)",
            f"{prefix}/0008.png": "is a link (only files are supported)",
        }
        assert len(source.train) + len(source.val) == 6
        assert np.array_equal(np.asarray(source.val.image(0)), np.asarray(picture(int(source.val.paths[0][-8:-4]))))


@pytest.mark.parametrize(
    "pax", [b"12 size=-99\n", b"99 path=x\n", b"path=x\n", b"0 \n", b"11 path=x\n ", b"13 size=1e99\n"]
)
def test_damaged_pax_headers_are_damage(tmp_path, pax):
    content = tar(tmp_path / "w" / "w.tar", samples(0, 8)).read_bytes().rstrip(b"\0")
    content += bytes(-len(content) % 512)
    header = info("x", pax, type=tarfile.XHDTYPE).tobuf() + pax.ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(content + header + info("z.png").tobuf() + bytes(1024))
    index = read_index(str(tmp_path / "a.tar"))
    assert index.damage.startswith("shard damaged (at byte")
    assert len(index.samples) == 8


def test_any_flipped_byte_and_any_cut_is_survived(tmp_path):
    content = tar(tmp_path / "w" / "w.tar", samples(0, 3)).read_bytes()
    rng = np.random.default_rng(0)
    shard = tmp_path / "a.tar"
    for _ in range(300):
        changed = bytearray(content)
        for at in rng.integers(0, len(content.rstrip(b"\0")), rng.integers(1, 4)):
            changed[at] = rng.integers(0, 256)
        shard.write_bytes(changed[: rng.integers(1, len(changed) + 1)])
        index = read_index(str(shard))
        assert len(index.samples) <= 6
        assert all(one.offset >= 0 and one.offset + one.size <= shard.stat().st_size for one in index.samples)


# The order of an epoch


@pytest.mark.parametrize(
    ("counts", "window"), [((5, 7, 1, 9, 4, 6, 8), 3), ((10,) * 20, 16), ((3, 3), 1), ((4,), 16), ((), 4)]
)
def test_an_order_has_every_position_once_and_few_shards_at_a_time(counts, window):
    groups = np.repeat(np.arange(len(counts)) * 7 + 3, counts)
    groups = np.random.default_rng(9).permutation(groups)
    order = shuffled(groups, np.random.default_rng(0), window)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(len(groups)))
    at, met = 0, set()
    for _ in range(-(-len(counts) // window)):  # window after window
        inside = set()
        while at < len(order) and (groups[order[at]] in inside or len(inside) < window):
            inside.add(groups[order[at]])
            at += 1
        assert not inside & met
        met |= inside
    assert at == len(order)
    assert np.array_equal(order, shuffled(groups, np.random.default_rng(0), window))


def test_orders_differ_and_are_fair():
    groups = np.repeat(np.arange(6), 4)
    assert not np.array_equal(
        shuffled(groups, np.random.default_rng(0), 2), shuffled(groups, np.random.default_rng(1), 2)
    )
    rng = np.random.default_rng(3)
    orders = np.stack([np.argsort(shuffled(groups, rng, 2)) for _ in range(4000)])  # place of each image
    assert np.abs(orders.mean(axis=0) - 11.5).max() < 0.6  # 5 standard errors: 6.9 / sqrt(4000) = 0.11 each
    neighbours = np.mean([np.diff(groups[shuffled(groups, rng, 2)]) == 0 for _ in range(500)])
    assert 0.3 < neighbours < 0.5  # two shards are mixed, not one read after the other (0.83): 3/7 within a window
    with pytest.raises(GlocalError, match="window: expected at least 1 shard, got 0"):
        shuffled(groups, rng, 0)


def test_groups_go_with_subsets(tmp_path):
    for i in range(3):
        tar(tmp_path / f"train-{i}.tar", samples(10 * i, 10))
    train = load(tmp_path).train
    assert all(path.startswith(f"train-{group}.tar/") for path, group in zip(train.paths, train.groups, strict=True))
    some = train.fraction(0.5, seed=1).subset([5, 0, 3])
    assert all(path.startswith(f"train-{group}.tar/") for path, group in zip(some.paths, some.groups, strict=True))
    assert np.array_equal(np.asarray(some.image(0)), np.asarray(picture(int(some.paths[0][-8:-4]))))


# Reading


class Pixels(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return index, torch.from_numpy(np.array(self.images.image(index)))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_read_the_same(tmp_path):
    for i in range(3):
        tar(tmp_path / f"train-{i}.tar", samples(10 * i, 10))
    train = load(tmp_path).train
    alone = [np.asarray(train.image(i)) for i in range(len(train))]  # the descriptors are open when the workers start
    loader = torch.utils.data.DataLoader(
        Pixels(train), batch_size=4, num_workers=2, shuffle=True, multiprocessing_context="fork"
    )
    seen = {}
    for indices, pixels in loader:
        seen.update(zip(indices.tolist(), pixels.numpy(), strict=True))
    assert len(seen) == len(train) == 24
    assert all(np.array_equal(seen[i], alone[i]) for i in range(24))


def test_the_store_can_be_pickled_and_keeps_few_files_open(tmp_path):
    count = shard_index.OPEN_SHARDS + 10
    for i in range(count):
        tar(tmp_path / f"train-{i:03d}.tar", samples(2 * i, 2))
    train = pickle.loads(pickle.dumps(load(tmp_path).train))
    before = len(os.listdir("/proc/self/fd"))
    shard_index._opened.cache_clear()
    without = len(os.listdir("/proc/self/fd"))
    wrong = []

    def read(seed):
        for i in np.random.default_rng(seed).permutation(len(train)).tolist():
            if not np.array_equal(np.asarray(train.image(i)), np.asarray(picture(int(train.paths[i][-8:-4])))):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(os.listdir("/proc/self/fd")) - without == shard_index.OPEN_SHARDS
    assert before - without <= shard_index.OPEN_SHARDS


def test_a_shard_stays_open_while_a_thread_reads_from_it(tmp_path, monkeypatch):
    tar(tmp_path / "a.tar", samples(0, 10))
    train, read = load(tmp_path / "a.tar").train, shard_index.read_at

    def after_others(*place):
        shard_index._opened.cache_clear()  # as if other threads had opened 64 shards since
        return read(*place)

    monkeypatch.setattr(shard_index, "read_at", after_others)
    assert np.array_equal(np.asarray(train.image(0)), np.asarray(picture(int(train.paths[0][-8:-4]))))


def test_a_shard_that_changed_since_is_an_error_of_its_images(tmp_path):
    shard = tar(tmp_path / "a.tar", samples(0, 10))
    source = load(shard)
    shard_index._opened.cache_clear()
    content = shard.read_bytes()
    tar(shard, samples(20, 10))
    with pytest.raises(ImageError, match=r"a.tar/\d+.png: unreadable \(the shard has changed since it was checked\)"):
        source.train.image(0)
    shard.unlink()
    with pytest.raises(ImageError, match="No such file"):
        source.train.image(0)
    shard.write_bytes(content)
    source = load(shard)
    image = source.train.image(0)
    with open(shard, "r+b") as file:
        file.truncate(600)  # while it is open here
    last = int(np.argmax(source.train.store.offset[source.train.rows]))
    with pytest.raises(ImageError, match=r"truncated \(the shard ends inside it\)") as error:
        source.train.image(last)
    assert error.value.path == source.train.paths[last]
    assert image.mode == "RGB"


# The cache


def count_decodes(monkeypatch):
    decoded = []
    open_image = shards.open_image
    monkeypatch.setattr(
        shards, "open_image", lambda *a, name, **k: decoded.append(name) or open_image(*a, name=name, **k)
    )
    return decoded


def test_a_second_look_reads_nothing_that_has_not_changed(tmp_path, monkeypatch):
    for i in range(3):
        members = samples(10 * i, 10)
        tar(tmp_path / f"train-{i}.tar", [*members, (f"bad{i}.png", b"x"), (f"bad{i}.cls", b"0"), (f"r{i}", b"")])
    decoded, indexed = count_decodes(monkeypatch), []
    read = shards.read_index
    monkeypatch.setattr(shards, "read_index", lambda file: indexed.append(file) or read(file))
    first = load(tmp_path, on_error="skip")
    assert (len(decoded), len(indexed)) == (33, 3)
    again = load(tmp_path / "train-{0..2}.tar", on_error="skip")
    assert (len(decoded), len(indexed)) == (33, 3)
    assert again.fingerprint == first.fingerprint
    assert again.skipped == first.skipped
    assert again.warnings == first.warnings
    assert again.train.paths == first.train.paths
    assert np.array_equal(np.asarray(again.train.image(3)), np.asarray(first.train.image(3)))
    del decoded[:], indexed[:]
    tar(tmp_path / "train-1.tar", samples(40, 5))
    load(tmp_path, on_error="skip")
    assert [os.path.basename(file) for file in indexed] == ["train-1.tar"]
    assert decoded == [f"train-1.tar/{i:04d}.png" for i in range(40, 45)]
    del decoded[:], indexed[:]
    load(tmp_path, on_error="skip", limits=ImageLimits(max_pixels=1000))
    assert (len(decoded), len(indexed)) == (27, 3)


def test_a_cache_that_is_broken_is_none(tmp_path, monkeypatch):
    tar(tmp_path / "a.tar", samples(0, 10))
    first = load(tmp_path / "a.tar")
    (file,) = Path(os.environ["GLOCAL_CACHE"]).glob("scans/*.json")
    stamp = json.loads(file.read_text())[0]
    for broken in (
        "",
        "[",
        "{}",
        "[1, 2]",
        json.dumps([stamp, [[1]], [], [], None]),
        json.dumps([stamp, [], [[]], [], None]),
    ):
        file.write_text(broken)
        assert load(tmp_path / "a.tar").fingerprint == first.fingerprint
    monkeypatch.setenv("GLOCAL_CACHE", "/proc/nowhere")
    assert load(tmp_path / "a.tar").fingerprint == first.fingerprint


def test_what_failed_for_want_of_memory_or_disk_is_tried_again(tmp_path, monkeypatch):
    tar(tmp_path / "a.tar", samples(0, 10))
    scan_member = shards.scan_member

    def fails(task, *, limits):
        reasons = {2: "unreadable (Input/output error)", 5: "cannot be decoded (MemoryError: )"}
        return shards.Scanned(reasons[task.number]) if task.number in reasons else scan_member(task, limits=limits)

    monkeypatch.setattr(shards, "scan_member", fails)
    assert len(load(tmp_path / "a.tar", on_error="skip").skipped) == 2
    monkeypatch.setattr(shards, "scan_member", scan_member)
    decoded = count_decodes(monkeypatch)
    assert load(tmp_path / "a.tar").skipped == ()
    assert decoded == ["a.tar/0002.png", "a.tar/0005.png"]


def test_processes_find_the_same_as_one(tmp_path, monkeypatch):
    for i in range(3):
        tar(tmp_path / f"train-{i}.tar", [*samples(50 * i, 50), (f"bad{i}.png", b"x"), (f"bad{i}.cls", b"0")])
    together = load(tmp_path, on_error="skip", workers=2)
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / "other"))
    alone = load(tmp_path, on_error="skip", workers=1)
    assert together.fingerprint == alone.fingerprint
    assert together.skipped == alone.skipped
    assert len(alone.skipped) == 3
    assert together.train.paths == alone.train.paths


COUNTING = """
import os, sys, time
from pathlib import Path
from glocal.data import images, load_data, scan, shards

data, here = sys.argv[1], Path(sys.argv[2])
for module in (scan, shards):
    def counted(*arguments, open_image=module.open_image, **options):
        with open(here / "decoded", "a") as file:
            file.write("x")
        time.sleep(0.002)
        return open_image(*arguments, **options)
    module.open_image = counted
(here / f"ready-{os.getpid()}").touch()
while len(list(here.glob("ready-*"))) < 2:
    time.sleep(0.005)
print(load_data(data, workers=1, progress=False).fingerprint)
"""


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_of_two_processes_that_start_at_once_one_scans(tmp_path, kind):
    if kind == "folder":
        folder(tmp_path / "data", {"a": 60, "b": 60})
    else:
        for i in range(4):
            tar(tmp_path / "data" / f"{i}.tar", samples(30 * i, 30))
    command = [sys.executable, "-c", COUNTING, str(tmp_path / "data"), str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert results[0][0] == results[1][0] != ""
    assert len((tmp_path / "decoded").read_text()) == 120


def test_counts_for_the_table(tmp_path):
    tar(tmp_path / "train-0.tar", [*samples(0, 9), ("bad.png", b"x"), ("bad.cls", b"1"), ("odd.cls", b"1")])
    tar(tmp_path / "val-0.tar", samples(20, 4))
    checked = check_folder(tmp_path, progress=False)
    assert checked.usable == {"train": {"0": 5, "1": 4}, "val": {"0": 2, "1": 2}}
    assert checked.unusable == {"0": 0, "1": 1, "": 1}
    assert len(split_folder(checked).train) == 9


def test_an_image_of_a_shard_is_the_image_of_its_bytes(tmp_path):
    content = encoded(picture(5, (40, 30)), "JPEG", quality=90)
    tar(tmp_path / "a.tar", [*samples(0, 8), ("z.jpeg", content), ("z.cls", b"0")])
    source = load(tmp_path / "a.tar", val_fraction=0.5)
    part = source.train if "a.tar/z.jpeg" in source.train.paths else source.val
    with Image.open(io.BytesIO(content)) as expected:
        assert np.array_equal(np.asarray(part.image(part.paths.index("a.tar/z.jpeg"))), np.asarray(expected))
