"""The same analyses on models of many houses, which they leave as they were."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import glocal
from glocal import analysis
from glocal.analysis import (
    attention,
    cam,
    features,
    fourier,
    locality,
    position,
    receptive_field,
    robustness,
    similarity,
    to_arrays,
    to_json,
    walk,
)
from glocal.analysis.maps import grid_of, to_map
from tests.analysis.making import OURS, images, model, unchanged

HOUSES = (*OURS, "timm vit", "timm swin", "timm resnet", "torchvision", "transformers sdpa")
WITHOUT_ATTENTION = ("resnet", "timm resnet")
RUNS = {
    "fourier": lambda m, x: fourier(m, x, batch_size=4),
    "attention": lambda m, x: attention(m, x),
    "receptive_field": lambda m, x: receptive_field(m, x),
    "locality": lambda m, x: locality(m, x[:4], batch_size=4),
    "features": lambda m, x: features(m, x[:2]),
    "cam": lambda m, x: cam(m, x),
    "similarity": lambda m, x: similarity(m, x),
    "position": lambda m, x: position(m, x, paddings=("zeros", "circular")),
    "robustness": lambda m, x: robustness(m, x),
}
POINTS = {  # residual sums of each, and their kinds in turn
    "resnet": (7, {"convolution"}), "botnet": (10, {"convolution", "attention"}), "vit": (10, {"attention", "mlp"}),
    "t2t_vit": (12, {"attention", "mlp"}), "cvt": (12, {"attention", "mlp"}), "cat": (18, {"attention", "mlp"}),
    "conformer": (33, {"attention", "mlp", "convolution", "coupling"}), "timm vit": (4, {"attention", "mlp"}),
    "timm swin": (8, {"attention", "mlp"}), "timm resnet": (4, {"convolution"}),
    "torchvision": (4, {"attention", "mlp"}), "transformers sdpa": (4, {"attention", "mlp"}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOUSES)
def test_every_kind_on_every_model(name):
    module, x = model(name), images()
    module.train()
    next(module.modules()).training = False  # modes that differ from module to module come back too
    with unchanged(module):
        for kind, run in RUNS.items():
            if kind == "attention" and name in WITHOUT_ATTENTION:
                continue
            result = run(module, x)
            text = json.dumps(to_json(result), allow_nan=False)
            arrays = to_arrays(result)
            assert all(np.isfinite(array).all() for array in arrays.values()), kind
            assert kind in ("locality", "position", "robustness") or arrays
            assert len(text) < 1e6


@pytest.mark.parametrize("name", HOUSES)
def test_what_is_found_along_the_depth(name):
    found = walk(model(name), images(2))
    count, kinds = POINTS[name]
    assert len(found.points) == count
    assert {point.kind for point in found.points} == kinds
    assert len({point.name for point in found.points}) == count
    for point in found.points:
        torch.testing.assert_close(point.skip + point.branch, point.output)
    assert found.logits.shape == (2, 10)


@pytest.mark.parametrize("name", HOUSES)
def test_watching_does_not_change_the_answers(name):
    module, x = model(name).eval(), images(3)
    plain = module(x)
    plain = plain if isinstance(plain, torch.Tensor) else plain.logits
    torch.testing.assert_close(walk(module, x).logits, plain, atol=1e-6, rtol=1e-5)


def test_coupling_is_found_in_both_directions():
    points = [point for point in walk(model("conformer"), images(2)).points if point.kind == "coupling"]
    assert [point.layout for point in points] == ["tokens", "map"] * 5
    alone = glocal.create_model("conformer_micro", coupling=False)
    assert "coupling" not in {point.kind for point in walk(alone, images(2)).points}


@pytest.mark.parametrize("size", [(32, 48), (40, 32), (33, 47)])
@pytest.mark.parametrize("name", OURS)
def test_images_that_are_not_square(name, size):
    x = torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0))
    module = model(name)
    for point in fourier(module, x).points:
        rows, columns = point.size
        assert rows / columns == pytest.approx(size[0] / size[1], rel=0.35)
        assert point.frequency[-1] <= 1
    assert receptive_field(module, x).points[-1].field.shape == size


def test_features_of_other_inputs_and_a_model_without_sums():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.LazyLinear(2))
    plain(torch.randn(1, 3, 12, 12))
    found = walk(plain, torch.randn(2, 3, 12, 12))
    assert [(point.name, point.kind) for point in found.points] == [("0", "convolution"), ("2", "convolution")]
    assert found.points[0].output.min() < 0  # as the convolution gave it, before the activation in place


def test_layers_by_name_are_their_outputs():
    module, x = timm.create_model("resnet10t", num_classes=10).eval(), images(2)
    found = walk(module, x, ("layer1", "layer?.0"))
    assert [point.name for point in found.points] == ["layer1.0", "layer1", "layer2.0", "layer3.0", "layer4.0"]
    wanted = module.layer1(module.maxpool(module.act1(module.bn1(module.conv1(x)))))
    torch.testing.assert_close(found.points[1].output, wanted)


@pytest.mark.parametrize(
    ("count", "size", "grid"),
    [
        (196, (224, 224), (0, 14, 14)), (197, (224, 224), (1, 14, 14)), (201, (224, 224), (5, 14, 14)),
        (96, (32, 48), (0, 8, 12)), (97, (48, 32), (1, 12, 8)), (12 * 9 + 2, (48, 33), (2, 12, 9)),
        (3000, (32, 32), None),
    ],
)  # fmt: skip
def test_grids_of_tokens(count, size, grid):
    assert grid_of(count, *size) == grid


def test_layouts_become_maps():
    maps = torch.arange(2 * 5 * 8 * 12.0).reshape(2, 5, 8, 12)
    cells = maps.unflatten(3, (-1, 4)).unflatten(2, (-1, 4))
    windows = maps.permute(0, 2, 3, 1).unflatten(2, (-1, 4)).unflatten(1, (-1, 4)).transpose(2, 3)
    tokens = torch.cat([torch.zeros(2, 1, 5), maps.flatten(2).transpose(1, 2)], 1)
    for x in (maps, maps.permute(0, 2, 3, 1), cells, windows, tokens):
        assert torch.equal(to_map(x, 32, 48), maps)
    assert torch.equal(to_map(cells, 32, 48, (3, 5)), maps)
    assert torch.equal(to_map(cells.permute(0, 2, 3, 4, 5, 1), 32, 48, (2, 4)), maps)
    assert to_map(torch.zeros(2, 5), 32, 48) is None
    assert to_map(torch.zeros(2, 1000, 5), 32, 48) is None


def test_an_error_inside_leaves_the_model_as_it_was():
    module = model("conformer").train()
    for run in (walk, fourier, receptive_field, cam, locality, features):
        with unchanged(module), pytest.raises(RuntimeError):
            run(module, torch.randn(4, 1, 32, 32))


def test_no_model_is_known_by_name():
    """No file of the package names a model, and of glocal's layers it imports only attention."""
    names = {name.split("_")[0] for name in timm.list_models()} | {*OURS, "torchvision", "transformers", "timm"}
    names = {name for name in names if len(name) > 3} - {"focalnet", "hybrid", "test", "visformer"}
    for path in sorted(Path(analysis.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                found = {word for word in names if word in node.value.lower().split()}
                assert not found, (path.name, node.value)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("glocal."):
                allowed = ("glocal.analysis", "glocal.layers.attention", "glocal.errors", "glocal.files")
                assert node.module.startswith(allowed), (path.name, node.module)
