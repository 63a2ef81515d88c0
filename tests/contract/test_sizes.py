"""Any height and width from 32 on, square or not, in every family: 500 draws in the slow tests, some in the quick."""

import functools

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import glocal
from tests.contract.test_timm import short, unpooled
from tests.randomized import calm, undrawn

FAMILIES = (
    "glocal_resnet18", "glocal_resnet50", "botnet50", "botnet_s1_50", "glocal_vit_tiny_patch16_224", "t2t_vit_7",
    "t2t_vit_t_14", "t2t_vit_dense", "cvt_13", "cat_tiny", "conformer_tiny_patch16", "conformer_small_patch32",
    *glocal.list_models("*_micro"),
)  # fmt: skip
SIDES = st.integers(32, 300)
DRAWS = st.tuples(st.sampled_from(FAMILIES), SIDES, SIDES, st.integers(1, 2))


@functools.cache
def model_of(name: str) -> torch.nn.Module:
    return calm(undrawn(short, name, num_classes=5))


@functools.cache
def extractor_of(name: str) -> torch.nn.Module:
    extractor = short(name, features_only=True).eval()
    weights = model_of(name).state_dict()
    extractor.model.load_state_dict({key: weights[key] for key in extractor.model.state_dict()})
    return extractor


def check(name: str, height: int, width: int, batch: int) -> None:
    """Shapes, finite values, independent images, and features equal to intermediates at their declared strides."""
    model, extractor = model_of(name), extractor_of(name)
    x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * width))
    with torch.no_grad():
        features, maps = model.forward_intermediates(x)
        logits = model.forward_head(features)
        assert logits.shape == (batch, 5)
        assert logits.isfinite().all()
        if batch > 1:
            torch.testing.assert_close(model(x.flip(0)), logits.flip(0), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(model(x[:1]), logits[:1], rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(model(x), logits)
        for index, feature in zip(extractor.out_indices, extractor(x), strict=True):
            info = model.feature_info[index]
            assert torch.equal(feature, maps[index])
            assert feature.shape[:2] == (batch, info["num_chs"])
            for side, length in zip(feature.shape[2:], (height, width), strict=True):
                # CvT's convolutions, as released, drop a last row of a map that they do not fill
                assert -(-length // info["reduction"]) - side in ((0, 1) if name.startswith("cvt") else (0,))


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(DRAWS)
def test_any_size(draw):
    check(*draw)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(DRAWS)
def test_500_sizes(draw):
    check(*draw)


@pytest.mark.parametrize("name", ["t2t_vit_7", "cat_tiny", "conformer_tiny_patch16", "glocal_vit_tiny_patch16_224"])
def test_what_is_padded_is_what_is_missing(name):
    """An image that patches do not divide gives what the image with zeros below and at the right gives."""
    model = model_of(name)
    side = {"cat_tiny": 4}.get(name, 16)
    x = torch.randn(1, 3, 6 * side - 3, 7 * side - 1)
    whole = torch.nn.functional.pad(x, (0, 1, 0, 3))
    with torch.no_grad():
        torch.testing.assert_close(unpooled(model, x), unpooled(model, whole))


def test_tables_of_the_published_size_are_used_as_they_are():
    for name in ("t2t_vit_7", "cat_tiny", "glocal_vit_tiny_patch16_224"):
        model = model_of(name)
        x = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            before = model(x)
            torch.manual_seed(0)
            model.pos_embed.data += torch.randn_like(model.pos_embed)
            assert not torch.allclose(model(x), before)
    model_of.cache_clear()
    extractor_of.cache_clear()


def test_img_size_moves_the_tables_not_the_function():
    """A checkpoint of 64 pixels in a model made for 96 gives, at 96, what the model of 64 gives there."""
    for name in ("vit_micro", "t2t_vit_micro", "cat_micro"):
        source = calm(undrawn(timm.create_model, name, img_size=64, num_classes=3))
        bigger = timm.create_model(name, img_size=96, num_classes=3).eval()
        bigger.load_state_dict(glocal.convert_checkpoint(name, source.state_dict(), img_size=96, num_classes=3))
        x = torch.randn(1, 3, 96, 96)
        with torch.no_grad():
            torch.testing.assert_close(bigger(x), source(x))
