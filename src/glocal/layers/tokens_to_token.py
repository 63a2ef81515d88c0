"""The tokens-to-token module of T2T-ViT: repeated overlapping patches with attention between.

Yuan et al. 2021, §3.1, Fig. 3 (https://arxiv.org/abs/2101.11986).
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from glocal.layers.attention import Attend
from glocal.layers.linear import Linear
from glocal.layers.performer import RandomFeatureAttention
from glocal.layers.tokens import tokens_to_map

Splits = tuple[tuple[int, int, int], ...]


def _mlp(dim: int, dropout: float = 0.0) -> nn.Sequential:
    layers = {"fc1": Linear(dim, dim), "act": nn.GELU(), "fc2": Linear(dim, dim), "drop": nn.Dropout(dropout)}
    return nn.Sequential(OrderedDict(layers))


class TokenTransformer(nn.Module):
    """Re-structurization by a Transformer layer of one narrow head (§3.1, Eq. 1): the skip starts at v, not at x."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.attn = TokenAttention(in_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in_dim) -> (B, N, dim)."""
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenAttention(nn.Module):
    """Attention of one head that narrows its tokens; scaled by the width of its input, as released."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.qkv = Linear(in_dim, 3 * dim, bias=False)
        self.attend = Attend(scale=in_dim**-0.5)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in_dim) -> (B, N, dim)."""
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)  # (B, 1, N, dim) each
        return v[:, 0] + self.proj(self.attend(q, k, v)[:, 0])


class TokenPerformer(nn.Module):
    """The same with attention of linear cost (§4.1, "Performer layer"); the order of the projection is k, q, v.

    Its dropout is always 0.1 in training, as released.
    """

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.kqv = Linear(in_dim, 3 * dim)
        self.attend = RandomFeatureAttention(dim, num_features=dim // 2)
        self.proj = Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _mlp(dim, dropout=0.1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in_dim) -> (B, N, dim)."""
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)  # (B, N, dim) each
        x = v + self.dropout(self.proj(self.attend(q, k, v)))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """The tokens-to-token module (§3.1, Fig. 3): soft split, re-structurization, twice, and a last soft split."""

    def __init__(self, in_chans: int, token_dim: int, dim: int, *, kind: str, splits: Splits):
        super().__init__()
        self.splits = splits
        layer = {"performer": TokenPerformer, "transformer": TokenTransformer}[kind]
        (first, _, _), (second, _, _), (third, _, _) = splits
        self.attention1 = layer(in_chans * first**2, token_dim)
        self.attention2 = layer(token_dim * second**2, token_dim)
        self.project = Linear(token_dim * third**2, dim)

    def soft_split(self, x: Tensor, index: int) -> tuple[Tensor, int, int]:
        """(B, C, H, W) map -> (B, hw, C k^2) overlapping patches, and their rows h and columns w.

        The values of a patch are ordered by channel, then row and column of the kernel.
        """
        kernel, stride, padding = self.splits[index]
        height, width = ((length + 2 * padding - kernel) // stride + 1 for length in x.shape[-2:])
        return F.unfold(x, kernel, stride=stride, padding=padding).transpose(1, 2), height, width

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, dim, h, w)."""
        x, height, width = self.soft_split(x, 0)
        x = tokens_to_map(self.attention1(x), height, width)  # (B, T, H/4, W/4)
        x, height, width = self.soft_split(x, 1)
        x = tokens_to_map(self.attention2(x), height, width)  # (B, T, H/8, W/8)
        x, height, width = self.soft_split(x, 2)
        return tokens_to_map(self.project(x), height, width)  # (B, dim, H/16, W/16)


class ConvolutionTokens(nn.Sequential):
    """Tokens by three convolutions over the same windows (§4.3, Tab. 6, "T2T-ViT_c")."""

    def __init__(self, in_chans: int, token_dim: int, dim: int, *, splits: Splits):
        super().__init__()
        chs = (in_chans, token_dim, token_dim, dim)
        for i, (name, split) in enumerate(zip(("soft_split0", "soft_split1", "project"), splits, strict=True)):
            self.add_module(name, nn.Conv2d(chs[i], chs[i + 1], *split))
