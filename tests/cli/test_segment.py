"""`glocal segment` as a person calls it."""

import json

import numpy as np
import pytest
from PIL import Image

from glocal.data.pasted import label_maps_of_items

QUICK = (
    "--model", "resnet_micro", "--device", "cpu", "--workers", "0", "-s", "epochs=2", "-s", "batch_size=4",
    "-s", "image_size=64", "--option", "dim=32", "--option", "head_dim=32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    """A plain folder of images and label maps."""
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    source = label_maps_of_items(64, train=6, val=3)
    for part, images in (("train", source.train), ("val", source.val)):
        for folder in ("images", "masks"):
            (tmp_path / "maps" / folder / part).mkdir(parents=True)
        for i in range(len(images)):
            sample = images[i]
            Image.fromarray(sample.image).save(tmp_path / f"maps/images/{part}/{i}.png")
            Image.fromarray(sample.label_map.astype(np.uint8)).save(tmp_path / f"maps/masks/{part}/{i}.png")
    (tmp_path / "maps/classes.txt").write_text("\n".join(source.classes))


@pytest.fixture
def call(command):
    """(exit code, stdout, stderr), white space folded."""

    def run(*arguments):
        code, out, err = command("segment", *arguments)
        return code, " ".join(out.split()), " ".join(err.split())

    return run


def test_from_label_maps_to_label_maps(call, tmp_path):
    code, out, err = call("train", "maps", *QUICK, "--out", "run")
    assert code == 0, err
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert f"semantic_fpn on resnet_micro: mIoU {100 * results['miou']:.1f} %" in out
    assert call("train", "maps", *QUICK, "--out", "run", "--resume")[1] == out
    code, out, err = call("eval", "run", "maps", "--out", "eval.json", "--device", "cpu")
    assert code == 0, err
    measured = json.loads((tmp_path / "eval.json").read_text())
    assert measured["miou"] == pytest.approx(results["miou"])
    assert measured["confusion"] == results["confusion"]
    assert "background" in out
    code, _, err = call("predict", "run", "maps/images/val", "--out", "labelled", "--draw", "--device", "cpu")
    assert code == 0, err
    maps = list((tmp_path / "labelled/masks").iterdir())
    assert len(maps) == len(list((tmp_path / "labelled/drawn").iterdir())) == 3
    assert np.asarray(Image.open(maps[0])).shape == (64, 64)
    # the label maps of predict are those that were measured
    counts = np.zeros((11, 11), int)
    for line in (tmp_path / "labelled/predictions.jsonl").read_text().splitlines():
        entry = json.loads(line)
        truth = np.asarray(Image.open(entry["path"].replace("images", "masks")))
        np.add.at(counts, (truth, np.asarray(Image.open(tmp_path / "labelled" / entry["mask"]))), 1)
    assert counts.tolist() == measured["confusion"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nothing", *QUICK), "data: expected a folder or items-on-photos, got nothing"),
        (("train", "maps", *QUICK, "--segmenter", "unet"), "segmenter: expected one of"),
        (("train", "maps", *QUICK, "-s", "cutmix=1"), "cutmix has no meaning for segmentation"),
        (
            ("train", "maps", *QUICK, "-s", "milestones=[0.9,0.5]"),
            "milestones must be increasing fractions of the budget",
        ),
        (("train", "maps", *QUICK, "-s", "schedule=poli"), "schedule must be one of cosine, step, poly"),
        (("eval", "maps", "maps"), "expected a folder with model.safetensors"),
        (("eval", "nothing", "maps", "--part", "all"), "part: expected one of val, train"),
    ],
)
def test_a_wrong_call_is_one_message(call, arguments, message):
    code, _, err = call(*arguments)
    assert code == 2, err
    assert message in err
    assert err.count("Error:") == 1


def test_classes_are_found_by_name(call, tmp_path):
    assert call("train", "maps", *QUICK, "--out", "run", "-s", "epochs=1")[0] == 0
    names = (tmp_path / "maps/classes.txt").read_text().splitlines()
    (tmp_path / "maps/classes.txt").write_text("\n".join([*names[:-1], "Spaceship"]))
    code, _, err = call("eval", "run", "maps", "--device", "cpu")
    assert code == 2
    assert "got Spaceship" in err
