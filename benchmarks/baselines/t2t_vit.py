"""T2T-ViT: Tokens-to-Token ViT, Yuan et al. 2021. https://arxiv.org/abs/2101.11986

Soft split, re-structurization, soft split, ...: each unfolds the map and folds the tokens back (§3.1, Fig. 3). The
Performer is Choromanski et al. 2021, Lemma 1 (https://arxiv.org/abs/2009.14794), as it stands.
"""

import math
from typing import Any

import torch
from benchmarks.baselines.transformer import Block, Mlp, with_class_token
from torch import Tensor, nn

SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride, padding (§4.1)
VARIANTS: dict[str, dict[str, Any]] = {
    "t2t_vit_14": {"dim": 384, "depth": 14, "num_heads": 6},
    "t2t_vit_t_14": {"dim": 384, "depth": 14, "num_heads": 6, "tokens": "transformer"},
    "t2t_vit_micro": {
        "dim": 48, "depth": 4, "num_heads": 3, "mlp_ratio": 2.0, "token_dim": 32,
        "splits": ((3, 2, 1), (3, 2, 1), (3, 1, 1)), "image_size": 32,
    },
}  # fmt: skip


class TokenAttention(nn.Module):
    """softmax(q k^T / sqrt(in_dim)) v of one narrow head, added to v (§3.1, Eq. 1)."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.scale = in_dim**-0.5
        self.qkv = nn.Linear(in_dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in_dim) -> (B, N, dim)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        weights = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)  # (B, N, N)
        return v + self.proj(weights @ v)


class TokenTransformer(nn.Module):
    """Re-structurization by a Transformer layer (§3.1)."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.attn = TokenAttention(in_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in_dim) -> (B, N, dim)."""
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class RandomFeatures(nn.Module):
    """Attention by positive features f(x) = exp(w x - |x|^2 / 2) / sqrt(m): f(q) (f(k)^T v) / f(q) (f(k)^T 1)."""

    def __init__(self, dim: int, num_features: int):
        super().__init__()
        self.register_buffer("w", nn.init.orthogonal_(torch.empty(num_features, dim)) * num_features**0.5)

    def features(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, m)."""
        half_square = x.square().sum(dim=-1, keepdim=True) / 2
        return torch.exp(x @ self.w.T - half_square) / math.sqrt(len(self.w))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, N, dim) three times -> (B, N, dim)."""
        q, k = self.features(q), self.features(k)  # (B, N, m)
        weighted = q @ (k.transpose(1, 2) @ v)
        total = q @ k.sum(dim=1).unsqueeze(2)  # (B, N, 1)
        return weighted / (total + 1e-8)


class TokenPerformer(nn.Module):
    """Re-structurization by a Performer layer (§4.1): keys, queries and values, and the skip from the values."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.kqv = nn.Linear(in_dim, 3 * dim)
        self.attend = RandomFeatures(dim, dim // 2)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(0.1)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim, dropout=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in_dim) -> (B, N, dim)."""
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        x = v + self.drop(self.proj(self.attend(q, k, v)))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """Three soft splits with two re-structurizations between them (§3.1, Fig. 3)."""

    def __init__(self, kind: str, token_dim: int, dim: int, splits: tuple[tuple[int, int, int], ...]):
        super().__init__()
        layer = {"performer": TokenPerformer, "transformer": TokenTransformer}[kind]
        self.soft_split0, self.soft_split1, self.soft_split2 = (
            nn.Unfold(kernel, stride=stride, padding=padding) for kernel, stride, padding in splits
        )
        self.attention1 = layer(3 * splits[0][0] ** 2, token_dim)
        self.attention2 = layer(token_dim * splits[1][0] ** 2, token_dim)
        self.project = nn.Linear(token_dim * splits[2][0] ** 2, dim)

    @staticmethod
    def to_map(x: Tensor) -> Tensor:
        """(B, N, C) tokens of a square map -> (B, C, H, W)."""
        B, N, C = x.shape
        return x.transpose(1, 2).reshape(B, C, math.isqrt(N), math.isqrt(N))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, dim)."""
        x = self.attention1(self.soft_split0(x).transpose(1, 2))
        x = self.attention2(self.soft_split1(self.to_map(x)).transpose(1, 2))
        return self.project(self.soft_split2(self.to_map(x)).transpose(1, 2))


def sinusoid(length: int, dim: int) -> Tensor:
    """(length, dim) sines and cosines by turns (Vaswani et al. 2017, §3.5)."""
    angle = torch.arange(length).double()[:, None] / 10000 ** (torch.arange(0, dim, 2).double() / dim)
    return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1).float()


class T2TViT(nn.Module):
    """The tokens-to-token module, fixed positions, a deep narrow Transformer (Fig. 4)."""

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        mlp_ratio: float = 3.0,
        tokens: str = "performer",
        token_dim: int = 64,
        splits: tuple[tuple[int, int, int], ...] = SPLITS,
        image_size: int = 224,
        num_classes: int = 1000,
    ):
        super().__init__()
        self.tokens_to_token = TokensToToken(tokens, token_dim, dim, splits)
        side = image_size // math.prod(stride for _, stride, _ in splits)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("pos_embed", sinusoid(1 + side**2, dim)[None])
        blocks = (Block(dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=False, eps=1e-5) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) square images -> (B, num_classes)."""
        x = with_class_token(self.tokens_to_token(x), self.cls_token) + self.pos_embed
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])


def build(name: str, *, image_size: int | None = None, num_classes: int = 1000) -> T2TViT:
    """One of `VARIANTS`, its position table made for this image size, a multiple of 16."""
    sized = {"image_size": image_size} if image_size else {}
    return T2TViT(**{**VARIANTS[name], **sized}, num_classes=num_classes)
