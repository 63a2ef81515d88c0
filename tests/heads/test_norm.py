"""GroupNorm in the heads: published widths as their papers have them, maps of one pixel at any width."""

import pytest
import torch
from torch import nn

from glocal.heads import create_detector, create_segmenter
from glocal.heads.norm import num_groups, regroup
from glocal.heads.segmentation import ConvNorm
from tests.heads.scenes import RESNET, keywords, scene, tiny


def test_32_groups_or_four_channels_each():
    assert [num_groups(width) for width in (512, 256, 128, 64, 32, 8, 4, 1, 100, 48)] == [
        32, 32, 32, 16, 8, 2, 1, 1, 1, 4,
    ]  # fmt: skip
    for width in range(1, 300):
        assert width % num_groups(width) == 0
        ConvNorm(3, width, 1)


@pytest.mark.parametrize("kind", ["fcos", "atss", "deformable_detr"])
def test_widths_that_are_published_stay_as_their_libraries_have_them(kind):
    with torch.device("meta"):
        model = create_detector(kind, "resnet_micro", 80, backbone_kwargs=RESNET)
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert {(norm.num_groups, norm.num_channels) for norm in norms} == {(32, 256)}


@pytest.mark.parametrize("width", [64, 128, 256])
def test_groups_of_more_than_one_channel_are_left_alone(width):
    x = torch.randn(2, width, 3, 2)
    head = nn.Sequential(nn.GroupNorm(32, width))
    before = head(x)
    regroup(head)
    assert torch.equal(head(x), before)


def test_a_map_of_one_pixel_can_be_normalised():
    head = nn.Sequential(nn.GroupNorm(32, 32))
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        head(torch.randn(1, 32, 1, 1))
    regroup(head)
    x = torch.randn(1, 32, 1, 1)
    four = x.view(8, 4)
    expected = (four - four.mean(1, keepdim=True)) / (four.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(head(x).view(8, 4), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["fcos", "atss", "deformable_detr"])
def test_a_narrow_detector_learns_from_the_smallest_image_alone(kind):
    """Its coarsest level is one pixel."""
    torch.manual_seed(0)
    more = {"channels": 32} if kind != "deformable_detr" else {"num_feature_levels": 4}
    model = tiny(kind, **{**keywords(kind), "min_size": 32, "max_size": 32, **more})
    image, target = scene(32, 32)
    losses = model([image], [target])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        assert model.eval()([image])[0]["boxes"].isfinite().all()


@pytest.mark.parametrize("width", [8, 10, 32, 33])
@pytest.mark.parametrize("kind", ["upernet", "semantic_fpn"])
def test_a_narrow_segmenter_learns_from_one_image(kind, width):
    """UPerNet pools to 1x1."""
    torch.manual_seed(0)
    narrow = {"dim": width} | ({"head_dim": width} if kind == "semantic_fpn" else {})
    model = create_segmenter(kind, "resnet_micro", 3, backbone_kwargs=RESNET, **narrow).train()
    logits = model(torch.randn(1, 3, 64, 48))
    logits.square().mean().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.decoder.parameters())
