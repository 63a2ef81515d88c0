"""`glocal export` as a person calls it, and its files in `glocal predict` and `glocal eval`."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")

import glocal.cli
from glocal.cli import eval, export, predict  # noqa: F401  (registers the commands)
from glocal.data.builtin import CLASSES as CLOTHES
from glocal.export import formats
from tests.inference.making import write_images, write_model

RUNTIMES = (("model.onnx", None), ("model.onnx", "openvino"), ("fixed.xml", None), ("model.pt2", "torch"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    write_model(root / "run", classes=CLOTHES)
    write_images(root / "photos", 11, bad=(2, 5))
    return root


@pytest.fixture(scope="module")
def files(place):
    """The exports that most tests look at, by the command: the first in a process of its own, as users start it."""
    for out, *options in (("model.onnx", "--to", "onnx", "--dynamic"),
                          ("fixed.xml", "--to", "openvino", "--batch", "4", "--images", "photos/000.png"),
                          ("model.pt2", "--to", "torch-export", "--dynamic", "--images", "fashion-mini")):  # fmt: skip
        run = in_a_process if out == "model.onnx" else in_this_process
        stdout, stderr = run(place, "export", "run", *options, "--out", out)
        assert stderr == ""
        assert f"{out}: resnet_micro (weights of run) for 32 x 32 images" in stdout
    return place


def in_a_process(folder, *arguments):
    command = [sys.executable, "-m", "glocal", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def in_this_process(folder, *arguments):
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["glocal", *arguments])
        with pytest.raises(SystemExit) as stop:
            glocal.cli.main()
    assert not stop.value.code, err.getvalue()
    return out.getvalue(), err.getvalue()


@pytest.fixture
def call(command, monkeypatch, place):
    monkeypatch.chdir(place)
    return command


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_equal_predictions(call, files, tmp_path):
    options = ("photos", "--workers", "0", "--batch-size", "5", "--top-k", "10")
    call("predict", "run", *options, "--out", tmp_path / "plain.jsonl")
    plain = lines(tmp_path / "plain.jsonl")
    for number, (file, runtime) in enumerate(RUNTIMES):
        out = tmp_path / f"{number}.jsonl"
        extra = (*(("--runtime", runtime) if runtime else ()), "--trust")
        assert call("predict", file, *options, "--out", out, *extra)[0] == 0
        for expected, got in zip(plain, lines(out), strict=True):
            assert (got["path"], got["error"]) == (expected["path"], expected["error"])
            assert [top["class"] for top in got["top"]] == [top["class"] for top in expected["top"]]
            shares = [[top["probability"] for top in line["top"]] for line in (expected, got)]
            np.testing.assert_allclose(*shares, atol=1e-5)


def test_equal_measurements_on_fashion_mini(call, files, tmp_path):
    results = {}
    for file, runtime in (("run", None), *RUNTIMES):
        out = tmp_path / "r.json"
        extra = (*(("--runtime", runtime) if runtime else ()), "--trust")
        assert call("eval", file, "fashion-mini", "--workers", "0", "--out", out, *extra)[0] == 0
        results[file, runtime] = json.loads(out.read_text())
    plain = results.pop(("run", None))
    assert plain["images"] == 2000
    assert plain["model"]["runtime"] == "torch"
    for (file, runtime), got in results.items():
        assert got["model"]["runtime"] == runtime or {"model.onnx": "onnxruntime", "fixed.xml": "openvino"}[file]
        for key in ("top1", "top5", "per_class", "confusions"):
            assert got[key] == plain[key]
        for key in ("nll", "ece"):
            assert got[key] == pytest.approx(plain[key], abs=1e-5)
    assert len({got["model"]["digest"] for got in results.values()}) == 3


def test_what_is_shown(call, files, tmp_path):
    code, out, err = call("export", "vit_micro", "--to", "onnx", "--dynamic", "--size", "32,64x32", "--out",
                          tmp_path / "m.onnx")  # fmt: skip
    assert code == 0
    assert "Note: vit_micro has random weights" in err
    rows = [line.split() for line in out.splitlines()[1:5]]
    assert [row[:4] for row in rows] == [[n, h, "x", "32"] for h in ("32", "64") for n in ("1", "5")]
    assert all(float(row[4]) < 1e-4 and float(row[5]) < 1e-5 for row in rows)
    assert (
        "vit_micro (random weights) for 32 x 32 images, or any height and width of multiples of 32, any number" in out
    )
    assert "verified in onnxruntime (tolerance 0.0001)" in out
    digests = (tmp_path / "m.onnx").read_bytes()
    code, _, err = call("export", "vit_micro", "--to", "onnx", "--out", tmp_path / "m.onnx")
    assert (code, (tmp_path / "m.onnx").read_bytes()) == (2, digests)
    assert "already exists; --force replaces it" in err


def test_a_wrong_file_is_exit_code_1(call, place, monkeypatch, tmp_path):
    real = formats.write_onnx

    def wrong(program, path, text, half):
        program.state_dict["fc.weight"] = torch.nn.Parameter(program.state_dict["fc.weight"] * 1.01)
        real(program, path, text, half)

    monkeypatch.setitem(formats.WRITERS, "onnx", wrong)
    code, out, err = call("export", "run", "--to", "onnx", "--out", tmp_path / "m.onnx")
    assert code == 1
    assert "Error: " in err
    assert "its logits differ from the model's by" in err
    assert float(out.splitlines()[1].split()[-1]) > 1e-4
    assert os.listdir(tmp_path) == []


def test_the_name_of_the_file_is_the_models(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("export", "resnet_micro", "--to", "safetensors")[0] == 0
    assert sorted(os.listdir("resnet_micro")) == ["config.json", "model.safetensors"]
    code, out, err = call("export", "resnet_micro", "--to", "torch-export")  # the folder, not the name
    assert code == 0
    assert "(weights of resnet_micro)" in out
    assert "random" not in err
    assert sorted(os.listdir()) == ["resnet_micro", "resnet_micro.pt2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export",), "Missing argument"),
        (("export", "run"), "Missing option '--to'"),
        (("export", "run", "--to", "onx"), "to: expected one of onnx, openvino, torch-export, aoti, safetensors, got"),
        (("export", "nothing", "--to", "onnx"), "unknown model 'nothing'"),
        (("export", "no/run", "--to", "onnx"), "no/run: no such file or folder; check the path"),
        (("export", "photos", "--to", "onnx"), "expected a folder with model.safetensors, got one without"),
        (("export", "run", "--to", "onnx", "--size", "big"), "size: expected pixels such as 224, 224x288"),
        (("export", "run", "--to", "onnx", "--size", "32,64"), "size: expected one, or --dynamic"),
        (("export", "run", "--to", "onnx", "--weights", "w.pth"), "--weights: expected the name of a model"),
        (("export", "run", "--to", "onnx", "--batch", "0"), "batch: expected at least 1, got 0"),
        (("export", "run", "--to", "onnx", "--images", "nothing"), "got nothing, which is not there"),
        (("export", "run", "--to", "onnx", "--images", "photos"), "photos/002.png: not a readable"),
        (("export", "run", "--to", "onnx", "--out", "photos"), "out: expected a file that ends in .onnx"),
        (("predict", "model.pt2", "photos"), "loading a .pt2 can execute code"),
        (("predict", "run", "photos", "--runtime", "openvino"), "runtime: expected torch for run, got openvino"),
        (("predict", "model.onnx", "photos", "--runtime", "torch"), "expected onnxruntime or openvino for model.onnx"),
        (("predict", "model.onnx", "photos", "--device", "cuda"), "device: expected cpu for model.onnx, an exported"),
        (("eval", "model.onnx", "photos", "--runtime", "x"), "runtime: expected one of onnxruntime, openvino, torch"),
        (("eval", "cut.onnx", "fashion-mini"), "cut.onnx: is damaged or not ONNX; export it again"),
    ],
)
def test_bad_calls_say_so_and_exit_with_2(call, files, arguments, message):
    (files / "cut.onnx").write_bytes((files / "model.onnx").read_bytes()[:-9])
    before = sorted(os.listdir(files))
    code, out, err = call(*arguments)
    assert code == 2
    assert message in " ".join((out + err).split())
    assert sorted(os.listdir(files)) == before


def test_a_job_goes_on_in_the_same_runtime_alone(call, files, tmp_path, monkeypatch):
    import glocal.inference.predict as module

    real = module._local_batches

    def interrupted(*arguments):
        yield next(real(*arguments))
        raise KeyboardInterrupt

    arguments = ("model.onnx", "photos", "--workers", "0", "--batch-size", "5", "--out", tmp_path / "o.jsonl")
    monkeypatch.setattr(module, "_local_batches", interrupted)
    assert call("predict", *arguments)[0] == 130
    monkeypatch.setattr(module, "_local_batches", real)
    code, _, err = call("predict", *arguments, "--resume", "--runtime", "openvino")
    assert code == 2
    assert 'runtime: was "onnxruntime", is "openvino"' in err
    code, _, err = call("predict", *arguments, "--resume")
    assert code == 0
    assert "11 images, 5 of them before, 2 unreadable" in err


def test_help_has_examples():
    shown = subprocess.run(
        [sys.executable, "-m", "glocal", "export", "--help"], capture_output=True, text=True, timeout=60
    )
    assert "glocal export run --to onnx" in shown.stdout
    assert "Exit codes:" in shown.stdout


def test_the_command_is_registered():
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "glocal", "--help"], capture_output=True, text=True, timeout=60
    )
    assert "export" in {line.split()[0] for line in shown.stdout.splitlines() if line.split()}
    assert not [line for line in shown.stderr.splitlines() if line.split("|")[-1].strip() in ("torch", "onnx")]
