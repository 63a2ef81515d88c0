"""ViT: An Image is Worth 16x16 Words, Dosovitskiy et al. 2021. https://arxiv.org/abs/2010.11929"""

from typing import Any

import torch
from benchmarks.baselines.transformer import Block, with_class_token
from torch import Tensor, nn

VARIANTS: dict[str, dict[str, Any]] = {
    "glocal_vit_small_patch16_224": {"dim": 384, "num_heads": 6},
    "glocal_vit_base_patch16_224": {"dim": 768, "num_heads": 12},
    "vit_micro": {"dim": 48, "depth": 5, "num_heads": 3, "patch_size": 4, "image_size": 32},
}


class PatchEmbed(nn.Module):
    """Linear projection of patches, as a strided convolution (§3.1, Eq. 1)."""

    def __init__(self, patch_size: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, dim)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Patches, class token, positions, blocks, head on the class token (§3.1, Fig. 1)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        depth: int = 12,
        patch_size: int = 16,
        image_size: int = 224,
        num_classes: int = 1000,
    ):
        super().__init__()
        self.patch_embed = PatchEmbed(patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (image_size // patch_size) ** 2, dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, num_heads, mlp_ratio=4.0) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_classes)."""
        x = with_class_token(self.patch_embed(x), self.cls_token) + self.pos_embed
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])


def build(name: str, *, image_size: int | None = None, num_classes: int = 1000) -> ViT:
    """One of `VARIANTS`, its position embeddings made for this image size, a multiple of the patch's."""
    sized = {"image_size": image_size} if image_size else {}
    return ViT(**{**VARIANTS[name], **sized}, num_classes=num_classes)
