"""ViT against timm's and torchvision's, with weights moved over, and its keywords."""

import pytest
import timm
import torch
import torchvision
from timm.layers import build_sincos2d_pos_embed

import glocal
from tests.randomized import calm, undrawn, wild


def small(**kwargs) -> torch.nn.Module:
    return glocal.create_model("glocal_vit_tiny_patch16_224", **{"depth": 2, "dim": 12, "num_heads": 2, **kwargs})


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch32_224"])
def test_equal_to_timm_with_weights_moved_over(name):
    theirs = calm(undrawn(timm.create_model, name))
    ours = undrawn(glocal.create_model, f"glocal_{name}").eval()
    ours.load_state_dict(glocal.convert_checkpoint(f"glocal_{name}", theirs.state_dict()))
    x = torch.randn(1, 3, 224, 224)
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):  # 1e-5 hides another epsilon in the norms
        with torch.no_grad():
            expected, got = theirs.to(dtype)(x.to(dtype)), ours.to(dtype)(x.to(dtype))
        assert (got - expected).abs().max() <= bound * expected.abs().max()


def test_equal_to_torchvision_with_weights_moved_over():
    theirs = calm(undrawn(torchvision.models.vit_b_16))
    ours = undrawn(glocal.create_model, "glocal_vit_base_patch16_224").eval()
    ours.load_state_dict(glocal.convert_checkpoint("glocal_vit_base_patch16_224", theirs.state_dict()))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected, got = theirs(x), ours(x)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_other_sizes_resample_the_positions_as_timm_does():
    theirs = calm(undrawn(timm.create_model, "vit_tiny_patch16_224", dynamic_img_size=True, dynamic_img_pad=True))
    ours = undrawn(glocal.create_model, "glocal_vit_tiny_patch16_224").eval()
    ours.load_state_dict(theirs.state_dict())
    for height, width in ((224, 224), (160, 256), (61, 35)):
        x = torch.randn(1, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_another_size_is_resampled(tmp_path):
    from safetensors.torch import save_file

    source = wild(small(img_size=64)).float()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    overlay = {"file": str(tmp_path / "w.safetensors")}
    bigger = small(img_size=(96, 128), pretrained=True, pretrained_cfg_overlay=overlay)
    assert bigger.pos_embed.shape == (1, 1 + 6 * 8, 12)
    assert torch.equal(bigger.pos_embed[:, 0], source.pos_embed[:, 0])
    same = small(img_size=64, pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(same.pos_embed, source.pos_embed)


def test_pooling_by_token_average_or_maximum():
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    model = wild(small(num_classes=0))
    tokens = model.forward_features(x)
    for pool, expected in (("token", tokens[:, 0]), ("avg", tokens[:, 1:].mean(1)), ("max", tokens[:, 1:].amax(1))):
        model.reset_classifier(0, pool)
        torch.testing.assert_close(model(x), expected)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), tokens)


def test_without_class_token_and_position_the_order_of_patches_is_unseen():
    model = wild(small(class_token=False, position="none", global_pool="avg"))
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    swapped = torch.cat((x[..., 16:], x[..., :16]), dim=-1)
    torch.testing.assert_close(model(x), model(swapped))
    placed = wild(small(class_token=False, global_pool="avg", img_size=32))
    assert not torch.allclose(placed(x), placed(swapped), atol=1e-6)


def test_sincos_positions_are_timms_but_for_their_order_at_any_size_and_nothing_is_learned():
    model = wild(small(position="sincos", img_size=32))
    assert model.pos_embed is None
    x = torch.randn(1, 3, 48, 80, dtype=torch.float64)
    theirs = build_sincos2d_pos_embed([3, 5], 12, dtype=torch.float64)  # sin row, sin column, cos row, cos column
    theirs = theirs.unflatten(1, (4, 3))[:, [1, 3, 0, 2]].flatten(1)
    patches = model.patch_embed(x).flatten(2).transpose(1, 2)
    expected = torch.cat((model.cls_token, patches + theirs), dim=1)
    torch.testing.assert_close(model.embed(x), expected, rtol=0, atol=1e-6)  # timm's frequencies are float32


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"position": "rotary"}, "position: expected one of learned, sincos, none, got 'rotary'"),
        ({"position": "sincos", "dim": 10}, "dim: expected a multiple of 4 for sincos positions, got 10"),
        ({"global_pool": "median"}, "global_pool: expected one of 'token', 'avg', 'max', '', got 'median'"),
        ({"class_token": False}, "global_pool: expected one of 'avg', 'max', '', got 'token'"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(**kwargs)
