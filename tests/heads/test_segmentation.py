"""Segmenters: logits at the image's size, their decoders against loops, the samples they learn by heart."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from benchmarks.heads_matrix import by_heart
from torch import nn

from glocal.errors import GlocalError
from glocal.heads import create_segmenter
from glocal.heads.segmentation import KINDS, PoolTo, SemanticFPN, SmpSegmenter, UPerNet
from tests.heads.scenes import RESNET, extractor

SMALL = {"semantic_fpn": {"dim": 32, "head_dim": 32}, "upernet": {"dim": 32}}


def tiny(kind: str, num_classes: int = 4, **kwargs) -> nn.Module:
    settings = {"backbone_kwargs": RESNET, **SMALL.get(kind, {}), **kwargs}
    return create_segmenter(kind, "resnet_micro", num_classes, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_at_any_size_with_gradients(kind):
    pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = tiny(kind)
    sizes = [(128, 160), (131, 150)] if kind == "smp_pan" else [(64, 96), (70, 45), (33, 32)]
    for height, width in sizes:  # smp's PAN pools four times below stride 16
        assert model(torch.randn(2, 3, height, width)).shape == (2, 4, height, width)
    model(torch.randn(2, 3, *sizes[0])).square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    # a decoder of smp may not read every map
    assert silent == [] if not kind.startswith("smp_") else len(silent) < 0.5 * len(list(model.parameters()))


def test_the_small_preset_narrows_the_decoder_and_a_keyword_wins():
    def widths(**kwargs):
        model = create_segmenter("semantic_fpn", "resnet_micro", 4, backbone_kwargs=RESNET, **kwargs)
        return model.decoder.fpn.layer_blocks[0][0].out_channels, model.decoder.classifier[-1].in_channels

    assert widths() == widths(preset="ade20k") == (256, 128)  # Kirillov et al. 2019, §3.1
    assert widths(preset="small") == (96, 64)
    assert widths(preset="small", dim=32) == (32, 64)


@pytest.mark.parametrize("kind", ["semantic_fpn", "smp_unet"])
@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_any_size_on_transformers_that_refuse_cut_patches(kind, backbone):
    depth = {"depth": 3} if backbone.startswith("vit") else {"depths": (1, 1, 1, 1), "embed_dim": 24}
    model = create_segmenter(kind, backbone, 4, preset="small", backbone_kwargs=depth).eval()
    x = torch.randn(1, 3, 70, 45)
    with torch.no_grad():
        logits = model(x)
        whole = model(F.pad(x, (0, 19, 0, 26)))
    assert torch.equal(logits, whole[..., :70, :45])


@pytest.mark.parametrize("kind", ["semantic_fpn", "upernet"])
def test_one_image_trains(kind):
    model = tiny(kind).train()
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("kind", ["semantic_fpn", "upernet", "smp_unet"])
def test_an_image_gives_the_same_alone_and_in_a_batch(kind):
    torch.manual_seed(0)
    model = tiny(kind).eval()
    x = torch.randn(3, 3, 64, 70)
    with torch.no_grad():
        assert torch.allclose(model(x)[1:2], model(x[1:2]), atol=1e-5)


@pytest.mark.parametrize("kind", ["semantic_fpn", "upernet", "smp_unet"])
def test_logits_stand_where_the_image_has_them(kind):
    """A bright spot moves the logits around it and not those at the other side."""
    torch.manual_seed(0)
    model = tiny(kind).eval()
    x = torch.zeros(1, 3, 170, 300)
    x[:, :, 40:48, 30:38] = 5
    with torch.no_grad():
        change = (model(x) - model(torch.zeros_like(x))).abs().sum(1)[0]
    y, column = divmod(int(F.avg_pool2d(change[None], 9, 1, 4).argmax()), 300)
    assert abs(y - 44) < 40
    assert abs(column - 34) < 40


@pytest.mark.parametrize("side", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(3, 4), (6, 6), (7, 25), (1, 2), (16, 64)])
def test_pooling_is_torchs(side, size):
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    assert torch.allclose(PoolTo(side)(x), nn.AdaptiveAvgPool2d(side)(x))


def test_semantic_fpn_by_its_figure():
    """Fig. 3 of Kirillov et al. 2019: three, two, one and no doublings, each after a 3x3 convolution, and the sum."""
    torch.manual_seed(0)
    channels = [4, 8, 12, 16]
    decoder = SemanticFPN(channels, 3, dim=32, head_dim=32).eval()
    levels = [torch.randn(1, chs, 32 // 2**i, 48 // 2**i) for i, chs in enumerate(channels)]
    assert [len(branch) for branch in decoder.branches] == [1, 1, 2, 3]
    with torch.no_grad():
        inner = [block[0](level) for block, level in zip(decoder.fpn.inner_blocks, levels, strict=True)]
        for i in (2, 1, 0):
            inner[i] = inner[i] + F.interpolate(inner[i + 1], scale_factor=2, mode="nearest")
        maps = [block[0](x) for block, x in zip(decoder.fpn.layer_blocks, inner, strict=True)]
        total = 0
        for branch, x in zip(decoder.branches, maps, strict=True):
            for conv in branch:
                x = F.relu(F.group_norm(F.conv2d(x, conv[0].weight, padding=1), 8, conv[1].weight, conv[1].bias))
                if x.shape[-2:] != (32, 48):
                    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            total = total + x
        expected = decoder.classifier[1](total)
        assert torch.allclose(decoder(levels), expected, atol=1e-5)


def test_upernet_pools_the_last_level_at_four_scales():
    decoder = UPerNet([4, 8, 12, 16], 3, dim=32).eval()
    assert [pool[0].side for pool in decoder.pools] == [1, 2, 3, 6]
    assert decoder.pooled[0].in_channels == 16 + 4 * 32
    assert decoder.fuse[0].in_channels == 4 * 32
    levels = [torch.randn(1, chs, 32 // 2**i, 32 // 2**i) for i, chs in enumerate((4, 8, 12, 16))]
    with torch.no_grad():
        before = decoder(levels)
        levels[3] = levels[3] + 1  # the context reaches every place
        assert ((decoder(levels) - before).abs().amax(1) > 0).all()


def test_smp_gets_the_backbones_own_map_of_stride_2():
    smp = pytest.importorskip("segmentation_models_pytorch")
    own = create_segmenter("smp_unet", "resnet18d", 2).network
    assert isinstance(own, smp.Unet)
    assert own.encoder.stem is None
    assert own.encoder.out_channels == [3, 64, 64, 128, 256, 512]
    made = tiny("smp_unet").network.encoder
    assert made.out_channels[:2] == [3, 32]
    assert "glocal" not in smp.encoders.encoders  # the registry is left as it was


def test_padding_for_smp_goes_where_it_came_from():
    x = torch.randn(2, 3, 70, 45)
    seen = []
    network = nn.Identity()
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    assert torch.equal(SmpSegmenter(network)(x), x)
    assert seen == [(2, 3, 96, 64)]


def test_smp_keeps_the_weights_of_a_module():
    pytest.importorskip("segmentation_models_pytorch")
    backbone = extractor()
    encoder = create_segmenter("smp_fpn", backbone, 2).network.encoder
    assert torch.equal(encoder.pyramid.backbone.model.conv1.weight, backbone.model.conv1.weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiny("unet"), "segmenter: expected one of .*'unet'; nearest: .*smp_unet"),
        (lambda: tiny("upernet", preset="coco"), "preset: expected one of ade20k, small"),
        (lambda: tiny("upernet", dims=64), "upernet: no keyword 'dims'; nearest: dim"),
        (
            lambda: tiny("smp_unet", decoder_channel=(8,)),
            "smp_unet: no keyword 'decoder_channel'; nearest: decoder_channels",
        ),
    ],
)
def test_mistakes_at_the_door(call, message):
    pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(GlocalError, match=message):
        call()


@pytest.mark.slow  # the page has one, of Semantic FPN
@pytest.mark.parametrize("kind", ["semantic_fpn", "upernet"])
def test_export_at_any_size(kind):
    model = tiny(kind).eval()
    dim = torch.export.Dim
    shapes = ({0: dim("batch", min=1, max=16), 2: 32 * dim("h", min=2, max=16), 3: 32 * dim("w", min=2, max=16)},)
    x = torch.randn(1, 3, 128, 64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=shapes)
        assert torch.allclose(program.module()(x), model(x), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["semantic_fpn", "upernet", "smp_unet"])
def test_onnx_at_any_size(kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tiny(kind).eval()
    dim = torch.export.Dim
    shapes = ({0: dim("batch", min=1, max=16), 2: 32 * dim("h", min=2, max=16), 3: 32 * dim("w", min=2, max=16)},)
    x = torch.randn(1, 3, 128, 64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (torch.randn(2, 3, 64, 96),), dynamo=True, dynamic_shapes=shapes, verbose=False
        )
        session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert torch.allclose(torch.from_numpy(got), model(x), atol=1e-4)


LEARNT = {"semantic_fpn": "resnet_micro"}
LEARNT_SLOWLY = {"upernet": "conformer_micro", "smp_unet": "cat_micro", "smp_segformer": "vit_micro"}


@pytest.mark.parametrize(("kind", "backbone"), LEARNT.items())
def test_an_image_learnt_by_heart(kind, backbone):
    assert by_heart(kind, backbone, limit=300)["miou"] >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "backbone"), LEARNT_SLOWLY.items())
def test_an_image_learnt_by_heart_slowly(kind, backbone):
    assert by_heart(kind, backbone)["miou"] >= 0.98
