"""The feature coupling unit (FCU) between a map and tokens: Conformer, Peng et al. 2021, §3.2, Fig. 2b.

https://arxiv.org/abs/2105.03889
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glocal.layers.tokens import map_to_tokens, tokens_to_map

POOLINGS = ("avg", "max")


def plus_nearest(x: Tensor, coarse: Tensor, stride: int) -> Tensor:
    """(B, C, H, W) plus (B, C, H / s, W / s) repeated s x s times, without the repeated map in memory."""
    if torch.compiler.is_compiling():  # a compiler fuses the two, and a symbolic H would grow with each view below
        return x + F.interpolate(coarse, size=x.shape[-2:])
    x, coarse = x.permute(0, 2, 3, 1), coarse.permute(0, 2, 3, 1)
    cells = x.unflatten(2, (-1, stride)).unflatten(1, (-1, stride))  # (B, h, s, w, s, C)
    return (cells + coarse[:, :, None, :, None]).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def plus_bilinear(x: Tensor, coarse: Tensor, stride: int) -> Tensor:
    """(B, C, H, W) plus (B, C, H / s, W / s) interpolated to its size."""
    return x + F.interpolate(coarse, size=x.shape[-2:], mode="bilinear")


UPSAMPLINGS = {"nearest": plus_nearest, "bilinear": plus_bilinear}


class FCUDown(nn.Module):
    """Map to tokens: 1x1 convolution, pooling, LayerNorm, GELU, class token prepended, added to the tokens.

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
        # Average pooling commutes with a 1x1 convolution; pooling first costs stride^2 times less.
        self.average = nn.AvgPool2d(stride) if pooling == "avg" and stride > 1 else nn.Identity()
        self.conv_project = nn.Conv2d(in_chs, dim, 1)
        self.maximum = nn.MaxPool2d(stride) if pooling == "max" and stride > 1 else nn.Identity()
        self.ln = nn.LayerNorm(dim, eps=1e-6)
        self.act = nn.GELU()

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """(B, in_chs, H, W) map, (B, 1 + hw, dim) tokens -> tokens plus map."""
        x = map_to_tokens(self.maximum(self.conv_project(self.average(x))))  # (B, hw, dim)
        return tokens + torch.cat((tokens[:, :1], self.act(self.ln(x))), dim=1)


class FCUUp(nn.Module):
    """Tokens to map: class token dropped, 1x1 convolution, BatchNorm, ReLU, upsampling, added to the map.

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
        self.plus = UPSAMPLINGS[upsampling]
        self.conv_project = nn.Conv2d(dim, out_chs, 1)
        self.bn = nn.BatchNorm2d(out_chs, eps=1e-6)
        self.act = nn.ReLU(inplace=True)

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        """(B, 1 + hw, dim) tokens, (B, out_chs, H, W) map -> map plus tokens."""
        height, width = x.shape[-2:]
        coarse = tokens_to_map(tokens[:, 1:], height // self.stride, width // self.stride)
        coarse = self.act(self.bn(self.conv_project(coarse)))  # (B, out_chs, h, w)
        return self.plus(x, coarse, self.stride)
