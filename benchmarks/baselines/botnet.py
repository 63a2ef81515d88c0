"""BoTNet: Bottleneck Transformers for Visual Recognition, Srinivas et al. 2021. https://arxiv.org/abs/2101.11605

The plain ResNet with the 3x3 convolutions of its last stage replaced (§3.1, Tab. 1).
"""

from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.baselines.resnet import VARIANTS as RESNETS
from benchmarks.baselines.resnet import ResNet
from torch import Tensor, nn

VARIANTS: dict[str, dict[str, Any]] = {
    "botnet50": {**RESNETS["glocal_resnet50"], "image_size": 224},
    "botnet_micro": {**RESNETS["resnet_micro"], "depths": (1, 2, 4, 3), "image_size": 32},
}


def relative_to_absolute(x: Tensor) -> Tensor:
    """(..., L, 2L - 1) logits by distance, key minus query plus L - 1 -> (..., L, L) logits by key.

    One more column makes each row start a place earlier than the one above, once the flat rows are cut at 2L - 1.
    """
    L = x.shape[-2]
    x = F.pad(x, (0, 1)).flatten(-2)  # (..., 2LL)
    x = F.pad(x, (0, L - 1)).unflatten(-1, (L + 1, 2 * L - 1))
    return x[..., :L, L - 1 :]


class Position(nn.Module):
    """The tables of relative positions, one for rows and one for columns (§3, Fig. 4)."""

    def __init__(self, side: int, head_dim: int):
        super().__init__()
        self.rel_height = nn.Parameter(torch.randn(2 * side - 1, head_dim) * head_dim**-0.5)
        self.rel_width = nn.Parameter(torch.randn(2 * side - 1, head_dim) * head_dim**-0.5)


class MHSA(nn.Module):
    """softmax(q k^T + q r^T) v over the pixels of a map (§3, Fig. 4), r = r_height + r_width.

    As in the authors' reference code q is scaled before both, and the block's stride is a pooling after.
    """

    def __init__(self, dim: int, num_heads: int, side: int, stride: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.position = Position(side, dim // num_heads)
        self.pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, dim, H / stride, W / stride)."""
        B, C, H, W = x.shape
        q, k, v = self.qkv(x).reshape(B, 3, self.num_heads, -1, H * W).transpose(3, 4).unbind(1)  # (B, n, HW, d) each
        q = q * self.scale
        pixels = q.reshape(B, self.num_heads, H, W, -1)
        rows = relative_to_absolute((pixels @ self.position.rel_height.T).transpose(2, 3))  # (B, n, W, H, H)
        columns = relative_to_absolute(pixels @ self.position.rel_width.T)  # (B, n, H, W, W)
        relative = rows.transpose(2, 3)[..., :, None] + columns[..., None, :]  # (B, n, H, W, H, W)
        logits = q @ k.transpose(-2, -1) + relative.reshape(B, self.num_heads, H * W, H * W)
        x = logits.softmax(dim=-1) @ v  # (B, n, HW, d)
        return self.pool(x.transpose(2, 3).reshape(B, C, H, W))


def build(name: str, *, image_size: int | None = None, num_classes: int = 1000) -> ResNet:
    """One of `VARIANTS`, its tables made for this image size, a multiple of 32."""
    variant = dict(VARIANTS[name])
    own_size = variant.pop("image_size")
    model = ResNet(**variant, num_classes=num_classes)
    strides, stem_stride = variant.get("strides", (1, 2, 2, 2)), variant.get("stem_stride", 4)
    side = (image_size or own_size) // (stem_stride * strides[1] * strides[2])
    for block, stride in zip(model.layer4, (strides[3], 1, 1), strict=True):
        block.conv2 = MHSA(block.bn2.num_features, 4, side, stride)
        side //= stride
    model.layer4[0].downsample.append(nn.ReLU(inplace=True))  # of the authors' reference code
    return model
