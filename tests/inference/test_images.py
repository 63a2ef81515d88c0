"""Predictions of many images: files that others read, interrupted and resumed jobs, unreadable images."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from glocal.data.pasted import items_on_photos
from glocal.data.rle import counts_from_mask, encode_counts
from glocal.errors import GlocalError
from glocal.inference import list_inputs, predict_images
from glocal.inference.images import COCO, LINES, file_name
from glocal.models.io import ModelConfig, SavedModel
from glocal.report.figures import COLOURS as OF_REPORT
from glocal.tasks.drawing import COLOURS, colour, draw_label_map, draw_objects

CLASSES = ("bee", "\x1b[31mant", "cat")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Finds(torch.nn.Module):
    """A detector that finds the brightest half, twice, more or less sure."""

    def forward(self, images):
        found = []
        for image in images:
            _, height, width = image.shape
            mask = torch.zeros(1, height, width, dtype=torch.bool)
            mask[:, : height // 2] = True
            found.append({
                "boxes": torch.tensor([[0.0, 0.0, width, height / 2]] * 2), "scores": torch.tensor([0.9, 0.2]),
                "labels": torch.tensor([2, 1]), "masks": torch.cat((mask, ~mask)),
            })  # fmt: skip
        return found


class Labels(torch.nn.Module):
    """A segmenter: class 2 where red is above the mean, else 0."""

    def forward(self, x):
        bright = (x[:, 0] > 0).float()
        return torch.stack((1 - bright, torch.zeros_like(bright), bright), 1)


def saved(task="detection"):
    head = "mask_rcnn" if task == "detection" else "upernet"
    preset = "small" if task == "detection" else ""
    of = ModelConfig(task, "resnet_micro", CLASSES, 32, MEAN, STD, head=head, preset=preset, category_ids=(4, 1, 9))
    return SavedModel(of, Finds() if task == "detection" else Labels(), f"digest of {task}")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for i, sample in enumerate(items_on_photos(64, train=3, val=1).train):
        Image.fromarray(sample.image[:, : 64 - 8 * i]).save(folder / f"{i}.png")
    Image.new("RGB", (40, 48), (255, 0, 0)).save(folder / "more/0.png")
    (folder / "bad.png").write_bytes(b"no image")
    return list_inputs(["pictures"])


def go(images, out, task="detection", **kwargs):
    return predict_images(saved(task), images, out, **{"workers": 0, "draw": True, **kwargs})


def files(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_objects_as_others_read_them(pictures, tmp_path):
    summary = go(pictures, tmp_path / "out")
    assert (summary.total, summary.failed, summary.before) == (5, 1, 0)
    lines = [json.loads(line) for line in (tmp_path / "out" / LINES).read_text().splitlines()]
    assert [line["path"] for line in lines] == list(pictures.paths)
    bad = next(line for line in lines if "bad.png" in line["path"])
    assert "not a readable" in bad["error"]
    good = [line for line in lines if line["error"] is None]
    found = json.loads((tmp_path / "out" / COCO).read_text())
    assert found == [one for line in good for one in line["objects"]]
    assert len(found) == 8
    first = found[0]
    width, height = good[0]["size"]
    mask = np.zeros((height, width), bool)
    mask[: height // 2] = True
    assert (first["category_id"], first["bbox"]) == (9, [0, 0, width, height / 2])
    assert first["segmentation"] == {"size": [height, width], "counts": encode_counts(counts_from_mask(mask))}
    assert good[0]["classes"] == ["cat", CLASSES[1]]
    drawn = np.asarray(Image.open(tmp_path / "out" / good[0]["drawn"]))
    assert drawn.shape == (height, width, 3)
    assert drawn[0, width - 1].tolist() == list(colour(2)), "the box of the sure one; the other is not drawn"


def test_only_sure_objects_are_written(pictures, tmp_path):
    go(pictures, tmp_path / "out", threshold=0.5, draw=False)
    found = json.loads((tmp_path / "out" / COCO).read_text())
    assert [one["score"] for one in found] == pytest.approx([0.9] * 4)
    assert not (tmp_path / "out/drawn").exists()


def test_label_maps_as_others_read_them(pictures, tmp_path):
    go(pictures, tmp_path / "out", "segmentation")
    lines = [json.loads(line) for line in (tmp_path / "out" / LINES).read_text().splitlines()]
    good = [line for line in lines if line["error"] is None]
    assert len({line["mask"] for line in good}) == len(list((tmp_path / "out/masks").iterdir())) == 4
    red = next(line for line in good if "more" in line["path"])
    assert red["shares"] == {"cat": 1.0}
    label_map = np.asarray(Image.open(tmp_path / "out" / red["mask"]))
    assert label_map.shape == (48, 40)
    assert (label_map == 2).all()
    assert not (tmp_path / "out" / COCO).exists()


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stopped_job_goes_on(pictures, tmp_path, task, stop_after):
    go(pictures, tmp_path / "whole", task)

    def stop(progress):
        if progress.done == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(pictures, tmp_path / "out", task, progress=stop)
    with (tmp_path / "out" / LINES).open("ab") as file:
        file.write(b'{"path": "pict')  # torn by a crash
    with pytest.raises(GlocalError, match="has predictions already"):
        go(pictures, tmp_path / "out", task)
    with pytest.raises(GlocalError, match=r"draw: was 0\.5, is null"):
        go(pictures, tmp_path / "out", task, resume=True, draw=False)
    summary = go(pictures, tmp_path / "out", task, resume=True)
    assert summary.before == stop_after
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert go(pictures, tmp_path / "out", task, resume=True).before == 5


def test_workers_change_nothing(pictures, tmp_path):
    go(pictures, tmp_path / "one")
    go(pictures, tmp_path / "two", workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_folder_with_other_files_is_refused(pictures, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("precious")
    with pytest.raises(GlocalError, match="expected an empty or a new folder"):
        go(pictures, tmp_path / "out")
    with pytest.raises(GlocalError, match="threshold: expected a score"):
        go(pictures, tmp_path / "new", threshold=2.0)


@pytest.mark.parametrize("path", ["../../etc/passwd", "a/b.png", "a\x1b[31m\n.png", "é" * 300, "", "..", "x/.png"])
def test_names_stay_inside(path):
    name = file_name(path)
    assert "/" not in name
    assert name.isascii()
    assert name.isprintable()
    assert len(name) < 80
    assert name != file_name(path + "x")


def test_colours_are_those_of_the_report():
    assert tuple(light for light, _ in OF_REPORT) == COLOURS


def test_pictures_of_objects_and_classes():
    image = Image.new("RGB", (100, 80), (10, 20, 30))
    masks = np.zeros((2, 80, 100), bool)
    masks[0, 40:60, 40:60] = masks[1, 50:70, 50:70] = True
    boxes = np.array([[40, 40, 60, 60], [50, 50, 70, 70]], np.float32)
    drawn = np.asarray(draw_objects(image, boxes, np.array([0, 1]), np.array([0.9, 0.8]), masks, CLASSES))
    mixed = [round(0.55 * a + 0.45 * b) for a, b in zip((10, 20, 30), colour(1), strict=True)]
    assert drawn[66, 66].tolist() == mixed
    assert drawn[40, 59].tolist() == list(colour(0))
    assert drawn[5, 5].tolist() == [10, 20, 30]
    assert np.asarray(image)[66, 66].tolist() == [10, 20, 30], "the image itself is not drawn on"
    label_map = np.zeros((80, 100), int)
    label_map[70:, 90:] = 1
    drawn = np.asarray(draw_label_map(image, label_map, ("background", "cat")))
    assert drawn[79, 99].tolist() == mixed
    assert drawn[60, 50].tolist() == [10, 20, 30]
    bare = draw_objects(image, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), None, CLASSES)
    assert np.array_equal(np.asarray(bare), np.asarray(image))
