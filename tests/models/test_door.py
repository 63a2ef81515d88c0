"""The public door: create_model, list_models, convert_checkpoint."""

import pytest
import torch

import glocal
from glocal.errors import GlocalError
from tests.randomized import calm, undrawn


def test_list_models_takes_a_pattern_and_knows_only_ours():
    assert glocal.list_models("botnet_s1_*") == [
        "botnet_s1_50",
        "botnet_s1_59",
        "botnet_s1_77",
        "botnet_s1_110",
        "botnet_s1_128",
    ]
    assert "resnet50" not in glocal.list_models()
    assert "botnet26t_256" not in glocal.list_models("botnet*")


def test_create_model_makes_timms_models_too():
    assert type(glocal.create_model("resnet10t", num_classes=2)).__module__ == "timm.models.resnet"


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(GlocalError, match=r"got 'botnet55'; nearest: botnet50"):
        glocal.create_model("botnet55")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"model": weights},
        lambda weights: {"state_dict": {f"module.{name}": w for name, w in weights.items()}, "epoch": 3},
    ],
)
def test_convert_takes_off_the_wrapping(wrap):
    model = calm(undrawn(glocal.create_model, "resnet_micro"))
    converted = glocal.convert_checkpoint("resnet_micro", wrap(model.state_dict()))
    assert all(torch.equal(converted[name], weight) for name, weight in model.state_dict().items())


def test_convert_names_what_is_missing_left_over_or_misshapen():
    weights = dict(glocal.create_model("resnet_micro").state_dict())
    weights["layer5.0.conv1.weight"] = weights.pop("layer4.1.conv1.weight")
    weights["fc.bias"] = torch.zeros(7)
    with pytest.raises(GlocalError) as error:
        glocal.convert_checkpoint("resnet_micro", weights)
    assert "missing: layer4.1.conv1.weight" in str(error.value)
    assert "left over: layer5.0.conv1.weight" in str(error.value)
    assert "shape: fc.bias expected (1000,), got (7,)" in str(error.value)


def test_convert_knows_heads_of_other_sizes():
    weights = glocal.create_model("vit_micro", num_classes=7).state_dict()
    assert glocal.convert_checkpoint("vit_micro", weights, num_classes=7)["head.bias"].shape == (7,)


def test_convert_is_for_our_models():
    with pytest.raises(GlocalError, match="expected one of glocal's models, got 'resnet50'; nearest: glocal_resnet50"):
        glocal.convert_checkpoint("resnet50", {})
