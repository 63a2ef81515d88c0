"""Attention put into other people's ResNets."""

import pytest
import timm
import torch
import torchvision

import glocal
from glocal.layers import MHSA2d, NonLocal2d
from tests.randomized import calm, undrawn

MODELS = {
    "timm resnet18": lambda: timm.create_model("resnet18"),
    "timm resnet50": lambda: timm.create_model("resnet50"),
    "timm resnet50d": lambda: timm.create_model("resnet50d"),
    "timm resnext50": lambda: timm.create_model("resnext50_32x4d"),
    "timm resnetblur50": lambda: timm.create_model("resnetblur50"),
    "timm dilated": lambda: timm.create_model("resnet50", output_stride=8),
    "torchvision resnet34": lambda: torchvision.models.resnet34(),
    "torchvision resnet50": lambda: torchvision.models.resnet50(),
    "glocal resnet50": lambda: glocal.create_model("glocal_resnet50"),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_mhsa_replaces_the_convolutions_of_a_stage_and_nothing_else(make):
    model = calm(undrawn(make))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert glocal.insert_attention(model, stages=(4,), img_size=96) is model
    after = model.state_dict()
    changed = set(before) ^ set(after)
    assert changed
    assert all(name.startswith("layer4.") and ".conv2." in name for name in changed)
    assert all(torch.equal(after[name], before[name]) for name in set(before) & set(after))
    assert all(isinstance(block.conv2, MHSA2d) for block in model.layer4)
    assert not model.training
    output = model(torch.randn(2, 3, 96, 96))
    assert output.isfinite().all()
    output.sum().backward()
    assert all(block.conv2.qkv.weight.grad.abs().sum() > 0 for block in model.layer4)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_non_local_starts_as_the_network_that_was(make):
    model = calm(undrawn(make))
    x = torch.randn(1, 3, 64, 96)
    expected, names = model(x), set(model.state_dict())
    glocal.insert_attention(model, stages=(2, 3), kind="non-local")
    assert torch.equal(model(x), expected)
    assert names <= set(model.state_dict()), "the blocks keep their names, so checkpoints of the rest still load"
    assert sum(isinstance(module, NonLocal2d) for module in model.modules()) == 2
    model.layer3.non_local.norm.weight.data.fill_(1.0)
    assert not torch.equal(model(x), expected)


def test_is_the_botnet_of_the_library():
    """resnet50 with MHSA put into stage 4 is botnet50 with ResNet's plain shortcut, table sizes included."""
    inserted = glocal.insert_attention(calm(undrawn(timm.create_model, "resnet50"))).eval()
    model = undrawn(glocal.create_model, "botnet50", shortcut_act=False).eval()
    model.load_state_dict(inserted.state_dict())
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = inserted(x)
        assert (model(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_layers_follow_dtype_and_keywords():
    model = timm.create_model("resnet18").to(torch.bfloat16)
    glocal.insert_attention(model, stages=(3,), position="absolute", num_heads=8, img_size=(64, 128))
    attention = model.layer3[1].conv2
    assert attention.qkv.weight.dtype == torch.bfloat16
    assert attention.num_heads == 8
    assert attention.position.abs_height.shape[0] == 4
    assert attention.position.abs_width.shape[0] == 8
    assert model.training


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (lambda: timm.create_model("vit_tiny_patch16_224", depth=1), {}, "expected a ResNet with layer1 to layer4"),
        (lambda: timm.create_model("resnet18"), {"stages": (5,)}, "got stage 5 of ResNet"),
        (lambda: timm.create_model("resnet18"), {"kind": "lambda"}, "kind: expected one of mhsa, non-local"),
        (lambda: timm.create_model("resnet18"), {"position": "3d"}, "position: expected one of relative"),
        (lambda: timm.create_model("resnest14d"), {}, "expected residual blocks whose conv2 is a square convolution"),
        (lambda: glocal.insert_attention(timm.create_model("resnet18")), {}, "blocks without attention"),
    ],
)
def test_a_wrong_call_is_named_and_leaves_the_model_alone(make, kwargs, message):
    model = make()
    names = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        glocal.insert_attention(model, **kwargs)
    assert list(model.state_dict()) == names


def test_a_second_non_local_block_is_refused():
    model = glocal.insert_attention(timm.create_model("resnet18"), stages=(4,), kind="non-local")
    with pytest.raises(ValueError, match="already has it"):
        glocal.insert_attention(model, stages=(3, 4), kind="non-local")
    assert "non_local" not in dict(model.layer3.named_children())
