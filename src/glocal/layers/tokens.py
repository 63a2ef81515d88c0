"""Maps to tokens and back, and the patch embedding of ViT."""

import torch.nn.functional as F
from torch import Tensor, nn


def map_to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) map -> (B, HW, C) tokens, row by row."""
    return x.flatten(2).transpose(1, 2)


def tokens_to_map(x: Tensor, height: int, width: int) -> Tensor:
    """(B, HW, C) tokens -> (B, C, H, W) map, the inverse of `map_to_tokens`: a view, channels last."""
    return x.unflatten(1, (height, width)).permute(0, 3, 1, 2)  # keeps the layout for a batch of one too


class PatchEmbed(nn.Module):
    """Linear projection of non-overlapping patches (Dosovitskiy et al. 2021, §3.1, Eq. 1), as a strided convolution.

    Images are zero-padded at the bottom and right to a multiple of the patch size.

    Args:
        patch_size: side of a patch, in pixels.
        in_chs: channels of the image.
        dim: channels of a token.
    """

    def __init__(self, patch_size: int, in_chs: int, dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chs, dim, kernel_size=patch_size, stride=patch_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches that cover an image of this size in pixels."""
        return -(-height // self.patch_size), -(-width // self.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chs, H, W) -> (B, dim, ceil(H / patch), ceil(W / patch))."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.patch_size, 0, -height % self.patch_size))
        return self.proj(x)
