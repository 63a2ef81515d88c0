"""`glocal detect` as a person calls it."""

import json
import signal

import pytest

import glocal
from glocal.models.io import ModelConfig, save_model
from tests.data.annotating import coco_folder

QUICK = (
    "--model", "resnet_micro", "--device", "cpu", "--workers", "0", "-s", "epochs=2", "-s", "batch_size=4",
    "-s", "image_size=64", "-s", "checkpoint_every_steps=1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    coco_folder(tmp_path / "coco", [1, 2, 3, 0, 4, 1], [2, 3])


@pytest.fixture
def call(command):
    """(exit code, stdout, stderr), white space folded."""

    def run(*arguments):
        code, out, err = command("detect", *arguments)
        return code, " ".join(out.split()), " ".join(err.split())

    return run


def test_from_annotations_to_pictures(call, tmp_path):
    classifier = glocal.create_model("resnet_micro", num_classes=2)
    save_model(
        classifier, tmp_path / "classifier", ModelConfig.of_classifier(classifier, classes=("a", "b"), image_size=32)
    )
    code, out, err = call(
        "train", "coco", *QUICK, "--detector", "mask_rcnn", "--weights", "classifier", "--out", "run", "--option",
        "box_score_thresh=0.0",
    )  # fmt: skip
    assert code == 0, err
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert f"mask_rcnn on resnet_micro: box AP {100 * results['map']:.1f} %" in out
    assert ", mask AP " in out
    assert "tensors of a trained resnet_micro; left out: fc.weight, fc.bias" in err
    assert "3 classes, 6 training and 2 validation images" in err
    assert results["transfer"]["left_out"] == ["fc.weight", "fc.bias"]

    code, out, err = call("eval", "run", "coco", "--out", "eval.json", "--predictions", "found.json", "--device", "cpu")
    assert code == 0, err
    measured = json.loads((tmp_path / "eval.json").read_text())
    assert (measured["map"], measured["mask"]["map"]) == (results["map"], results["mask"]["map"])
    assert "mask_rcnn on resnet_micro on 2 images of coco (val): box AP" in out
    found = json.loads((tmp_path / "found.json").read_text())
    truth = json.loads((tmp_path / "coco/annotations/instances_val2017.json").read_text())
    assert found
    assert {one["image_id"] for one in found} <= {image["id"] for image in truth["images"]}
    assert {one["category_id"] for one in found} <= {3, 7, 90}
    assert by_pycocotools(tmp_path / "coco/annotations/instances_val2017.json", found) == pytest.approx(
        measured["map"], abs=1e-3
    )

    (tmp_path / "coco/val2017/bad.png").write_bytes(b"")
    arguments = ("predict", "run", "coco/val2017", "--out", "predicted", "--draw", "--draw-threshold", "0",
                 "--threshold", "0", "--workers", "0", "--device", "cpu")  # fmt: skip
    code, _, err = call(*arguments)
    assert code == 0, err
    assert "3 images, 1 unreadable; results in predicted" in err
    assert len(list((tmp_path / "predicted/drawn").iterdir())) == 2
    assert json.loads((tmp_path / "predicted/predictions.json").read_text())
    assert call(*arguments)[0] == 2
    assert "3 of them before" in call(*arguments, "--resume")[2]


def by_pycocotools(truth, found):
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(
            coco, coco.loadRes([{k: v for k, v in one.items() if k != "segmentation"} for one in found]), "bbox"
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return max(0.0, evaluation.stats[0])


def test_a_run_goes_on_where_a_signal_stopped_it(call, command, tmp_path, monkeypatch):
    from glocal.training.trainer import Trainer

    report = Trainer._report

    def send(trainer):
        report(trainer)
        if trainer.state.step == 1:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_report", send)
        code, _, err = call("train", "coco", *QUICK, "--out", "run")
    assert code == 75
    assert "Stopped by SIGTERM: saved up to step 2; to resume: glocal detect train coco" in err
    code, _, err = call("train", "coco", *QUICK, "--out", "run", "--resume")
    assert code == 0, err
    assert json.loads((tmp_path / "run/results.json").read_text())["steps"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nothing", *QUICK), "expected a folder in the layout of COCO"),
        (("train", "coco", "--model", "resnet_mico"), "unknown model 'resnet_mico'; nearest: resnet_micro"),
        (("train", "coco", *QUICK, "--detector", "yolo"), "detector: expected one of"),
        (("train", "coco", *QUICK, "--preset", "huge"), "preset: expected one of coco, small"),
        (("train", "coco", *QUICK, "--recipe", "detect_2x"), "shipped recipes"),
        (("train", "coco", *QUICK, "-s", "mixup=0.5"), "mixup has no meaning for detection"),
        (("train", "coco", *QUICK, "-s", "image_size=8"), "image_size must be 32 to 2048"),
        (("train", "coco", *QUICK, "--weights", "none"), "which is none"),
        (("train", "coco", *QUICK, "--weights", "pretrained"), "timm has no weights of resnet_micro"),
        (("train", "coco", *QUICK, "--option", "chanels=3"), "nearest: channels"),
        (("train", "coco", *QUICK, "--frozen-stages", "9"), "frozen_stages: expected 0 to"),
        (("train", "coco", *QUICK, "--freeze", "stern"), "expected backbone or the name of a module"),
        (("train", "coco", *QUICK, "--resume"), "--resume need --out"),
        (("train", "coco", *QUICK, "--devices", "2"), "several processes need --out"),
        (("train", "items-on-photos:7", *QUICK), "expected a size of 64 to 2048 pixels"),
        (("eval", "coco", "coco"), "expected a folder with model.safetensors"),
        (("eval", "nothing", "coco"), "no such file or folder"),
        (("predict", "nothing", "coco", "--out", "x"), "no such file or folder"),
    ],
)
def test_a_wrong_call_is_one_message(call, arguments, message, tmp_path):
    code, _, err = call(*arguments)
    assert code == 2, err
    assert message in err
    assert err.count("Error:") == 1
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


def test_after_a_wrong_call_the_folder_is_free(call):
    """Its plan was written, but nothing trained: the next call need not be of the same settings."""
    wrong = ("--detector", "detr", "--option", "d_model=33")
    for again in ((), ("--resume",)):
        code, _, err = call("train", "coco", *QUICK, "--out", "run", *wrong, *again)
        assert code == 2
        assert "detr on resnet_micro does not take an image of 64 pixels: " in err
        assert "choose another image_size, or other options of the head" in err
    code, _, err = call("train", "coco", *QUICK, "--out", "run")
    assert code == 0, err
    assert "has a run already" in call("train", "coco", *QUICK, "--out", "run")[2]


def test_objects_that_cannot_be_used_stop_or_are_listed(call, tmp_path):
    file = tmp_path / "coco/annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [1, 1, 0, 5]
    file.write_text(json.dumps(content))
    code, _, err = call("train", "coco", *QUICK, "--out", "run")
    assert code == 2
    assert "box without area" in err
    code, _, err = call("train", "coco", *QUICK, "--out", "run", "--on-error", "skip")
    assert code == 0, err
    assert "box without area" in json.loads((tmp_path / "run/results.json").read_text())["skipped"][0]["reason"]
