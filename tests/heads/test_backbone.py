"""What a head changes in a backbone: weights, norms, frozen stages, unused stages."""

import pytest
import timm
import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

import glocal
from glocal.errors import GlocalError
from glocal.heads import PyramidAdapter
from glocal.heads.backbone import check_keywords, create_backbone, image_statistics
from tests.heads.scenes import RESNET, extractor

FAMILIES = glocal.list_models("*_micro")


@pytest.mark.parametrize("name", [*FAMILIES, "resnet18d", "vit_tiny_patch16_224"])
def test_frozen_stages_are_what_the_maps_before_them_need(name):
    """With n stages frozen, no gradient of map n - 1 is left, and every later one still has some."""
    kwargs = {"depth": 3} if name.startswith("vit_tiny") else {}
    count = len(create_backbone(name, **kwargs).feature_info.module_name())
    for stages in range(count + 1):
        backbone = create_backbone(name, frozen_stages=stages, **kwargs)
        maps = backbone(torch.randn(2, 3, 64, 64))
        assert [one.requires_grad for one in maps] == [i >= stages for i in range(count)], stages


def test_frozen_norms_stand_still():
    backbone = create_backbone("resnet_micro", norm="frozen", **RESNET)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules())
    assert any(isinstance(module, FrozenBatchNorm2d) for module in backbone.modules())
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone.train()(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(buffer, before[name]) for name, buffer in backbone.named_buffers())


def test_frozen_norms_give_what_the_norms_gave():
    plain = create_backbone("resnet_micro", **RESNET).eval()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = plain(x)
        for ours, theirs in zip(create_backbone(plain, norm="frozen")(x), expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_synchronised_norms():
    backbone = create_backbone("resnet_micro", norm="sync", **RESNET)
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


def test_a_file_of_weights(tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model("resnet_micro", **RESNET)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    backbone = create_backbone("resnet_micro", weights=tmp_path / "weights.pth", **RESNET)
    assert torch.equal(backbone.model.conv1.weight, whole.conv1.weight)
    assert torch.equal(backbone.model.layer4[0].conv1.weight, whole.layer4[0].conv1.weight)


@pytest.mark.parametrize(
    ("name", "coarsest", "left"),
    [
        ("resnet18d", 16, [2, 4, 8, 16]),
        ("cvt_micro", 4, [2, 4]),
        ("vit_tiny_patch16_224", 8, [16] * 3),
        ("resnet_micro", 32, [2, 4, 8, 8]),
    ],
)
def test_stages_after_the_coarsest_level_are_not_built(name, coarsest, left):
    backbone = create_backbone(name, coarsest=coarsest, **({"depth": 3} if name.startswith("vit") else {}))
    assert backbone.feature_info.reduction() == left
    assert create_backbone("resnet18d", coarsest=8, out_indices=(1, 4)).feature_info.reduction() == [4, 32]
    full = create_backbone("resnet18d")
    assert sum(p.numel() for p in create_backbone("resnet18d", coarsest=16).parameters()) < 0.4 * sum(
        p.numel() for p in full.parameters()
    )


def test_a_vision_transformer_of_timm_takes_any_size():
    maps = create_backbone("vit_tiny_patch16_224", depth=3)(torch.randn(1, 3, 96, 160))
    assert maps[-1].shape == (1, 192, 6, 10)


def test_a_swin_of_timm_takes_any_size_and_gives_channels_first():
    small = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 2, 2)}
    backbone = create_backbone("swin_tiny_patch4_window7_224", **small)
    levels = PyramidAdapter(backbone)(torch.randn(1, 3, 96, 160))
    assert [tuple(level.shape[1:]) for level in levels] == [(24, 24, 40), (48, 12, 20), (96, 6, 10), (192, 3, 5)]


def test_a_keyword_that_no_model_knows_is_not_swallowed():
    with pytest.raises(TypeError, match="patch_sise"):
        create_backbone("vit_tiny_patch16_224", patch_sise=8)
    with pytest.raises(TypeError, match="strict_img_size"):
        create_backbone("resnet_micro", strict_img_size=False)


def test_statistics_of_images():
    assert image_statistics(create_backbone("vit_tiny_patch16_224", depth=3)) == ([0.5] * 3, [0.5] * 3)
    assert image_statistics(nn.Identity())[0] == [0.485, 0.456, 0.406]


def test_weights_that_are_not_there():
    with pytest.raises(GlocalError, match=r"weights: no file nowhere\.pth"):
        create_backbone("resnet_micro", weights="nowhere.pth")
    with pytest.raises(
        GlocalError, match="resnet_micro: no public location of pretrained weights is known; give weights"
    ):
        create_backbone("resnet_micro", pretrained=True)


def test_a_module_keeps_its_own_settings():
    with pytest.raises(GlocalError, match="pretrained, depth: only for a backbone by name; pass it when you create"):
        create_backbone(extractor(), pretrained=True, depth=3)


def test_unknown_keywords_are_refused_before_a_library_swallows_them():
    check_keywords("x", ["device", "norm"], create_backbone, more=("device",))
    with pytest.raises(GlocalError, match="x: no keyword 'frozen_stage'; nearest: frozen_stages"):
        check_keywords("x", ["frozen_stage"], create_backbone)
