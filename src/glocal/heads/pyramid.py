"""Maps at strides 4, 8, 16 and 32 from any backbone of timm, for decoders and detectors that need them."""

import math
from typing import Any

from timm.layers import LayerNorm2d
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)


class PyramidAdapter(nn.Module):
    """A feature pyramid on a backbone: its own maps, or a simple feature pyramid if it has a single stride.

    Of several maps of one stride the deepest is used. Levels coarser than the coarsest map (of CvT, which ends at
    stride 16) are pooled from it; finer ones are computed from the finest by transposed convolutions. For a backbone of
    a single stride (ViT, T2T-ViT) every level is computed from the last map (Li et al. 2022, "ViTDet", §3, Fig. 2c).

    Args:
        backbone: made with ``features_only=True``: image -> list of (B, C, h, w) maps, and `feature_info`.
        dim: channels of the computed levels.
        strides: of the levels, in pixels, fine to coarse.

    Attributes:
        channels: of the levels.
        reductions: the strides.

    Raises:
        ValueError: if the backbone skips a requested stride.
    """

    def __init__(self, backbone: nn.Module, dim: int = 256, strides: tuple[int, ...] = STRIDES):
        super().__init__()
        info: Any = backbone.feature_info
        reductions, channels = list(info.reduction()), list(info.channels())
        deepest = {stride: i for i, stride in enumerate(reductions)}
        finest, coarsest = min(deepest), max(deepest)
        self.backbone = backbone
        self.channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"  # Swin of timm
        self.reductions = strides
        self.channels: list[int] = []
        self.taken: list[int] = []
        self.levels = nn.ModuleList()
        for stride in strides:
            source = min(max(stride, finest), coarsest)
            if source not in deepest:
                raise ValueError(
                    f"backbone: expected maps of strides 4, 8, 16, 32, or consecutive ones of these, or one stride, "
                    f"got {reductions}; choose them with out_indices"
                )
            in_chs = channels[deepest[source]]
            learned = len(deepest) == 1 or stride < finest
            self.taken.append(deepest[source])
            self.channels.append(dim if learned else in_chs)
            self.levels.append(_level(in_chs, dim, source, stride) if learned else _pool(stride // source))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) -> level i of (B, channels[i], about H / reductions[i], W / reductions[i])."""
        maps = self.backbone(x)
        if self.channels_last:
            maps = [feature.permute(0, 3, 1, 2) for feature in maps]
        return [level(maps[i]) for level, i in zip(self.levels, self.taken, strict=True)]


def _pool(factor: int) -> nn.Module:
    return nn.MaxPool2d(factor, factor, ceil_mode=True) if factor > 1 else nn.Identity()


def _level(in_chs: int, dim: int, has: int, wants: int) -> nn.Module:
    """Stride ``has`` -> about stride ``wants``, then 1x1 and 3x3 convolutions, each with a norm over the channels."""
    doublings = round(math.log2(has / wants))  # a patch of 14 gives strides of 3.5, 7, 14 and 28
    layers: list[nn.Module] = []
    for _ in range(doublings):
        layers += [nn.ConvTranspose2d(in_chs, in_chs // 2, 2, stride=2), LayerNorm2d(in_chs // 2), nn.GELU()]
        in_chs //= 2
    if doublings < 0:
        layers += [_pool(2**-doublings)]
    layers += [nn.Conv2d(in_chs, dim, 1, bias=False), LayerNorm2d(dim)]
    layers += [nn.Conv2d(dim, dim, 3, padding=1, bias=False), LayerNorm2d(dim)]
    return nn.Sequential(*layers)
