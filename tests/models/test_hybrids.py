"""What the keywords of T2T-ViT, CvT, CAT and Conformer do, beside the published configurations (tests/parity)."""

import pytest
import torch
from torch.nn import functional as F

import glocal
from glocal.layers import sinusoid
from tests.randomized import calm

T2T = {"dim": 12, "depth": 2, "num_heads": 2, "token_dim": 8, "img_size": 64, "num_classes": 3}
CVT = {"dims": (8, 8, 16), "depths": (1, 1, 2), "num_heads": (1, 2, 2), "img_size": 64, "num_classes": 3}
CAT = {"dim": 8, "depths": (1, 1), "num_heads": (1, 2), "img_size": 64, "num_classes": 3, "window_size": 4}
CONFORMER = {"base_channel": 16, "dim": 12, "depth": 6, "num_heads": 2, "num_classes": 3}
IMAGES = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def model(name: str, **kwargs) -> torch.nn.Module:
    defaults = {"t2t_vit_14": T2T, "cvt_13": CVT, "cat_small": CAT, "conformer_small_patch16": CONFORMER}[name]
    made = glocal.create_model(name, **{**defaults, **kwargs})
    return calm(made).double()


# T2T-ViT


@pytest.mark.parametrize("tokens", ["performer", "transformer", "convolution", "patch"])
def test_t2t_tokens_see_the_pixels_of_their_windows_alone(tokens):
    """A pixel changes tokens all over by attention; by convolutions those within reach, 31 pixels at most; else one."""
    tokens_of = model("t2t_vit_14", tokens=tokens).tokens_to_token
    changed = IMAGES.clone()
    changed[:, :, 15, 15] += 1  # the last of the first patch
    with torch.no_grad():
        differs = (tokens_of(IMAGES) - tokens_of(changed)).abs().amax((0, 1)) > 1e-12
    assert differs[0, 0]
    assert differs[-1, -1] == (tokens in ("performer", "transformer"))
    assert (differs.sum() == 1) == (tokens == "patch")


def test_t2t_scale_reaches_the_blocks_alone():
    plain, scaled = model("t2t_vit_14"), model("t2t_vit_14", qk_scale=12**-0.5)
    assert plain.blocks[0].attn.attend.scale is None
    assert scaled.blocks[0].attn.attend.scale == 12**-0.5
    assert torch.equal(plain.embed(IMAGES), scaled.embed(IMAGES))
    assert not torch.allclose(plain(IMAGES), scaled(IMAGES))
    by_head = model("t2t_vit_14", qk_scale=6**-0.5)
    torch.testing.assert_close(plain(IMAGES), by_head(IMAGES))


def test_t2t_positions_are_the_sinusoids_and_can_be_left_out():
    placed, free = model("t2t_vit_14"), model("t2t_vit_14", position=False)
    assert free.pos_embed is None
    assert "pos_embed" not in free.state_dict()
    fresh = glocal.create_model("t2t_vit_14", **T2T)
    assert torch.equal(fresh.pos_embed[0], sinusoid(17, 12))
    assert not fresh.pos_embed.requires_grad
    free.load_state_dict({k: v for k, v in placed.state_dict().items() if k != "pos_embed"})
    torch.testing.assert_close(placed.embed(IMAGES[..., :64]), free.embed(IMAGES[..., :64]) + placed.pos_embed)


def test_t2t_dense_grows_and_halves():
    dense = glocal.create_model("t2t_vit_dense", dim=16, depth=(2, 1), num_heads=2, growth=8, token_dim=8)
    assert [info["num_chs"] for info in dense.feature_info] == [24, 32, 16, 24]
    assert dense.head.in_features == 24


def test_t2t_first_layer_takes_other_channels():
    source = glocal.create_model("t2t_vit_14", **T2T)
    for chans in (1, 5):
        made = glocal.create_model("t2t_vit_14", **T2T, in_chans=chans)
        made.load_state_dict(made.adapt_checkpoint(source.state_dict(), made))
        assert made(torch.randn(1, chans, 64, 64)).isfinite().all()
    weight = source.tokens_to_token.attention1.kqv.weight.unflatten(1, (3, 49))
    grey = glocal.create_model("t2t_vit_14", **T2T, in_chans=1)
    adapted = grey.adapt_checkpoint(source.state_dict(), grey)["tokens_to_token.attention1.kqv.weight"]
    torch.testing.assert_close(adapted, weight.sum(1))


# CvT


@pytest.mark.parametrize("projection", ["conv", "pool", "linear"])
def test_cvt_keys_have_the_stride(projection):
    shapes = []
    made = model("cvt_13", projection=projection)
    made.stages[0].blocks[0].attn.attend.register_forward_pre_hook(lambda _, args: shapes.append(args[1].shape[2]))
    made(IMAGES)
    assert shapes == [{"conv": 8 * 12, "pool": 9 * 13, "linear": 16 * 24}[projection]]
    full = model("cvt_13", projection=projection, kv_stride=1)
    full.stages[0].blocks[0].attn.attend.register_forward_pre_hook(lambda _, args: shapes.append(args[1].shape[2]))
    full(IMAGES)
    assert shapes[-1] == 16 * 24


def test_cvt_pools_the_token_or_the_map():
    by_token = model("cvt_13", num_classes=0)
    tokens = by_token.forward_features(IMAGES)
    torch.testing.assert_close(by_token(IMAGES), tokens[:, 0])
    by_token.reset_classifier(0, "avg")
    torch.testing.assert_close(by_token(IMAGES), tokens[:, 1:].mean(1))
    without = model("cvt_13", class_token=False, global_pool="avg", num_classes=0)
    assert not [name for name in without.state_dict() if "cls_token" in name]
    torch.testing.assert_close(without(IMAGES), without.forward_features(IMAGES).mean(1))
    with pytest.raises(ValueError, match="global_pool: expected one of 'avg', '', got 'token'"):
        model("cvt_13", class_token=False)


def test_cvt_without_positions_knows_places_by_its_convolutions():
    assert not [n for n, _ in model("cvt_13").named_parameters() if "pos_embed" in n]
    first = model("cvt_13", position=(True, False, False))
    assert [n for n, _ in first.named_parameters() if "pos_embed" in n] == ["stages.0.pos_embed"]
    every = model("cvt_13", position=True)
    assert [tuple(s.pos_embed.shape[2:]) for s in every.stages] == [(16, 16), (8, 8), (4, 4)]
    assert every(IMAGES).shape == (2, 3)


def test_cvt_patches_do_not_overlap():
    made = model("cvt_13", embed="patch")
    changed = IMAGES.clone()
    changed[:, :, 0, 0] += 1
    differs = (made.stages[0].embed(IMAGES) - made.stages[0].embed(changed)).abs().amax((0, 1)) > 0
    assert differs.nonzero().tolist() == [[0, 0]]
    assert made(IMAGES[:, :, :33, :35]).isfinite().all()


def test_cvt_drops_paths_in_the_last_stage_alone():
    made = glocal.create_model("cvt_13", drop_path_rate=0.3)
    rates = [[block.drop_path.drop_prob for block in stage.blocks] for stage in made.stages]
    assert rates[:2] == [[0.0], [0.0, 0.0]]
    assert rates[2] == pytest.approx([0.3 * i / 9 for i in range(10)])


# CAT


def test_cat_windows_meet_in_the_cross_patch_attention():
    """Inside attention alone, a pixel stays in its window."""
    made = model("cat_small", depths=(1,), num_heads=(1,), position=False)
    changed = IMAGES.clone()
    changed[:, :, :4, :4] += torch.randn(3, 4, 4, dtype=torch.float64)

    def reach(block) -> list[bool]:
        before, after = made.patch_embed(IMAGES), made.patch_embed(changed)
        differs = (block(before) - block(after)).abs().amax((0, 3)) > 1e-12
        return [bool(differs[:4, :4].all()), bool(differs[4:, 4:].any())]

    assert reach(made.stages[0].blocks[0].ipsa1) == [True, False]
    assert reach(made.stages[0].blocks[0].cpsa)[1]


def test_cat_shifted_windows_take_the_place_of_the_cross():
    shifted = model("cat_small", cross="shifted")
    assert [block.cpsa.attn.shift for stage in shifted.stages for block in stage.blocks] == [2, 2]
    assert shifted(IMAGES).isfinite().all()


def test_cat_slices_every_pixel_into_its_patch():
    made = model("cat_small", embed="slice")
    assert made.patch_embed.proj.weight.shape == (8, 48, 1, 1)
    one = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    for row in range(4):
        for column in range(4):
            one.zero_()
            one[0, 0, 4 + row, column] = 1
            differs = (made.patch_embed(one) - made.patch_embed(one * 0)).abs().amax((0, 3)) > 1e-12
            assert differs.nonzero().tolist() == [[1, 0]]


def test_cat_norms_its_outputs_where_asked():
    made = model("cat_small", output_norm=True)
    plain, normed = (made.forward_intermediates(IMAGES, norm=norm, intermediates_only=True) for norm in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, normed, strict=True))
    raw = list(made.forward_stages(IMAGES))
    expected = [made.output_norms[0](raw[0]), made.norm(raw[1])]
    assert all(torch.equal(a, b.permute(0, 3, 1, 2)) for a, b in zip(plain, expected, strict=True))


# Conformer


def test_conformer_gives_the_mean_of_its_heads():
    made = model("conformer_small_patch16")
    conv, trans = made.forward_branches(IMAGES)
    torch.testing.assert_close(made(IMAGES), (conv + trans) / 2)
    target = torch.tensor([0, 2])
    expected = (F.cross_entropy(conv, target) + F.cross_entropy(trans, target)) / 2
    torch.testing.assert_close(made.training_loss(IMAGES, target, F.cross_entropy), expected)
    assert made.training_loss(IMAGES, target, F.cross_entropy) > F.cross_entropy(made(IMAGES), target)


def test_conformer_uncoupled_is_two_networks():
    """Without coupling each branch gives what it gives alone, and the other's weights do not matter."""
    both = model("conformer_small_patch16", coupling=False)
    conv, trans = both.forward_branches(IMAGES)
    for branch, expected in (("conv", conv), ("trans", trans)):
        alone = model("conformer_small_patch16", branches=branch)
        alone.load_state_dict({key: both.state_dict()[key] for key in alone.state_dict()})
        torch.testing.assert_close(alone(IMAGES), expected)
        assert alone.forward_branches(IMAGES)[0].shape == (2, 3)
    coupled = model("conformer_small_patch16")
    assert len(coupled.state_dict()) > len(both.state_dict())


def test_conformer_is_coupled_in_the_stages_asked_for():
    made = model("conformer_small_patch16", coupling=(False, True, False))
    kinds = [type(block.squeeze_block).__name__ for block in made.conv_trans]
    assert kinds == ["Off", "FCUDown", "FCUDown", "Off", "Off"]


def test_conformer_blocks_between_the_couplings():
    made = model("conformer_small_patch16", num_med_block=2)
    assert [len(block.med_block) for block in made.conv_trans] == [2] * 5
    assert made(IMAGES).isfinite().all()
    assert len({type(made.conv_trans[0].med_block[0]), type(made.conv_trans[0].cnn_block)}) == 1


@pytest.mark.parametrize("kwargs", [{"pooling": "max"}, {"upsampling": "bilinear"}])
def test_conformer_kinds_of_coupling_change_the_function(kwargs):
    plain, other = model("conformer_small_patch16"), model("conformer_small_patch16", **kwargs)
    other.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain(IMAGES), other(IMAGES), atol=1e-6)


def test_conformer_taps():
    made = glocal.create_model("conformer_tiny_patch16")
    assert [info["module"] for info in made.feature_info] == [f"conv_trans.{block - 2}" for block in (4, 8, 11, 12)]
    assert [info["reduction"] for info in made.feature_info] == [4, 8, 16, 32]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("t2t_vit_14", {"tokens": "linear"}, "tokens: expected one of performer, transformer, convolution, patch, got"),
        ("t2t_vit_14", {"block": "mixer"}, "block: expected one of plain, se, ghost, got 'mixer'"),
        ("t2t_vit_14", {"global_pool": "max"}, "global_pool: expected one of 'token', 'avg', '', got 'max'"),
        ("cvt_13", {"embed": "slice"}, "embed: expected one of conv, patch, got 'slice'"),
        ("cat_small", {"embed": "patch"}, "embed: expected one of conv, slice, got 'patch'"),
        ("cat_small", {"cross": "global"}, "cross: expected one of patch, shifted, got 'global'"),
        ("cat_small", {"embed": "slice", "patch_size": 6}, "patch_size: expected a power of 2 to slice, got 6"),
        ("conformer_small_patch16", {"branches": "cnn"}, "branches: expected one of both, conv, trans, got 'cnn'"),
        ("conformer_small_patch16", {"depth": 7}, "depth: expected a multiple of 3 from 6 on, got 7"),
        ("conformer_small_patch16", {"patch_size": 8}, "patch_size: expected a multiple of 16, got 8"),
        ("conformer_small_patch16", {"pooling": "median"}, "pooling: expected one of avg, max, got 'median'"),
    ],
)
def test_wrong_arguments_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        model(name, **kwargs)
