"""The families sized for 32-pixel images and two CPU cores, their MACs matched, for `glocal compare` out of the box.

Each is its family's own class with smaller numbers, nothing else: what separates them is how they aggregate.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model

from glocal.models._backbone import build, cfg
from glocal.models.botnet import BoTNet
from glocal.models.resnet import ResNet
from glocal.models.vit import VisionTransformer

_RESNET = {"widths": (12, 24, 48, 96), "strides": (1, 2, 2, 1), "stem_width": 24, "stem_stride": 2, "img_size": 32}

_SMALL = {"input_size": (3, 32, 32), "crop_pct": 1.0}

default_cfgs = generate_default_cfgs(
    {
        "resnet_micro.untrained": cfg(**_SMALL),
        "botnet_micro.untrained": cfg(**_SMALL),
        "vit_micro.untrained": cfg(**_SMALL, first_conv="patch_embed.proj", classifier="head"),
    }
)


@register_model
def resnet_micro(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet of seven bottlenecks at strides 2, 4, 8 and 8: 12.2 MMACs at 32 pixels."""
    return build(ResNet, "resnet_micro", pretrained, kwargs, depths=(1, 1, 2, 3), **_RESNET)


@register_model
def botnet_micro(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """`resnet_micro` with attention in its last stage, of stride 1 as in the S1 forms: 11.6 MMACs at 32 pixels.

    Three more blocks before it take up what attention saves.
    """
    return build(BoTNet, "botnet_micro", pretrained, kwargs, depths=(1, 2, 4, 3), **_RESNET)


@register_model
def vit_micro(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT of five blocks over 4-pixel patches, 64 tokens and 11.2 MMACs at 32 pixels."""
    return build(
        VisionTransformer, "vit_micro", pretrained, kwargs, dim=48, depth=5, num_heads=3, patch_size=4, img_size=32
    )
