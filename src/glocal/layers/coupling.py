"""The feature coupling unit (FCU) between a map and tokens: Conformer, Peng et al. 2021, §3.2, Fig. 2b.

https://arxiv.org/abs/2105.03889
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glocal.layers.tokens import map_to_tokens, tokens_to_map

POOLINGS = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}
UPSAMPLINGS = ("nearest", "bilinear")


class FCUDown(nn.Module):
    """Map to tokens: 1x1 convolution, pooling, LayerNorm, GELU; the class token comes from the tokens beside it.

    Args:
        in_chs: channels of the map.
        dim: channels of a token.
        stride: pixels of the map along a token.
        pooling: "avg" (as published) or "max" (Tab. 8).

    Raises:
        ValueError: if pooling is unknown.
    """

    def __init__(self, in_chs: int, dim: int, stride: int, *, pooling: str = "avg"):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.conv_project = nn.Conv2d(in_chs, dim, 1)
        self.pool = POOLINGS[pooling](stride, stride)
        self.ln = nn.LayerNorm(dim, eps=1e-6)
        self.act = nn.GELU()

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """(B, in_chs, H, W) map, (B, 1 + hw, dim) tokens -> (B, 1 + hw, dim)."""
        x = map_to_tokens(self.pool(self.conv_project(x)))  # (B, hw, dim)
        return torch.cat((tokens[:, :1], self.act(self.ln(x))), dim=1)


class FCUUp(nn.Module):
    """Tokens to map: the class token goes, 1x1 convolution, BatchNorm, ReLU, up-sampling.

    Args:
        dim: channels of a token.
        out_chs: channels of the map.
        stride: pixels of the map along a token.
        upsampling: "nearest" (as released) or "bilinear".

    Raises:
        ValueError: if upsampling is unknown.
    """

    def __init__(self, dim: int, out_chs: int, stride: int, *, upsampling: str = "nearest"):
        super().__init__()
        if upsampling not in UPSAMPLINGS:
            raise ValueError(f"upsampling: expected one of {', '.join(UPSAMPLINGS)}, got {upsampling!r}")
        self.stride = stride
        self.upsampling = upsampling
        self.conv_project = nn.Conv2d(dim, out_chs, 1)
        self.bn = nn.BatchNorm2d(out_chs, eps=1e-6)
        self.act = nn.ReLU()

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(B, 1 + hw, dim) tokens -> (B, out_chs, H, W) map of this height and width."""
        x = tokens_to_map(tokens[:, 1:], height // self.stride, width // self.stride)
        x = self.act(self.bn(self.conv_project(x)))
        return F.interpolate(x, size=(height, width), mode=self.upsampling)
