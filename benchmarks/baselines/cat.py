"""CAT: Cross Attention in Vision Transformer, Lin et al. 2021. https://arxiv.org/abs/2106.05786

Every attention cuts the map into windows and puts it together again, and in training every attention block is computed
twice, as the release does it ("checkpointing"); ``checkpoint=False`` leaves that out.
"""

from typing import Any

import torch
from benchmarks.baselines.transformer import Attention, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

VARIANTS: dict[str, dict[str, Any]] = {
    "cat_small": {"dim": 96, "depths": (1, 1, 3, 1), "num_heads": (3, 6, 12, 24)},
    "cat_micro": {
        "dim": 24, "depths": (1, 1, 1), "num_heads": (2, 4, 8), "side": 4, "patch_size": 2, "mlp_ratio": 2.0,
        "image_size": 32,
    },
}  # fmt: skip


def partition(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) -> (B, h, w, side, side, C) windows."""
    B, H, W, C = x.shape
    return x.reshape(B, H // side, side, W // side, side, C).transpose(2, 3)


def reverse(x: Tensor) -> Tensor:
    """(B, h, w, side, side, C) windows -> (B, H, W, C)."""
    B, h, w, side, _, C = x.shape
    return x.transpose(2, 3).reshape(B, h * side, w * side, C)


class RelativeBias(nn.Module):
    """A bias a head for each offset of two pixels of a window (Liu et al. 2021, "Swin", Eq. 4)."""

    def __init__(self, side: int, num_heads: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn((2 * side - 1) ** 2, num_heads) * 0.02)
        pixel = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        row, column = (pixel[:, None] - pixel[None, :] + side - 1).unbind(-1)
        self.register_buffer("index", row * (2 * side - 1) + column, persistent=False)

    def forward(self) -> Tensor:
        """(n, side^2, side^2), query first."""
        return self.table[self.index].permute(2, 0, 1).contiguous()


class InnerPatchAttention(Attention):
    """IPSA: attention of the pixels of each window (§3.2, Fig. 3a)."""

    def __init__(self, dim: int, num_heads: int, side: int):
        super().__init__(dim, num_heads)
        self.side = side
        self.position = RelativeBias(side, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> the same shape."""
        x = partition(x, self.side)
        shape = x.shape
        x = x.reshape(-1, self.side**2, shape[-1])  # (B hw, ss, dim)
        return reverse(super().forward(x, self.position()).reshape(shape))


class CrossPatchAttention(Attention):
    """CPSA: attention of the windows, each channel by itself, a window's pixels as features (§3.2, Fig. 3b)."""

    def __init__(self, side: int):
        super().__init__(side**2, 1)
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the same shape."""
        x = partition(x, self.side)
        B, h, w, s, _, C = x.shape
        x = x.permute(0, 5, 1, 2, 3, 4).reshape(B * C, h * w, s * s)
        x = super().forward(x).reshape(B, C, h, w, s, s)
        return reverse(x.permute(0, 2, 3, 4, 5, 1))


class AttentionBlock(nn.Module):
    """Attention and MLP, norm first (Fig. 2b)."""

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CATBlock(nn.Module):
    """IPSA, CPSA, IPSA (Fig. 2b)."""

    def __init__(self, dim: int, num_heads: int, *, side: int, mlp_ratio: float, checkpoint: bool):
        super().__init__()
        self.checkpoint = checkpoint
        self.ipsa1 = AttentionBlock(dim, InnerPatchAttention(dim, num_heads, side), mlp_ratio)
        self.cpsa = AttentionBlock(dim, CrossPatchAttention(side), mlp_ratio)
        self.ipsa2 = AttentionBlock(dim, InnerPatchAttention(dim, num_heads, side), mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> the same shape."""
        for block in (self.ipsa1, self.cpsa, self.ipsa2):
            twice = self.checkpoint and torch.is_grad_enabled()
            x = recomputed(block, x, use_reentrant=False) if twice else block(x)
        return x


class PatchEmbedding(nn.Module):
    """Patches to channels by a strided convolution, then LayerNorm (§3.1)."""

    def __init__(self, dim: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h, w, dim)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PatchProjection(nn.Module):
    """2x2 pixels side by side as channels, LayerNorm, a linear layer to half of them (§3.1)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H / 2, W / 2, 2 dim)."""
        x = torch.cat((x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]), dim=-1)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    """Patch projection, where it is not the first, and blocks of one resolution (Fig. 2a)."""

    def __init__(self, downsample: nn.Module, blocks: list[CATBlock]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the stage's map."""
        return self.blocks(self.downsample(x))


class CAT(nn.Module):
    """Patches, positions, stages, average pooling, classifier (Fig. 2a, Tab. 1)."""

    def __init__(
        self,
        dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        *,
        side: int = 7,
        patch_size: int = 4,
        mlp_ratio: float = 4.0,
        image_size: int = 224,
        num_classes: int = 1000,
        checkpoint: bool = True,
    ):
        super().__init__()
        self.patch_embed = PatchEmbedding(dim, patch_size)
        self.pos_embed = nn.Parameter(torch.randn(1, dim, *[image_size // patch_size] * 2) * 0.02)
        self.stages = nn.ModuleList()
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            width = dim * 2**i
            blocks = [
                CATBlock(width, heads, side=side, mlp_ratio=mlp_ratio, checkpoint=checkpoint) for _ in range(depth)
            ]
            self.stages.append(Stage(PatchProjection(width // 2) if i else nn.Identity(), blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_classes)."""
        x = self.patch_embed(x) + self.pos_embed.permute(0, 2, 3, 1)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x).mean(dim=(1, 2)))


def build(name: str, *, image_size: int | None = None, num_classes: int = 1000, checkpoint: bool = True) -> CAT:
    """One of `VARIANTS`, its positions made for this image size, of which every map is to be whole windows.

    For ``cat_small`` that is a multiple of 224.
    """
    sized = {"image_size": image_size} if image_size else {}
    return CAT(**{**VARIANTS[name], **sized}, num_classes=num_classes, checkpoint=checkpoint)
