"""The families sized for 32-pixel images and two CPU cores, their MACs matched, for `glocal compare` out of the box.

Each is the class of its family with smaller sizes: they differ only in how they aggregate.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model

from glocal.models._backbone import build, cfg
from glocal.models.botnet import BoTNet
from glocal.models.cat import CAT
from glocal.models.conformer import Conformer
from glocal.models.cvt import CvT
from glocal.models.resnet import ResNet
from glocal.models.t2t_vit import T2TViT
from glocal.models.vit import VisionTransformer

_RESNET = {"widths": (12, 24, 48, 96), "strides": (1, 2, 2, 1), "stem_width": 24, "stem_stride": 2, "img_size": 32}

_SMALL = {"input_size": (3, 32, 32), "crop_pct": 1.0}

default_cfgs = generate_default_cfgs(
    {
        "resnet_micro.untrained": cfg(**_SMALL),
        "botnet_micro.untrained": cfg(**_SMALL),
        "vit_micro.untrained": cfg(**_SMALL, first_conv="patch_embed.proj", classifier="head"),
        "t2t_vit_micro.untrained": cfg(**_SMALL, first_conv=None, classifier="head"),
        "cvt_micro.untrained": cfg(**_SMALL, first_conv="stages.0.patch_embed.proj", classifier="head"),
        "cat_micro.untrained": cfg(**_SMALL, first_conv="patch_embed.proj", classifier="head"),
        "conformer_micro.untrained": cfg(**_SMALL, classifier=("conv_head", "trans_head")),
    }
)

MICRO_MODELS = tuple(default_cfgs)
"""Default models of `glocal compare`."""


@register_model
def resnet_micro(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet of seven bottlenecks at strides 2, 4, 8 and 8: 12.2 MMACs at 32 pixels."""
    return build(ResNet, "resnet_micro", pretrained, kwargs, depths=(1, 1, 2, 3), **_RESNET)


@register_model
def botnet_micro(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """`resnet_micro` with attention in its last stage, of stride 1 as in the S1 forms: 11.6 MMACs at 32 pixels.

    Three more blocks before it make up for the MACs that attention saves.
    """
    return build(BoTNet, "botnet_micro", pretrained, kwargs, depths=(1, 2, 4, 3), **_RESNET)


@register_model
def vit_micro(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT of five blocks over 4-pixel patches, 64 tokens and 11.2 MMACs at 32 pixels."""
    return build(
        VisionTransformer, "vit_micro", pretrained, kwargs, dim=48, depth=5, num_heads=3, patch_size=4, img_size=32
    )


@register_model
def t2t_vit_micro(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT of four blocks over 64 tokens, made in two steps by a Performer: 11.4 MMACs at 32 pixels."""
    splits = ((3, 2, 1), (3, 2, 1), (3, 1, 1))
    return build(
        T2TViT, "t2t_vit_micro", pretrained, kwargs,
        dim=48, depth=4, num_heads=3, mlp_ratio=2.0, token_dim=32, splits=splits, img_size=32,
    )  # fmt: skip


@register_model
def cvt_micro(pretrained: bool = False, **kwargs: Any) -> CvT:
    """CvT of stages at strides 2, 4 and 8: 12.4 MMACs at 32 pixels."""
    return build(
        CvT, "cvt_micro", pretrained, kwargs,
        dims=(24, 48, 96), depths=(1, 2, 3), num_heads=(1, 2, 4), kernels=(3, 3, 3), strides=(2, 2, 2),
        paddings=(1, 1, 1), img_size=32,
    )  # fmt: skip


@register_model
def cat_micro(pretrained: bool = False, **kwargs: Any) -> CAT:
    """CAT of three stages at strides 2, 4 and 8, windows of 4 pixels: 11.1 MMACs at 32 pixels."""
    return build(
        CAT, "cat_micro", pretrained, kwargs,
        dim=24, depths=(1, 1, 1), num_heads=(2, 4, 8), window_size=4, patch_size=2, mlp_ratio=2.0, img_size=32,
        out_indices=(0, 1, 2),
    )  # fmt: skip


@register_model
def conformer_micro(pretrained: bool = False, **kwargs: Any) -> Conformer:
    """Conformer of six blocks at strides 1, 2, 4 and 8, tokens of 4 pixels: 12.0 MMACs at 32 pixels."""
    return build(
        Conformer, "conformer_micro", pretrained, kwargs,
        patch_size=4, base_channel=16, dim=36, depth=6, num_heads=3, mlp_ratio=3.0, stem_width=16, stem_stride=1,
        img_size=32,
    )  # fmt: skip
