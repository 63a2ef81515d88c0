"""`glocal check --task`, as a person calls it."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.annotating import coco_folder, label_png, voc_folder
from tests.data.making import picture


@pytest.fixture(autouse=True)
def own_place(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


def rows(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]


def test_objects_are_counted_and_what_is_bad_is_listed(command, tmp_path):
    root = coco_folder(tmp_path / "data", [3, 4, 1], [2])
    file = root / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [500, 500, 9, 9]
    content["annotations"][1]["bbox"] = [5, 5, 0, 9]
    content["categories"][0]["name"] = "[red]bee\x1b"
    file.write_text(json.dumps(content))
    val = root / "annotations/instances_val2017.json"
    val.write_text(json.dumps(json.loads(val.read_text()) | {"categories": content["categories"]}))
    (root / "train2017/003.png").write_bytes(b"")
    code, out, _ = command("check", root, "--task", "detect")
    assert code == 1
    table = rows(out)
    assert [row[0] for row in table[:3]] == ["ant", "[red]bee\\x1b", "cat"]
    assert sum(int(row[1]) for row in table[:3]) == 5
    assert sum(int(row[2]) for row in table[:3]) == 2
    assert sorted(table[3:]) == [["box outside the image", "1"], ["box without area", "1"], ["empty file", "1"]]
    assert "Unusable files and objects: 3, listed with reasons in skipped.jsonl" in out
    assert "2 train and 1 val images: train and val as in the data" in out
    listed = [json.loads(line) for line in Path("skipped.jsonl").read_text().splitlines()]
    assert [entry["path"] for entry in listed] == ["train2017/001.png", "train2017/001.png", "train2017/003.png"]
    assert [entry.get("annotation") for entry in listed] == [1000, 1001, None]
    assert "\x1b" not in out


def test_voc_and_its_notes(command, tmp_path):
    root = voc_folder(tmp_path / "data", {"train": 4, "val": 3})
    picture().save(root / "JPEGImages" / "spare.png")
    code, out, _ = command("check", root, "--task", "detect")
    assert code == 0
    assert "Note: ignored, not listed in ImageSets/Main: 1 (JPEGImages/spare.png)" in out
    assert Path("skipped.jsonl").read_text() == ""


def test_label_maps_are_counted(command, tmp_path):
    for number in range(10):
        (tmp_path / "images").mkdir(exist_ok=True)
        picture(number).save(tmp_path / "images" / f"{number}.png")
        label_png(tmp_path / "masks" / f"{number}.png", np.full((16, 24), number % 2, np.uint8))
    label_png(tmp_path / "masks" / "3.png", np.zeros((5, 5), np.uint8))
    code, out, _ = command("check", tmp_path, "--task", "segment", "--split-seed", 3)
    assert code == 1
    table = rows(out)
    assert sum(int(row[1]) + int(row[2]) for row in table[:2]) == 9
    assert table[2] == ["label map size differs from its image", "1"]
    assert "7 train and 2 val images: 20% of the images held out for val, split seed 3" in out


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_the_generated_set(command, task):
    code, out, _ = command("check", "items-on-photos", "--task", task)
    assert code == 0
    assert "4800 train and 200 val images: generated; train and val share no items and no parts of photographs" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((".", "--task", "count"), "--task: expected one of classify, detect, segment, got 'count'"),
        ((".", "--task", "detect"), "got neither"),
        ((".", "--task", "segment"), "none of these pairs of folders"),
        (("missing", "--task", "detect"), "which is neither"),
        (("missing.json", "--task", "detect"), "expected a readable missing.json"),
        (("items-on-photos",), "expected images with a class each"),
        (("items-on-photos:x", "--task", "detect"), "SIZE"),
    ],
)
def test_bad_calls_say_so_and_exit_with_2(command, arguments, message):
    code, out, err = command("check", *arguments)
    assert code == 2
    assert message in " ".join((out + err).split())
