"""`glocal train` as a person calls it."""

import json
import signal

import pytest
import timm

from glocal.training import recipe_names
from tests.shapes import write_folder

QUICK = ("--model", "resnet_micro", "--device", "cpu", "-s", "epochs=2", "-s", "batch_size=16", "-s", "image_size=32")


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "data")


@pytest.fixture
def call(command):
    """(exit code, stdout, stderr), white space folded."""

    def run(*arguments):
        code, out, err = command("train", *arguments)
        return code, " ".join(out.split()), " ".join(err.split())

    return run


def test_a_run_from_folder_to_model(call, tmp_path):
    code, out, err = call("data", *QUICK, "--out", "run", "-s", "checkpoint_every_steps=2", "--tensorboard")
    assert code == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert f"resnet_micro: top-1 {100 * results['top1']:.1f} %" in out
    assert out.endswith("Model: run/model.safetensors")
    assert "3 classes, 48 training and 12 validation images" in err
    assert results["steps"] == 6
    assert list((tmp_path / "run/tensorboard").glob("events*"))
    assert timm.create_model("local-dir:run", pretrained=True).num_classes == 3
    assert call("data", *QUICK, "--out", "run")[0] == 2
    code, again, err = call("data", *QUICK, "--out", "run", "-s", "checkpoint_every_steps=2", "--resume")
    assert (code, again) == (0, out)


def test_a_run_goes_on_where_a_signal_stopped_it(call, command, tmp_path, monkeypatch):
    from glocal.training.trainer import Trainer

    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    report = Trainer._report

    def send(trainer):
        report(trainer)
        if trainer.state.step == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_report", send)
    code, _, err = call("data", *QUICK, "--out", "run")
    assert code == 75
    assert "Stopped by SIGTERM: saved up to step 4; to resume: glocal train data" in err
    assert "--out run --resume" in err
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / "cache"))
    assert command("train", "data", *QUICK, "--out", "run", "--resume")[0] == 0
    assert json.loads((tmp_path / "run/results.json").read_text())["steps"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", *QUICK), "got nothing, which is neither"),
        (("data", "--model", "resnet_mico"), "unknown model 'resnet_mico'; nearest: resnet_micro"),
        (("data", *QUICK, "--recipe", "diet"), "shipped recipes"),
        (("data", *QUICK, "-s", "epoch=3"), "unknown setting 'epoch'; nearest: epochs"),
        (("data", *QUICK, "-s", "lr"), "expected key=value"),
        (("data", *QUICK, "--weights", "none.pth"), "expected a file or pretrained, got none.pth"),
        (("data", *QUICK, "--weights", "pretrained"), "timm has no weights of resnet_micro"),
        (("data", *QUICK, "--freeze", "stern"), "expected backbone or the name of a module"),
        (("data", *QUICK, "--resume"), "--resume need --out"),
        (("data", *QUICK, "--devices", "2"), "several processes need --out"),
        (("data", *QUICK, "--precision", "fp16"), "fp16 needs a CUDA device"),
        (("data", *QUICK, "--precision", "64"), "expected one of 32, bf16, fp16"),
        (("data", *QUICK, "--strategy", "zero"), "expected one of ddp, fsdp"),
        (("data", *QUICK, "--device", "tpu"), "expected auto or one of"),
        (("data", *QUICK, "--out", "data/across/000.png/run"), "cannot write to"),
        (("data", *QUICK, "-s", "image_size=4"), "image_size must be 8 to 1024"),
        (
            ("data", *QUICK, "-s", "batch_size=2", "-s", "grad_accum_steps=3"),
            "grad_accum_steps must be from 1 to batch_size",
        ),
        (("data", *QUICK, "-s", "augment=randaugment", "-s", "auto_augment=random"), "must be a policy of timm"),
    ],
)
def test_a_wrong_call_is_one_message(call, arguments, message, tmp_path):
    code, _, err = call(*arguments)
    assert code == 2
    assert message in err
    assert err.count("Error:") == 1
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/checkpoints"))


def test_bad_images_stop_or_are_listed(call, tmp_path):
    (tmp_path / "data/down/bad.png").write_bytes(b"no image")
    code, _, err = call("data", *QUICK, "--out", "run")
    assert (code, "down/bad.png" in err) == (2, True)
    code, *_ = call("data", *QUICK, "--out", "run", "--on-error", "skip")
    assert code == 0
    skipped = json.loads((tmp_path / "run/results.json").read_text())["skipped"]
    assert [bad["path"] for bad in skipped] == ["down/bad.png"]


def test_a_failure_of_training_is_one_message(call, tmp_path):
    code, _, err = call("data", *QUICK, "-s", "lr=1e30", "-s", "warmup=0", "-s", "clip_grad=0", "--out", "run")
    assert code == 1
    assert "Failed:" in err
    assert "became" in err or "not finite" in err


def test_from_weights_and_by_the_recipe_that_fits(call, tmp_path):
    call("data", *QUICK, "--out", "first")
    code, _, _ = call("data", *QUICK, "--out", "tuned", "--weights", "first/model.safetensors")
    assert code == 0
    assert json.loads((tmp_path / "tuned/plan.json").read_text())["recipe"]["layer_decay"] == 0.75
    code, _, _ = call("data", *QUICK, "--out", "probe", "--weights", "first/model.safetensors", "--freeze", "backbone")
    assert code == 0
    recipe = json.loads((tmp_path / "probe/plan.json").read_text())["recipe"]
    assert (recipe["freeze"], recipe["lr"]) == (["backbone"], 0.01)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_trains(call, tmp_path, name):
    model = {"probe": "resnet_micro", "finetune": "resnet_micro"}.get(
        name, "vit_micro" if name != "resnet" else "resnet_micro"
    )
    code, out, err = call(
        "data", "--model", model, "--recipe", name, "--device", "cpu", "-s", "epochs=1", "-s", "batch_size=16",
        "-s", "image_size=32", "--workers", "0", "--out", "run",
    )  # fmt: skip
    assert code == 0, err
    assert "top-1" in out
