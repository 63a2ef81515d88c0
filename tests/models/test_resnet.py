"""ResNet against timm's and torchvision's, with weights moved both ways."""

import pytest
import timm
import torch
import torchvision

import glocal
from tests.randomized import calm, undrawn

DEPTHS = (18, 34, 50, 101, 152)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_equal_to_timm_and_torchvision_with_weights_moved_over(depth, library):
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    theirs = calm(undrawn(make, f"resnet{depth}"))
    name = f"glocal_resnet{depth}"
    ours = undrawn(glocal.create_model, name).eval()
    ours.load_state_dict(glocal.convert_checkpoint(name, theirs.state_dict()))
    x = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = theirs(x), ours(x)
    assert expected.std() > 1e-2, "the comparison would be of constants"
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()

    back = undrawn(make, f"resnet{depth}")
    back.load_state_dict(ours.state_dict())  # strict: our names are theirs
    with torch.no_grad():
        assert torch.equal(back.eval()(x), expected)


def test_training_mode_equals_timm_too():
    theirs = calm(undrawn(timm.create_model, "resnet50")).train()
    ours = undrawn(glocal.create_model, "glocal_resnet50").train()
    ours.load_state_dict(theirs.state_dict())
    ours, theirs = ours.double(), theirs.double()
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    for model in (theirs, ours):
        model(x).square().mean().backward()
    gradients = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-9, atol=1e-12, msg=name)
    torch.testing.assert_close(ours.bn1.running_mean, theirs.bn1.running_mean)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_initialisation_starts_blocks_as_the_identity(name):
    model = glocal.create_model(f"glocal_{name}")
    block = model.layer2[1].eval()
    x = torch.rand(1, block.last_norm().num_features, 8, 8)
    assert torch.equal(block(x), x)
    assert glocal.create_model(f"glocal_{name}", zero_init_last=False).layer2[1].last_norm().weight.min() == 1


def test_squeeze_and_excitation_and_activation_are_keywords():
    model = calm(undrawn(glocal.create_model, "glocal_resnet18", depths=(1, 1, 1, 1), se_ratio=1 / 16, act="silu"))
    assert isinstance(model.layer1[0].act2, torch.nn.SiLU)
    x = torch.randn(1, 3, 64, 64)
    before = model(x)
    model.layer4[0].se.fc2.bias.data += 1
    assert not torch.equal(model(x), before)


def test_small_stem_reports_its_strides():
    model = timm.create_model(
        "glocal_resnet18", stem_stride=1, strides=(1, 2, 2, 1), depths=(1, 1, 1, 1), features_only=True
    )
    assert model.feature_info.reduction() == [1, 2, 4, 4]
    assert [tuple(f.shape[-2:]) for f in model(torch.randn(1, 3, 33, 40))] == [(33, 40), (17, 20), (9, 10), (9, 10)]


def test_a_wrong_stem_is_named():
    with pytest.raises(ValueError, match="stem_stride: expected 1, 2 or 4, got 3"):
        glocal.create_model("glocal_resnet18", stem_stride=3)
