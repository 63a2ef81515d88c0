"""`glocal analyze` as a person calls it."""

import json
import os
from functools import partial

import numpy as np
import pytest

import glocal.cli
from tests.inference.making import write_images, write_model
from tests.shapes import CLASSES, write_folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    write_model(root / "run", name="vit_micro")
    write_model(root / "other", name="resnet_micro", seed=1)
    write_folder(root / "photos", 12)
    write_images(root / "plain", 9)
    (root / "empty").mkdir()
    return root


@pytest.fixture
def call(command, monkeypatch, place):
    monkeypatch.chdir(place)
    return partial(command, "analyze")


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("fourier", ("run", "--images", "plain", "--output", "branch")),
        ("attention", ("run", "--images", "photos")),
        ("receptive-field", ("run", "--images", "plain", "--versus", "resnet_micro")),
        ("locality", ("other", "--images", "photos", "--modules", "layer1.0.conv2", "--ablate", "zero")),
        ("features", ("other/model.safetensors", "--num-images", "2")),
        ("cam", ("run", "--images", "plain/000.png", "--images", "plain/001.png")),
        ("similarity", ("run", "--versus", "other", "--num-images", "12", "--batch-size", "6")),
        ("position", ("resnet_micro", "--num-images", "8", "--layers", "layer?.0")),
        ("robustness", ("run", "--images", "photos")),
    ],
)
def test_each_kind_leaves_a_page_numbers_arrays_and_figures(call, tmp_path, kind, arguments):
    code, out, err = call(kind, *arguments, "--out", tmp_path / "out")
    assert code == 0, err
    assert str(tmp_path / "out/report.html") in out
    assert err == ""
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["kind"] == kind
    assert results["glocal"] == glocal.__version__
    assert results["schema"] == "glocal.analyze/1"
    assert results["command"].startswith(f"glocal analyze {kind} {arguments[0]}")
    assert results["weights"] == ("random weights, seed 0" if arguments[0] == "resnet_micro" else "trained weights")
    with np.load(tmp_path / "out/arrays.npz", allow_pickle=False) as arrays:
        assert all(np.isfinite(arrays[name]).all() for name in arrays.files)
        if kind == "receptive-field":
            assert arrays["result.points.0.field"].shape == (32, 32)
            assert "versus.points.0.field" in arrays.files
    assert (tmp_path / "out/report.html").read_text().endswith("</html>")
    assert [*(tmp_path / "out/figures").glob("*.svg")]
    if kind in ("locality", "robustness"):
        assert results["result"]["accuracy" if kind == "locality" else "labelled"] not in (None, False)


def test_the_default_folder_is_named_after_kind_and_model(call, place):
    assert call("cam", "run", "--num-images", "2")[0] == 0
    assert (place / "runs/analyze-cam-run/report.html").is_file()


def test_help_shows_kinds_and_examples(call):
    code, out, _ = call("--help")
    assert code == 0
    for text in ("receptive-field", "glocal analyze fourier run", "Exit codes", "effective receptive field"):
        assert text in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument"),
        (("fourier",), "Missing argument"),
        (("furier", "run"), "kind: expected one of fourier, attention"),
        (("furier", "run"), "nearest: fourier"),
        (("fourier", "rum"), "model: expected a run, a model.safetensors or a model's name, got 'rum'"),
        (("fourier", "resnet5O"), "nearest: "),
        (("fourier", "empty"), "empty: expected a folder with model.safetensors"),
        (("fourier", "run", "--images", "nowhere"), "nowhere, which is not there"),
        (("fourier", "run", "--images", "empty"), "got no file in empty"),
        (("fourier", "run", "--definition", "radial"), "definition: expected one of rings, notebook"),
        (("fourier", "run", "--layers", "block"), "layers: expected names of modules, got block"),
        (("attention", "other"), "expected one with softmax attention"),
        (("cam", "run", "--versus", "other"), "--versus: works with fourier, receptive-field, similarity, got cam"),
        (("cam", "run", "--modules", "x"), "--modules: works with locality, got cam"),
        (("fourier", "run", "--device", "tpu"), "device: expected auto or one of"),
        (("cam", "run", "--out", "run/config.json/x"), "out: cannot write"),
        (("similarity", "run", "--num-images", "2"), "images: expected at least 4"),
    ],
)
def test_bad_calls_say_so_and_exit_with_2(call, place, arguments, message):
    before = sorted(os.listdir(place))
    code, out, err = call(*arguments)
    assert code == 2
    assert message in " ".join((out + err).split())
    if "runs" not in before:
        assert sorted(os.listdir(place)) == before


def test_labels_count_only_where_the_model_knows_them(call, tmp_path):
    assert call("robustness", "run", "--images", "plain", "--out", tmp_path)[0] == 0
    assert not json.loads((tmp_path / "results.json").read_text())["result"]["labelled"]
    assert "unchanged predictions" in (tmp_path / "report.html").read_text()
    assert len(CLASSES) == 3
