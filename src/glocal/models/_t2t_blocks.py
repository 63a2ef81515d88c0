"""Blocks of T2T-ViT and of the compared designs: SE, Ghost, dense (Yuan et al. 2021, §3.2, Tab. 5)."""

from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from glocal.layers import Attend, Linear, Mlp, SelfAttention
from glocal.models._backbone import drop_path_rates


class SEAttention(SelfAttention):
    """Self-attention with squeeze-and-excitation of its output over all tokens (§3.2, "T2T-ViT-SE")."""

    def __init__(self, dim: int, num_heads: int, **kwargs: Any):
        super().__init__(dim, num_heads, **kwargs)
        self.se = nn.Sequential(
            Linear(dim, dim // 16, bias=False), nn.ReLU(), Linear(dim // 16, dim, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x * self.se(x.mean(dim=1, keepdim=True))


class GhostAttention(nn.Module):
    """Self-attention whose q, k and v are half computed, half cheap copies, one factor per channel (§3.2, "Ghost")."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool, scale: float | None, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v = (Linear(dim, dim // 2, bias=qkv_bias) for _ in "qkv")
        self.cheap_q, self.cheap_k, self.cheap_v = (Cheap(dim // 2) for _ in "qkv")
        self.attend = Attend(scale=scale, dropout=dropout)
        self.proj = Linear(dim, dim)

    def heads(self, x: Tensor, cheap: nn.Module) -> Tensor:
        """(B, N, dim / 2) -> (B, n, N, d): computed channels, then cheap ones, split into heads together."""
        return torch.cat((x, cheap(x)), dim=2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        q, k, v = (
            self.heads(self.q(x), self.cheap_q),
            self.heads(self.k(x), self.cheap_k),
            self.heads(self.v(x), self.cheap_v),
        )
        return self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))


class Cheap(nn.Module):
    """A factor for each channel: GhostNet's cheap operation with a 1x1 depthwise convolution."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class GhostMlp(nn.Module):
    """MLP of hidden width 3 x dim, of which one third is computed and two are cheap copies of it."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = Linear(dim, dim)
        self.cheap2, self.cheap3 = Cheap(dim), Cheap(dim)
        self.act = nn.GELU()
        self.fc2 = Linear(3 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(x))
        x = torch.cat((x, self.act(self.cheap2(x)), self.act(self.cheap3(x))), dim=2)
        return self.fc2(x)


ATTENTIONS = {"plain": SelfAttention, "se": SEAttention, "ghost": GhostAttention}


class Block(nn.Module):
    """Transformer block of the deep-narrow backbone, norm first (§3.2)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        kind: str = "plain",
        drop_path: float = 0.0,
        **attention: Any,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ATTENTIONS[kind](dim, num_heads, **attention)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = GhostMlp(dim) if kind == "ghost" else Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class DenseBlock(Block):
    """A block that appends to its input ``growth`` channels of its output, as DenseNet does (§3.2)."""

    def __init__(self, dim: int, num_heads: int, *, growth: int, **kwargs: Any):
        super().__init__(dim, num_heads, **kwargs)
        self.dense_linear = Linear(dim, growth)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim + growth)."""
        return torch.cat((x, self.dense_linear(super().forward(x))), dim=2)


class Transition(nn.Sequential):
    """Halves the channels between the groups of a dense T2T-ViT."""

    def __init__(self, dim: int):
        super().__init__()
        self.add_module("linear", Linear(dim, dim // 2))
        self.add_module("act", nn.GELU())


def dense_blocks(
    dim: int, groups: tuple[int, ...], num_heads: int, growth: int, drop_path_rate: float, kwargs: dict[str, Any]
) -> tuple[list[nn.Module], list[int]]:
    """Dense blocks in groups separated by transitions, and the channels after each."""
    blocks: list[nn.Module] = []
    widths = []
    rates = drop_path_rates(drop_path_rate, (len(groups),))[0]
    for group, (depth, rate) in enumerate(zip(groups, rates, strict=True)):
        for _ in range(depth):
            blocks.append(DenseBlock(dim, num_heads, growth=growth, drop_path=rate, **kwargs))
            dim += growth
            widths.append(dim)
        if group < len(groups) - 1:
            blocks.append(Transition(dim))
            dim //= 2
            widths.append(dim)
    return blocks, widths
