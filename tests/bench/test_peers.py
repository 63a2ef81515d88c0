"""Peers: the weights of ours arrive where they belong, and what computes something else is found out."""

import importlib.util
import re

import pytest
import timm
import torch
from timm.layers import QuickGELU
from torch import nn

import glocal
from glocal.bench import peers
from glocal.bench.peers import (
    Peer,
    copy_weights,
    is_installed,
    make_peer,
    peers_of,
    randomize_weights,
    relative_difference,
)
from glocal.errors import GlocalError


class Ours(nn.Module):
    """One projection for q and k, and a table with a batch axis; reads two of theirs."""

    def __init__(self):
        super().__init__()
        self.qk = nn.Linear(4, 6)
        self.table = nn.Parameter(torch.randn(1, 3, 2))

    @staticmethod
    def adapt_checkpoint(state_dict, model):
        return {
            "qk.weight": torch.cat([state_dict["q.weight"], state_dict["k.weight"]]),
            "qk.bias": torch.cat([state_dict["q.bias"], state_dict["k.bias"]]),
            "table": state_dict["table"].T[None],
        }


class Theirs(nn.Module):
    def __init__(self, width: int = 3, extra: bool = False):
        super().__init__()
        self.k, self.q = nn.Linear(4, width), nn.Linear(4, width)
        self.pos = nn.Parameter(torch.randn(2, 3))
        if extra:
            self.gate = nn.Parameter(torch.ones(1))


RULES = ((r"^pos$", "table"),)


def test_a_checkpoint_of_theirs_read_backwards():
    ours, theirs = Ours(), Theirs()
    copy_weights(ours, theirs, rules=RULES)
    assert torch.equal(theirs.q.weight, ours.qk.weight[:3])
    assert torch.equal(theirs.k.weight, ours.qk.weight[3:])
    assert torch.equal(theirs.k.bias, ours.qk.bias[3:])
    assert torch.equal(theirs.pos, ours.table[0].T)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (Theirs(width=2), r"qk.weight is \(4, 4\), ours \(6, 4\)"),
        (Theirs(extra=True), "values missing in ours"),
    ],
)
def test_what_does_not_fit_is_said(theirs, message):
    with pytest.raises(GlocalError, match=message):
        copy_weights(Ours(), theirs, rules=RULES)


def test_names_that_do_not_fit_are_said():
    with pytest.raises(GlocalError, match=r"no 0\.weight"):
        copy_weights(nn.Sequential(nn.Linear(2, 2)), nn.ModuleDict({"fc": nn.Linear(2, 2)}))
    with pytest.raises(GlocalError, match=r"1\.weight, missing in ours"):
        copy_weights(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


@pytest.fixture(scope="module")
def made():
    """Our models at 64 pixels, each made and stirred once."""
    models = {}

    def make(name):
        if name not in models:
            models[name] = glocal.create_model(name, img_size=64)
            randomize_weights(models[name], 64)
        return models[name]

    return make


def peer_of(name, package):
    (peer,) = (peer for peer in peers_of(name) if peer.package == package)
    if not is_installed(peer):
        pytest.skip(f"needs {package}")
    return peer


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("glocal_resnet18", "torchvision"),
        ("glocal_resnet18", "timm"),
        ("glocal_resnet18", "transformers"),
        ("glocal_resnet50", "torchvision"),
        ("glocal_resnet50", "transformers"),
        ("glocal_vit_tiny_patch16_224", "timm"),
        ("glocal_vit_tiny_patch16_224", "transformers"),
        pytest.param("glocal_vit_base_patch16_224", "torchvision", marks=pytest.mark.slow),
        pytest.param("glocal_vit_base_patch32_224", "timm", marks=pytest.mark.slow),
        ("botnet_s1_50", "bottleneck-transformer-pytorch"),
    ],
)
def test_the_same_function_is_measured(made, name, package):
    peer = make_peer(peer_of(name, package), name, made(name), 64)
    assert peer.difference <= 1e-5
    assert peer.same_function
    assert peer.reason is None
    assert re.fullmatch(rf"{package} [\d.]+", peer.source)


@pytest.mark.parametrize(
    ("name", "package", "reason"),
    [
        ("cvt_13", "transformers", "QuickGELU"),
        ("botnet50", "bottleneck-transformer-pytorch", "3x3"),
        ("glocal_vit_tiny_patch16_224", "vit-pytorch", "without bias"),
    ],
)
def test_another_function_is_shown_as_one(made, name, package, reason):
    peer = make_peer(peer_of(name, package), name, made(name), 64)
    assert not peer.same_function
    assert reason in peer.reason
    assert (peer.difference is None) == (package != "transformers")


def test_the_activation_is_all_that_differs_in_hugging_faces_cvt(made):
    theirs = make_peer(peer_of("cvt_13", "transformers"), "cvt_13", made("cvt_13"), 64)
    assert 1e-3 < theirs.difference < 1e-1
    activations = [(m, n) for m in theirs.model.modules() for n, c in m.named_children() if "GELU" in type(c).__name__]
    assert len(activations) == 13
    for module, name in activations:
        setattr(module, name, QuickGELU())
    assert relative_difference(made("cvt_13"), theirs.model, 64) < 1e-5


def _tanh(model):
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"


def _no_branch(model):
    nn.init.zeros_(model.layer4[1].bn2.weight)
    nn.init.zeros_(model.layer4[1].bn2.bias)


def _other_stride(model):
    model.layer4[0].conv1.stride, model.layer4[0].conv2.stride = (1, 1), (2, 2)


def _scale(model):
    attention = model.blocks[5].attn
    attention.fused_attn = False
    attention.scale *= 1.1


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("glocal_vit_tiny_patch16_224", _tanh),
        ("glocal_vit_tiny_patch16_224", _scale),
        ("glocal_resnet18", _no_branch),
        ("glocal_resnet18", _other_stride),
    ],
)
def test_a_planted_fault_is_another_function(made, monkeypatch, name, fault):
    def make(timm, image_size, name):
        kwargs = {"img_size": image_size} if "vit" in name else {}
        return timm.create_model(name, **kwargs)

    ours = made(name)
    theirs = make_peer(Peer("timm", "timm", r"glocal_(.*)", make), name, ours, 64)
    assert theirs.same_function
    fault(theirs.model)
    assert relative_difference(ours, theirs.model, 64) > peers.SAME_FUNCTION


def test_other_weights_are_another_function(made):
    ours = made("glocal_resnet18")
    assert relative_difference(ours, timm.create_model("resnet18").eval(), 64) > 0.1


def test_stirred_models_have_no_idle_branch_and_rounding_stays_small():
    model = glocal.create_model("glocal_resnet50")
    assert not model.layer1[0].bn3.weight.any()  # as it is made
    randomize_weights(model, 64)
    floats = {name: x for name, x in model.state_dict().items() if x.is_floating_point()}
    assert all(x.any() and x.isfinite().all() for x in floats.values())
    assert all(norm.momentum == 0.1 for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))
    assert not model.training
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        single, double = model(images), model.double()(images.double())
    assert (single - double).abs().max() < 1e-5 * double.abs().max()


def test_every_row_is_of_a_model_that_there_is():
    names = glocal.list_models()
    for peer in peers.PEERS:
        assert any(re.fullmatch(peer.models, name) for name in names), peer
    assert [peer.package for peer in peers_of("glocal_vit_base_patch16_224")] == [
        "torchvision",
        "timm",
        "transformers",
        "vit-pytorch",
    ]
    assert peers_of("cat_small") == []


def test_what_is_not_installed_is_known_without_an_error(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not any(is_installed(peer) for peer in peers.PEERS)
