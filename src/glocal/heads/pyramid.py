"""Maps at strides 4, 8, 16 and 32 from any backbone of timm, for the decoders and detectors that ask for them."""

from typing import Any

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)


class PyramidAdapter(nn.Module):
    """A backbone's maps as a pyramid: its own where it has one, a simple feature pyramid where it has one stride.

    A backbone with maps at strides 4, 8, 16 and 32 passes through; one that ends at stride 16 (CvT) gets a pooled
    level; from one of a single stride (ViT, T2T-ViT) the last map is brought to the others by transposed convolutions
    and pooling (Li et al. 2022, "ViTDet", §3, Fig. 2c).

    Args:
        backbone: made with ``features_only=True``: image -> list of (B, C, h, w) maps, and `feature_info`.
        dim: channels of the levels made of a single map.

    Attributes:
        channels: of the four levels.
        reductions: (4, 8, 16, 32).

    Raises:
        ValueError: if the backbone's strides are neither, or its single stride is not 8, 16 or 32.
    """

    def __init__(self, backbone: nn.Module, dim: int = 256):
        super().__init__()
        info: Any = backbone.feature_info
        reductions, channels = list(info.reduction()), list(info.channels())
        self.backbone = backbone
        self.reductions = STRIDES
        self.extra = 0
        levels: list[nn.Module]
        if tuple(reductions[-4:]) == STRIDES:
            self.taken, self.channels = 4, channels[-4:]
            levels = [nn.Identity() for _ in STRIDES]
        elif tuple(reductions[-3:]) == STRIDES[:3]:
            self.taken, self.channels = 3, [*channels[-3:], channels[-1]]
            levels = [nn.Identity() for _ in range(3)]
            self.extra = 1
        elif len(set(reductions)) == 1 and reductions[0] in STRIDES[1:]:
            self.taken, self.channels = 1, [dim] * 4
            levels = [_level(channels[-1], dim, reductions[0], stride) for stride in STRIDES]
        else:
            raise ValueError(
                f"backbone: expected maps of strides 4, 8, 16, 32, or 4, 8, 16, or all of one, got {reductions}; "
                "choose them with out_indices"
            )
        self.levels = nn.ModuleList(levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) -> four maps, level i of (B, channels[i], about H / 2^(i+2), W / 2^(i+2))."""
        maps = self.backbone(x)[-self.taken :]
        maps = maps * len(self.levels) if self.taken == 1 else maps
        maps = [level(feature) for level, feature in zip(self.levels, maps, strict=True)]
        return maps + [F.max_pool2d(maps[-1], 2, 2, ceil_mode=True)] * self.extra


def _level(in_chs: int, dim: int, has: int, wants: int) -> nn.Module:
    """Stride ``has`` -> stride ``wants``, then 1x1 and 3x3 convolutions, each with a norm over the channels."""
    layers: list[nn.Module] = []
    while has > wants:
        layers += [nn.ConvTranspose2d(in_chs, in_chs // 2, 2, stride=2), LayerNorm2d(in_chs // 2), nn.GELU()]
        in_chs, has = in_chs // 2, has // 2
    if has < wants:
        layers += [nn.MaxPool2d(wants // has, wants // has, ceil_mode=True)]
    layers += [nn.Conv2d(in_chs, dim, 1, bias=False), LayerNorm2d(dim)]
    layers += [nn.Conv2d(dim, dim, 3, padding=1, bias=False), LayerNorm2d(dim)]
    return nn.Sequential(*layers)
