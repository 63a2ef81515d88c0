"""CvT: Introducing Convolutions to Vision Transformers, Wu et al. 2021. https://arxiv.org/abs/2103.15808"""

from collections import OrderedDict
from typing import Any

import torch
from benchmarks.baselines.transformer import Mlp, with_class_token
from torch import Tensor, nn

VARIANTS: dict[str, dict[str, Any]] = {
    "cvt_13": {"dims": (64, 192, 384), "depths": (1, 2, 10), "num_heads": (1, 3, 6)},
    "cvt_micro": {
        "dims": (24, 48, 96), "depths": (1, 2, 3), "num_heads": (1, 2, 4),
        "kernels": (3, 3, 3), "strides": (2, 2, 2), "paddings": (1, 1, 1),
    },
}  # fmt: skip


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_map(x: Tensor, height: int, width: int) -> Tensor:
    """(B, HW, C) -> (B, C, H, W)."""
    return x.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the authors' GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * torch.sigmoid(1.702 * x)


def depthwise(dim: int, stride: int) -> nn.Sequential:
    """The convolution of the convolutional projection, with its BatchNorm (§3.2, Fig. 3b)."""
    conv = nn.Conv2d(dim, dim, 3, stride=stride, padding=1, groups=dim, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(dim)))


class Attention(nn.Module):
    """softmax(q k^T / sqrt(dim)) v with q, k and v from convolutions; the class token goes past these (§3.2)."""

    def __init__(self, dim: int, num_heads: int, class_token: bool):
        super().__init__()
        self.num_prefix = int(class_token)
        self.num_heads = num_heads
        self.scale = dim**-0.5
        self.conv_proj_q = depthwise(dim, 1)
        self.conv_proj_k = depthwise(dim, 2)
        self.conv_proj_v = depthwise(dim, 2)
        self.proj_q = nn.Linear(dim, dim)
        self.proj_k = nn.Linear(dim, dim)
        self.proj_v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward_conv(self, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, prefix + HW, dim) -> what enters the linear layers of q, k and v."""
        token, x = x.split((self.num_prefix, height * width), dim=1)
        x = to_map(x, height, width)
        q, k, v = to_tokens(self.conv_proj_q(x)), to_tokens(self.conv_proj_k(x)), to_tokens(self.conv_proj_v(x))
        if self.num_prefix:
            q, k, v = torch.cat((token, q), dim=1), torch.cat((token, k), dim=1), torch.cat((token, v), dim=1)
        return q, k, v

    def heads(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, n, N, d)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(B, prefix + HW, dim) -> the same shape."""
        q, k, v = self.forward_conv(x, height, width)
        q, k, v = self.heads(self.proj_q(q)), self.heads(self.proj_k(k)), self.heads(self.proj_v(v))
        weights = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)  # (B, n, N, M)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Convolutional Transformer block (Fig. 2b)."""

    def __init__(self, dim: int, num_heads: int, class_token: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, class_token)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim, act=QuickGELU)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(B, prefix + HW, dim) -> the same shape."""
        x = x + self.attn(self.norm1(x), height, width)
        return x + self.mlp(self.norm2(x))


class ConvEmbed(nn.Module):
    """Convolutional token embedding: overlapping patches, LayerNorm over channels (§3.1)."""

    def __init__(self, in_chs: int, dim: int, kernel: int, stride: int, padding: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chs, dim, kernel, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chs, H, W) -> (B, dim, h, w)."""
        x = self.proj(x)
        height, width = x.shape[-2:]
        return to_map(self.norm(to_tokens(x)), height, width)


class Stage(nn.Module):
    """Embedding and blocks of one resolution (Fig. 2a)."""

    def __init__(self, embed: ConvEmbed, dim: int, depth: int, num_heads: int, class_token: bool):
        super().__init__()
        self.patch_embed = embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.blocks = nn.ModuleList(Block(dim, num_heads, class_token) for _ in range(depth))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, in_chs, H, W) -> (B, dim, h, w) map, and the (B, 1, dim) class token where there is one."""
        x = self.patch_embed(x)
        height, width = x.shape[-2:]
        x = to_tokens(x)
        if self.cls_token is not None:
            x = with_class_token(x, self.cls_token)
        for block in self.blocks:
            x = block(x, height, width)
        token = None
        if self.cls_token is not None:
            token, x = x.split((1, height * width), dim=1)
        return to_map(x, height, width), token


class CvT(nn.Module):
    """Three stages; the head acts on the class token of the last (Fig. 2)."""

    def __init__(
        self,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        *,
        kernels: tuple[int, ...] = (7, 3, 3),
        strides: tuple[int, ...] = (4, 2, 2),
        paddings: tuple[int, ...] = (2, 1, 1),
        num_classes: int = 1000,
    ):
        super().__init__()
        self.stages = nn.ModuleList()
        in_chs = 3
        for i, dim in enumerate(dims):
            embed = ConvEmbed(in_chs, dim, kernels[i], strides[i], paddings[i])
            self.stages.append(Stage(embed, dim, depths[i], num_heads[i], class_token=i == len(dims) - 1))
            in_chs = dim
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_classes)."""
        for stage in self.stages:
            x, token = stage(x)
        return self.head(self.norm(token).squeeze(1))


def build(name: str, *, image_size: int | None = None, num_classes: int = 1000) -> CvT:
    """One of `VARIANTS`; there are no tables, so the image size is unused."""
    return CvT(**VARIANTS[name], num_classes=num_classes)
