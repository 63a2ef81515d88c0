"""`export_model`: what is written gives what the model gives, or is not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

import glocal
from glocal.errors import GlocalError
from glocal.export import VerificationError, export_model, formats, load_exported, writing
from glocal.export.verification import TOLERANCE
from glocal.models.io import load_model
from tests.export.conftest import CLASSES, Tiny
from tests.randomized import calm, undrawn

FAMILIES = glocal.list_models("*_micro")
QUICK = ("vit_micro",)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_in_both_runtimes(name, tmp_path):
    model = calm(undrawn(timm.create_model, name, num_classes=5))
    exported = export_model(model, tmp_path / "model.onnx", to="onnx", image_size=32, dynamic=True)
    assert [check[:2] for check in exported.checks] == [(1, (32, 32)), (5, (32, 32)), (1, (64, 96)), (5, (64, 96))]
    assert exported.max_relative_difference < 1e-5
    assert exported.fixed_because is None
    for runtime in ("onnxruntime", "openvino"):
        loaded = load_exported(exported.path, runtime)
        for shape in ((1, 3, 32, 32), (3, 3, 128, 64)):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                expected = model(x)
            assert (loaded(x) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_what_the_files_hold(made):
    assert (made.onnx.format, made.onnx.runtime) == ("onnx", "onnxruntime")
    assert (made.xml.format, made.xml.runtime) == ("openvino", "openvino")
    assert (made.pt2.format, made.pt2.runtime) == ("torch-export", "torch")
    assert made.onnx.num_bytes == made.onnx.path.stat().st_size
    assert made.xml.num_bytes == sum((made.root / name).stat().st_size for name in ("model.xml", "model.bin"))
    for exported in (made.onnx, made.xml, made.pt2):
        loaded = load_exported(exported.path, trust=True)
        assert exported.max_relative_difference < 1e-5
        assert (loaded.name, loaded.classes, loaded.image_size) == ("Tiny", CLASSES, 32)
        assert (loaded.std, loaded.interpolation) == (IMAGENET_DEFAULT_STD, "bicubic")
    onnx, xml = load_exported(made.onnx.path), load_exported(made.xml.path)
    assert (onnx.crop_pct, onnx.mean) == (0.875, (0.1, 0.2, 0.3))
    assert (xml.crop_pct, xml.mean) == (1.0, IMAGENET_DEFAULT_MEAN)


def test_nothing_of_this_machine_is_in_a_file(made):
    places = {str(Path(glocal.__file__).parent), str(Path(torch.__file__).parent), str(Path.home()), str(made.root)}
    for file in made.root.iterdir():
        if file.is_file():
            content = file.read_bytes()
            assert not [place for place in places if place.encode() in content], file.name


def test_one_size_and_one_batch(tmp_path, made):
    exported = export_model(made.model, tmp_path / "m.xml", to="openvino", image_size=(48, 40), batch_size=2)
    assert [check[:2] for check in exported.checks] == [(2, (48, 40))]
    loaded = load_exported(exported.path)
    assert loaded.image_size == (48, 40)
    assert loaded(torch.randn(5, 3, 48, 40)).shape == (5, 3)
    with pytest.raises(GlocalError, match=r"with H and W \(48, 40\) for .*m.xml, got float32 \(5, 3, 40, 48\)"):
        loaded(torch.randn(5, 3, 40, 48))


@pytest.mark.parametrize(("to", "name"), [("onnx", "m.onnx"), ("openvino", "m.xml"), ("torch-export", "m.pt2")])
def test_half_the_weights(to, name, tmp_path, made):
    exported = export_model(made.model, tmp_path / name, to=to, image_size=32, half=True)
    assert 1e-6 < exported.max_relative_difference < exported.tolerance
    whole = {"onnx": made.onnx, "openvino": made.xml, "torch-export": made.pt2}[to]
    weights = 4 * sum(p.numel() for p in made.model.parameters())
    assert whole.num_bytes - exported.num_bytes > 0.4 * weights - 3000  # OpenVINO and torch say what was converted
    assert load_exported(exported.path, trust=True).description.half
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}


def test_a_folder_of_safetensors(tmp_path):
    model = calm(undrawn(timm.create_model, "vit_micro", num_classes=3, img_size=64))
    exported = export_model(
        model, tmp_path / "m", to="safetensors", image_size=64, interpolation="bicubic", model_args={"img_size": 64},
        classes=("a", "b", "c"),
    )  # fmt: skip
    assert exported.max_difference == 0
    assert sorted(os.listdir(tmp_path)) == ["m"]
    assert load_model(tmp_path / "m").classes == ("a", "b", "c")
    with pytest.raises(GlocalError, match=r"m/model.safetensors already exists"):
        export_model(model, tmp_path / "m", to="safetensors", image_size=64, interpolation="bicubic")
    with pytest.raises(GlocalError, match=r"expected mean and std of timm's configuration"):
        export_model(
            model, tmp_path / "n", to="safetensors", image_size=64, interpolation="bicubic", mean=(0.1, 0.2, 0.3)
        )
    with pytest.raises(GlocalError, match=r"bicubic resize, got bilinear"):
        export_model(model, tmp_path / "n", to="safetensors", image_size=64, interpolation="bilinear")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_ahead_of_time(tmp_path, made):
    exported = export_model(made.model, tmp_path / "m.pt2", to="aoti", image_size=32, dynamic=True)
    assert exported.max_relative_difference < 1e-5
    assert load_exported(exported.path, trust=True)(torch.randn(3, 3, 32, 32)).shape == (3, 3)


def test_above_two_gigabytes_the_weights_lie_beside(tmp_path, monkeypatch, made):
    monkeypatch.setattr(formats, "MAX_ONE_FILE", 0)
    exported = export_model(made.model, tmp_path / "m.onnx", to="onnx", image_size=32)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    x = torch.randn(1, 3, 32, 32)
    for runtime in ("onnxruntime", "openvino"):
        torch.testing.assert_close(load_exported(exported.path, runtime)(x), made.model(x), rtol=1e-4, atol=1e-4)
    monkeypatch.undo()
    export_model(made.model, tmp_path / "m.onnx", to="onnx", image_size=32, overwrite=True)
    assert os.listdir(tmp_path) == ["m.onnx"]


# What must not be left behind.


def wrong(factor):
    """A writer of ONNX that changes one weight tensor."""
    real = formats.write_onnx

    def write(program, path, text, half):
        name = next(name for name in program.state_dict if name.endswith("fc.weight"))
        program.state_dict[name] = nn.Parameter(program.state_dict[name] * factor)
        real(program, path, text, half)

    return write


@pytest.mark.parametrize("factor", [1.001, -1.0, float("nan")])
def test_another_function_is_removed_and_the_difference_told(factor, tmp_path, monkeypatch, made):
    target = tmp_path / "m.onnx"
    before = made.onnx.path.read_bytes()
    target.write_bytes(before)
    monkeypatch.setitem(formats.WRITERS, "onnx", wrong(factor))
    with pytest.raises(VerificationError, match=r"its logits differ from the model's by") as caught:
        export_model(made.model, target, to="onnx", image_size=32, overwrite=True)
    assert caught.value.checks[0].relative > TOLERANCE
    assert os.listdir(tmp_path) == ["m.onnx"]
    assert target.read_bytes() == before


@pytest.mark.parametrize(
    ("error", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left"), GlocalError)]
)
def test_a_stop_leaves_nothing(error, raised, tmp_path, monkeypatch, made):
    def stopped(program, path, text, half):
        path.write_bytes(b"half a file")
        raise error

    monkeypatch.setitem(formats.WRITERS, "onnx", stopped)
    with pytest.raises(raised):
        export_model(made.model, tmp_path / "m.onnx", to="onnx", image_size=32)
    assert os.listdir(tmp_path) == []


def test_an_operator_without_a_rule_is_an_error_of_the_user(tmp_path, made):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.svd(x.mean(1))[1]

    with pytest.raises(GlocalError, match=r"Odd cannot be exported as onnx"):
        export_model(Odd(), tmp_path / "m.onnx", to="onnx", image_size=32)
    assert os.listdir(tmp_path) == []


# What is there is kept.


def test_only_an_export_of_the_same_kind_is_replaced(tmp_path, made):
    def export(name, to="onnx", **kwargs):
        return export_model(made.model, tmp_path / name, to=to, image_size=32, **kwargs)

    export("m.onnx")
    with pytest.raises(GlocalError, match=r"m.onnx already exists; --force replaces it"):
        export("m.onnx")
    assert export("m.onnx", overwrite=True, batch_size=2).path.exists()
    (tmp_path / "foreign.onnx").write_bytes(b"something else")
    (tmp_path / "cut.onnx").write_bytes(made.onnx.path.read_bytes()[:-9])
    (tmp_path / "alone.bin").write_bytes(b"of someone")
    (tmp_path / "torch.pt2").write_bytes(made.pt2.path.read_bytes())
    (tmp_path / "folder.onnx").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for name, to, message in (
        ("foreign.onnx", "onnx", "is not replaced: it is not a complete file of `glocal export --to onnx`"),
        ("cut.onnx", "onnx", "is not replaced"),
        ("torch.pt2", "aoti", "its format is torch-export"),
        ("alone.xml", "openvino", "alone.bin exists without"),
        ("folder.onnx", "onnx", "expected a file that ends in .onnx"),
    ):
        with pytest.raises(GlocalError, match=message):
            export(name, to, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("m.onnx", {"to": "onx"}, "to: expected one of onnx, openvino, .*; nearest: onnx"),
        ("m.xml", {}, "out: expected a file that ends in .onnx for onnx, got .*m.xml"),
        ("no/m.onnx", {}, "out: expected an existing folder, got .*no"),
        ("m.onnx", {"to": "safetensors"}, "out: expected the name of a folder for safetensors"),
        ("m", {"to": "safetensors", "half": True}, "half: expected another format"),
        ("m", {"to": "safetensors", "image_size": (32, 64)}, "size: expected a square"),
        ("m.onnx", {"image_size": 7}, "size: expected 8 to 4096 pixels, got 7"),
        ("m.onnx", {"other_sizes": (64,)}, "size: expected one, or --dynamic"),
        ("m.onnx", {"image_size": 40, "other_sizes": (64,), "dynamic": True}, "40 is not a multiple of 32"),
        ("m.onnx", {"batch_size": 0}, "batch: expected at least 1, got 0"),
        ("m.onnx", {"classes": ("a",)}, "classes: expected 3 names, one per logit, got 1"),
        ("m.onnx", {"classes": ("a", "a", "b")}, "invalid classes"),
        ("m.onnx", {"mean": (1e9, 0, 0)}, "invalid mean"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(name, arguments, message, tmp_path, made):
    with pytest.raises(GlocalError, match=message):
        export_model(made.model, tmp_path / name, **{"to": "onnx", "image_size": 32, **arguments})
    assert os.listdir(tmp_path) == []


def test_a_size_that_the_model_refuses(tmp_path):
    model = timm.create_model("test_vit", num_classes=3, dynamic_img_size=False)
    with pytest.raises(GlocalError, match=r"size: test_vit cannot be run on 96 x 96 images: Input height"):
        export_model(model, tmp_path / "m.onnx", to="onnx", image_size=96)


def test_a_model_that_is_no_classifier(tmp_path):
    with pytest.raises(GlocalError, match=r"expected finite \(B, K\) logits"):
        export_model(nn.Conv2d(3, 4, 3), tmp_path / "m.onnx", to="onnx", image_size=32)


def test_the_model_is_left_as_it_was(tmp_path, made):
    model = Tiny().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = [Image.new("RGB", (50, 40), (10 * i, 0, 0)) for i in range(3)]
    export_model(model, tmp_path / "m.pt2", to="torch-export", image_size=32, images=images)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


OFFLINE = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo") or (event == "import" and "telemetry." in arguments[0]):
        raise RuntimeError(f"{event} {arguments}")
sys.addaudithook(refuse)
import glocal
from glocal.export import load_exported
load_exported(sys.argv[1])
assert "openvino" in sys.modules and "openvino_telemetry" not in sys.modules
"""


def test_openvino_reports_nothing_to_anyone(made, tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, made.xml.path], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "intel").exists()


def test_without_a_compiler_aoti_says_so(tmp_path, monkeypatch, made):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GlocalError, match=r"aoti: expected a C\+\+ compiler"):
        export_model(made.model, tmp_path / "m.pt2", to="aoti", image_size=32)


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, made):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(GlocalError, match=r"onnxscript is not installed; pip install glocal\[export\]"):
        export_model(made.model, tmp_path / "m.onnx", to="onnx", image_size=32)


def test_writing_has_no_format_without_a_writer():
    assert {*formats.WRITERS, "safetensors"} == {*formats.ENDS} == {*writing.FORMATS}
