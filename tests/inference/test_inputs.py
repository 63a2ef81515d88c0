"""Which images a job is about, and in which order they are read."""

import io
import os
import tarfile

import numpy as np
import pytest

from glocal.data.transforms import resize_crop
from glocal.errors import GlocalError
from glocal.inference import Inputs, list_inputs
from glocal.inference.inputs import Reader, read_batches
from tests.data.making import encoded, picture
from tests.inference.making import Crashing, write_images


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def reader(inputs, batch_size=4, size=32, crop_pct=1.0):
    return Reader(inputs, size=size, crop_pct=crop_pct, batch_size=batch_size)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_folders_are_searched_in_one_order(tmp_path):
    for name in ("z.png", "b/2.png", "b/1.png", "b/c/3.txt", "a/4.png", ".hidden/5.png", "b/.6.png", "Thumbs.db"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    os.symlink(tmp_path / "in" / "z.png", tmp_path / "in" / "link.png")
    os.symlink(tmp_path / "in", tmp_path / "in" / "loop")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    found = list_inputs(["in/b/2.png", "in", "in/link.png", "in/z.png"])
    assert found.paths == ("in/b/2.png", "in/z.png", "in/a/4.png", "in/b/1.png", "in/b/c/3.txt", "in/link.png")
    assert list_inputs(["in"]).digest() != found.digest() == list_inputs(["in/b/2.png", "in", "in/link.png"]).digest()


def test_undecodable_names_are_inputs(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "\udcff\n.png").write_bytes(encoded(picture(), "PNG"))
    found = list_inputs(["in"])
    assert found.paths == ("in/\udcff\n.png",)
    assert found.image(0).size == (24, 16)
    assert len(found.digest()) == 64


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["missing\x1b"], r"got missing\\x1b, which is not there"),
        (["empty"], "got no file in empty"),
        (["closed"], r"cannot read the folder closed"),
        (["{0..2}.tar"], "missing: 3"),
        (["a.tar.gz"], "expected plain .tar shards"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, names, message, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):  # root may read everything
        if str(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(GlocalError, match=message):
        list_inputs(names)


def test_images_of_shards_need_no_labels(tmp_path):
    pictures = {f"{i}": encoded(picture(i, (40, 32)), "PNG") for i in range(5)}
    write_tar(tmp_path / "s-0.tar", {"a/0.png": pictures["0"], "a/0.cls": b"7", "1.png": pictures["1"], "1.json": b"{"})
    write_tar(
        tmp_path / "s-1.tar", {"2.png": pictures["2"], "3.left.png": b"x", "3.right.png": b"x", "4.txt": b"hello"}
    )
    (tmp_path / "s-2.tar").write_bytes(b"no tar" * 200)
    (tmp_path / "5.png").write_bytes(pictures["3"])
    found = list_inputs(["s-{0..1}.tar", "5.png"])
    assert found.paths[:3] == ("s-0.tar/a/0.png", "s-0.tar/1.png", "s-1.tar/2.png")
    assert found.paths[-1] == "5.png"
    good = {"s-0.tar/a/0.png": 0, "s-0.tar/1.png": 1, "s-1.tar/2.png": 2, "5.png": 3}
    for i, path in enumerate(found.paths):
        if path in good:
            assert np.array_equal(np.asarray(found.image(i)), np.asarray(picture(good[path], (40, 32))))
        else:
            with pytest.raises(GlocalError, match=r"several images of one key|no image"):
                found.image(i)
    assert len(found) == 6
    # wherever a shard lies: named, in a folder, behind a star
    whole = [path.removeprefix("./") for path in list_inputs(["."]).paths]
    assert whole == ["5.png", *list_inputs(["s-*.tar"]).paths]
    assert whole[-1] == "s-2.tar"
    batches = list(read_batches(reader(list_inputs(["."])), workers=2))
    assert [error is None for batch in batches for error in batch.errors].count(True) == 4
    assert "not a tar" in batches[-1].errors[-1]


def test_batches_are_cut_at_fixed_places(tmp_path):
    inputs = list_inputs([str(write_images(tmp_path / "in", 10, bad=(5, 6)))])
    whole = list(read_batches(reader(inputs), workers=0))
    assert [(read.start, len(read.pixels)) for read in whole] == [(0, 4), (4, 4), (8, 2)]
    assert [error for read in whole for error in read.errors if error] == [
        "empty file",
        "not a readable JPEG, PNG, WebP, BMP, TIFF or GIF",
    ]
    assert not whole[1].pixels[1:3].any()
    assert whole[1].pixels[3].any()
    for start in range(4):
        for workers in (0, 2):
            again = list(read_batches(reader(inputs), start, workers))
            assert [read.start for read in again] == [4 * number for number in range(start, 3)]
            for read, expected in zip(again, whole[start:], strict=True):
                assert (read.pixels == expected.pixels).all()


def test_the_rule_of_size_is_that_of_training(tmp_path):
    inputs = list_inputs([str(write_images(tmp_path / "in", 1, size=50))])
    for crop_pct in (1.0, 0.8):
        (read,) = read_batches(reader(inputs, size=32, crop_pct=crop_pct), workers=0)
        expected = resize_crop(inputs.image(0), 32, crop_pct)
        assert (read.pixels[0].permute(1, 2, 0).numpy() == expected).all()


def test_a_decoder_that_crashes_its_process_costs_one_image():
    rows = np.arange(6)
    inputs = Inputs(tuple("abcdef"), (Crashing(3),), np.stack([np.zeros_like(rows), rows], axis=1))
    reads = list(read_batches(reader(inputs, batch_size=2), workers=1))
    assert [error for read in reads for error in read.errors] == [None] * 3 + ["the decoder crashed on it"] + [None] * 2
    reds = [int(image[0, 0, 0]) for read in reads for image in read.pixels]
    assert reds == [0, 5, 10, 0, 20, 25]
