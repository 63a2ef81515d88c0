"""The Transformer block: Vaswani et al. 2017, §3.2 and §3.3; norm first as in Dosovitskiy et al. 2021.

https://arxiv.org/abs/1706.03762, https://arxiv.org/abs/2010.11929
"""

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d) + bias) v for each head (Vaswani et al. 2017, Eq. 1, §3.2.2)."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, N, dim) -> (B, N, dim); the bias is (n, N, N)."""
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1)) * self.scale  # (B, n, N, N)
        if bias is not None:
            weights = weights + bias
        weights = weights.softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(B, N, C))


class Mlp(nn.Module):
    """Two linear layers with an activation between them (Vaswani et al. 2017, §3.3)."""

    def __init__(self, dim: int, hidden: int, *, act: type[nn.Module] = nn.GELU, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = act()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return self.drop(self.fc2(self.act(self.fc1(x))))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) (Dosovitskiy et al. 2021, Eq. 2 and 3)."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, qkv_bias: bool = True, eps: float = 1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def with_class_token(x: Tensor, token: Tensor) -> Tensor:
    """(B, N, dim) tokens and the (1, 1, dim) class token -> (B, 1 + N, dim)."""
    return torch.cat((token.expand(len(x), -1, -1), x), dim=1)
