"""`load_exported`: exported files called like their model; damaged ones and those made to harm are refused."""

import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from glocal.errors import CheckpointError, GlocalError
from glocal.export import Description, load_exported
from glocal.export.description import KEY
from glocal.export.formats import seal
from tests.inference.making import saved_model


@pytest.mark.parametrize(
    ("name", "runtime"),
    [("model.onnx", None), ("model.onnx", "openvino"), ("model.xml", None), ("model.pt2", None), ("fixed.onnx", None),
     ("fixed.onnx", "openvino")],
)  # fmt: skip
def test_any_number_of_images(made, name, runtime):
    loaded = load_exported(made.root / name, runtime, threads=1, trust=True)
    x = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = made.model(x)
    for count in (9, 4, 1):
        got = loaded(x[:count])
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected[:count], rtol=1e-4, atol=1e-5)
    assert loaded(x[:0]).shape == (0, 3)
    again = pickle.loads(pickle.dumps(loaded))
    assert torch.equal(again(x), loaded(x))
    assert (again.path, again.runtime, again.identity) == (loaded.path, loaded.runtime, loaded.identity)


def test_a_run_is_taken_too(tmp_path):
    saved = saved_model(tmp_path / "run")
    x = torch.randn(2, 3, 32, 32)
    for path in (tmp_path / "run", tmp_path / "run/model.safetensors"):
        loaded = load_exported(path, "torch")
        torch.testing.assert_close(loaded(x), saved.model(x))
        assert (loaded.classes, loaded.identity) == (saved.classes, saved.digest)
    with pytest.raises(
        GlocalError, match=r"runtime: expected torch for .*run, got onnxruntime; `glocal export` writes"
    ):
        load_exported(tmp_path / "run", "onnxruntime")


def test_signals_arrive_after_models_that_are_gone(made):
    command = f"""
import gc, signal
from glocal.export import load_exported
first = load_exported({str(made.root / "model.xml")!r}, threads=1)
second = load_exported({str(made.root / "model.onnx")!r}, "openvino", threads=1)
del first; gc.collect()
del second; gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("arrived")
"""
    ended = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "arrived\n"), ended.stderr


def test_free_sizes(made):
    loaded = load_exported(made.onnx.path)
    x = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(loaded(x), made.model(x), rtol=1e-4, atol=1e-5)
    for bad in (x[:, :2], x[0], x.double(), x[..., :90], x.to(torch.uint8)):
        with pytest.raises(GlocalError, match=r"multiples of 32 as H and W for .*model.onnx, got"):
            loaded(bad)


def test_threads_are_those_of_the_call_alone(made):
    before = torch.get_num_threads()
    load_exported(made.pt2.path, threads=before + 1, trust=True)(torch.randn(1, 3, 32, 32))
    assert torch.get_num_threads() == before


# Files that are not what they should be.


def copy(made, folder, *names):
    for name in names:
        shutil.copy(made.root / name, folder / name)
    return folder / names[0]


@pytest.mark.parametrize("names", [("model.onnx",), ("model.xml", "model.bin"), ("model.pt2",)])
def test_damage_is_found_anywhere(made, tmp_path, names):
    main = copy(made, tmp_path, *names)
    rng = np.random.default_rng(0)
    for name in names:
        whole = (tmp_path / name).read_bytes()
        flipped = []
        for place in rng.integers(0, len(whole), 40).tolist():
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            flipped.append(bytes(damaged))
        cut = [whole[:length] for length in (0, 1, len(whole) // 2, len(whole) - 1)]
        missed = 0
        for damaged in [*flipped, *cut, whole + b"x", whole[::-1]]:
            (tmp_path / name).write_bytes(damaged)
            try:
                load_exported(main, trust=True)
                missed += 1  # of a .pt2, names and times that no checksum covers; its content is whole
            except GlocalError as error:
                assert names[0] in str(error)
        assert missed <= (4 if name.endswith(".pt2") else 0)
        (tmp_path / name).write_bytes(whole)
    load_exported(main, trust=True)


def test_a_pt2_is_read_for_who_trusts_it(made, tmp_path):
    with pytest.raises(GlocalError, match=r"loading a .pt2 can execute code from it. If you trust"):
        load_exported(made.pt2.path)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    planted = tmp_path / "evil.pt2"
    with zipfile.ZipFile(made.pt2.path) as source, zipfile.ZipFile(planted, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, pickle.dumps(Evil()) if name.endswith("sample_inputs/model.pt") else content)
    with pytest.raises(GlocalError, match=r"can execute code"):
        load_exported(planted)
    assert not (tmp_path / "ran").exists()


def described(model, path, **kwargs):
    """Write an ONNX model as glocal would have described it."""
    values = {
        "format": "onnx", "name": "made", "classes": ("a", "b"), "image_size": (32, 32), "crop_pct": 1.0,
        "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3, "dynamic": ("batch",), **kwargs,
    }  # fmt: skip
    helper.set_model_props(model, {KEY: Description(**values).text()})
    path.write_bytes(model.SerializeToString())
    seal(path)
    return path


def averaging(num_classes=2, weights=None):
    """(B, 3, H, W) -> (B, num_classes) of a product with the mean colour."""
    weights = weights or numpy_helper.from_array(np.ones((3, num_classes), np.float32), "w")
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, "h", "w"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", num_classes])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def outside(location):
    """Weights that lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "24")):
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.parametrize("location", ["../secret", "{absolute}", "secret", "m.onnx.data/../../secret", ""])
def test_other_files_are_not_read(tmp_path, location):
    (tmp_path / "secret").write_bytes(np.full(6, 7, np.float32).tobytes())
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(tmp_path / "secret", folder / "secret")
    place = location.replace("{absolute}", str(tmp_path / "secret"))
    path = described(averaging(weights=outside(place)), folder / "m.onnx")
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(CheckpointError, match=r"m.onnx: refers to .*, which is not its companion file"):
            load_exported(path, runtime)


def test_other_files_are_not_read_from_branches_either(tmp_path):
    model = averaging()
    branch = helper.make_graph([], "then", [], [], [outside("../secret")])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)
    model.graph.node[0].attribute.add(name="value", t=outside("/etc/passwd"), type=onnx.AttributeProto.TENSOR)
    with pytest.raises(CheckpointError, match=r"refers to '../secret'"):
        load_exported(described(model, tmp_path / "m.onnx"))


def test_a_link_in_the_place_of_weights_is_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(np.full(6, 7, np.float32).tobytes())
    (tmp_path / "m.onnx.data").symlink_to(tmp_path / "secret")
    path = described(averaging(weights=outside("m.onnx.data")), tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match=r"its weights are not beside it: m.onnx.data"):
        load_exported(path)


def test_a_graph_that_gives_something_else_is_told(tmp_path):
    path = described(averaging(num_classes=3), tmp_path / "m.onnx")
    with pytest.raises(GlocalError, match=r"expected float32 logits \(1, 2\) from it, got float32 \(1, 3\)"):
        load_exported(path)(torch.zeros(1, 3, 32, 32))
    one = described(averaging(), tmp_path / "one.onnx")
    assert load_exported(one)(torch.ones(2, 3, 32, 32)).tolist() == [[3, 3], [3, 3]]


def test_a_graph_that_no_runtime_takes_is_told(tmp_path):
    model = averaging()
    model.graph.node[0].op_type = "NoSuchOperator"
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(CheckpointError, match=f"m.onnx: {runtime} cannot load it"):
            load_exported(described(model, tmp_path / "m.onnx"), runtime)


def test_files_of_others_are_told_apart(made, tmp_path):
    (tmp_path / "foreign.onnx").write_bytes(averaging().SerializeToString())
    (tmp_path / "foreign.xml").write_text("<net></net>")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as package:
        package.writestr("model/data", "x")
    (tmp_path / "foreign.pt2").write_bytes(buffer.getvalue())
    for name in ("foreign.onnx", "foreign.xml", "foreign.pt2"):
        with pytest.raises(CheckpointError, match=f"{name}: was not written by `glocal export`"):
            load_exported(tmp_path / name, trust=True)
    described(averaging(), tmp_path / "wrong.onnx", format="openvino")
    with pytest.raises(CheckpointError, match=r"wrong.onnx: has the format openvino, whose suffix is .xml"):
        load_exported(tmp_path / "wrong.onnx")
    lone = copy(made, tmp_path, "model.xml")
    with pytest.raises(CheckpointError, match=r"its weights are not beside it: model.bin"):
        load_exported(lone)


@pytest.mark.parametrize(
    ("name", "runtime", "message"),
    [
        ("missing.onnx", None, "missing.onnx: no such file; check the path"),
        ("model.onnx", "torch", "runtime: expected onnxruntime or openvino for .*model.onnx, got torch"),
        ("model.xml", "onnxruntime", "runtime: expected openvino for .*model.xml, got onnxruntime"),
        ("model.onnx", "tensorrt", "runtime: expected one of onnxruntime, openvino, torch, got 'tensorrt'"),
        ("model.bin", None, "expected a folder or a file of .onnx, .xml, .pt2, .safetensors, got another"),
    ],
)
def test_mistakes_are_told(made, name, runtime, message):
    with pytest.raises(GlocalError, match=message):
        load_exported(made.root / name, runtime)


def test_a_pipe_does_not_hold_one_up(tmp_path):
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match=r"is not a regular file"):
        load_exported(tmp_path / "m.onnx")


def test_a_name_cannot_drive_the_terminal(tmp_path):
    path = Path(tmp_path / "\x1b[2J.onnx")
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError) as caught:
        load_exported(path)
    assert "\x1b" not in str(caught.value)
