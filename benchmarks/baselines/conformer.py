"""Conformer: Local Features Coupling Global Representations, Peng et al. 2021. https://arxiv.org/abs/2105.03889

With the released network's class token, which doubles at every coupling, and its epsilons.
"""

from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.baselines.transformer import Block, with_class_token
from torch import Tensor, nn

VARIANTS: dict[str, dict[str, Any]] = {
    "conformer_small_patch16": {"width": 256},
    "conformer_micro": {
        "width": 16, "dim": 36, "depth": 6, "num_heads": 3, "mlp_ratio": 3.0, "patch_size": 4,
        "stem_width": 16, "stem_stride": 1,
    },
}  # fmt: skip


class ConvBlock(nn.Module):
    """Bottleneck of the convolution branch; a map of tokens can enter its 3x3 convolution (§3.1, Fig. 2b)."""

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1):
        super().__init__()
        width = out_chs // 4
        self.conv1 = nn.Conv2d(in_chs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=1e-6)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps=1e-6)
        self.conv3 = nn.Conv2d(width, out_chs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_chs, eps=1e-6)
        self.act = nn.ReLU(inplace=True)
        self.residual = nn.Sequential()

    def project(self, in_chs: int, out_chs: int, stride: int) -> "ConvBlock":
        """Put a 1x1 convolution and BatchNorm on the shortcut."""
        self.residual.append(nn.Conv2d(in_chs, out_chs, 1, stride=stride, bias=False))
        self.residual.append(nn.BatchNorm2d(out_chs, eps=1e-6))
        return self

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, in_chs, H, W) -> output, and what the 3x3 convolution gave."""
        y = self.act(self.bn1(self.conv1(x)))
        inner = self.act(self.bn2(self.conv2(y if tokens is None else y + tokens)))
        y = self.bn3(self.conv3(inner))
        y += self.residual(x)
        return self.act(y), inner


class FCUDown(nn.Module):
    """Map to tokens: 1x1 convolution, average pooling, LayerNorm, GELU, beside the class token (§3.2)."""

    def __init__(self, in_chs: int, dim: int, stride: int):
        super().__init__()
        self.conv_project = nn.Conv2d(in_chs, dim, 1)
        self.sample_pooling = nn.AvgPool2d(stride)
        self.ln = nn.LayerNorm(dim, eps=1e-6)
        self.act = nn.GELU()

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """(B, in_chs, H, W) map and (B, 1 + N, dim) tokens -> (B, 1 + N, dim)."""
        x = self.sample_pooling(self.conv_project(x)).flatten(2).transpose(1, 2)  # (B, N, dim)
        return torch.cat((tokens[:, :1], self.act(self.ln(x))), dim=1)


class FCUUp(nn.Module):
    """Tokens to map: 1x1 convolution, BatchNorm, ReLU, nearest neighbour (§3.2)."""

    def __init__(self, dim: int, out_chs: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv_project = nn.Conv2d(dim, out_chs, 1)
        self.bn = nn.BatchNorm2d(out_chs, eps=1e-6)
        self.act = nn.ReLU()

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(B, 1 + N, dim) tokens -> (B, out_chs, height, width) map."""
        B, _, C = tokens.shape
        x = tokens[:, 1:].transpose(1, 2).reshape(B, C, height // self.stride, width // self.stride)
        return F.interpolate(self.act(self.bn(self.conv_project(x))), size=(height, width))


class ConvTransBlock(nn.Module):
    """Both branches and their two couplings (Fig. 2b)."""

    def __init__(self, cnn: ConvBlock, squeeze: FCUDown, trans: Block, expand: FCUUp, fusion: ConvBlock):
        super().__init__()
        self.cnn_block = cnn
        self.squeeze_block = squeeze
        self.trans_block = trans
        self.expand_block = expand
        self.fusion_block = fusion

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) map and (B, 1 + N, dim) tokens -> both, a block further."""
        x, inner = self.cnn_block(x)
        tokens = self.trans_block(self.squeeze_block(inner, tokens) + tokens)
        x, _ = self.fusion_block(x, self.expand_block(tokens, inner.shape[2], inner.shape[3]))
        return x, tokens


class Conformer(nn.Module):
    """Stem, the first block of each branch, coupled blocks, a head for each branch (Fig. 2, Tab. 1)."""

    def __init__(
        self,
        width: int,
        *,
        dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        patch_size: int = 16,
        stem_width: int = 64,
        stem_stride: int = 4,
        num_classes: int = 1000,
    ):
        super().__init__()
        kernel, stride = (7, 2) if stem_stride == 4 else (3, 1)
        self.conv1 = nn.Conv2d(3, stem_width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem_stride == 4 else nn.Identity()
        side = patch_size // stem_stride  # pixels of the map along a token
        self.conv_1 = ConvBlock(stem_width, width).project(stem_width, width, 1)
        self.trans_patch_conv = nn.Conv2d(stem_width, dim, side, stride=side)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.trans_1 = Block(dim, num_heads, mlp_ratio=mlp_ratio)
        self.conv_trans = nn.ModuleList()
        in_chs = width
        for i in range(1, depth):
            stage, place = divmod(i, depth // 3)
            chs = width * 2**stage
            cnn = ConvBlock(in_chs, chs, 1 if place else 2)
            if not place:
                cnn.project(in_chs, chs, 2)
            fusion = ConvBlock(chs, chs, 2 if i == depth - 1 else 1)
            if i == depth - 1:
                fusion.project(chs, chs, 2)
            down, up = FCUDown(chs // 4, dim, side // 2**stage), FCUUp(dim, chs // 4, side // 2**stage)
            self.conv_trans.append(ConvTransBlock(cnn, down, Block(dim, num_heads, mlp_ratio=mlp_ratio), up, fusion))
            in_chs = chs
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.conv_head = nn.Linear(in_chs, num_classes)
        self.norm = nn.LayerNorm(dim)
        self.trans_head = nn.Linear(dim, num_classes)

    def forward_branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, num_classes) logits of the convolution head and of the transformer head."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        tokens = with_class_token(self.trans_patch_conv(x).flatten(2).transpose(1, 2), self.cls_token)
        x, _ = self.conv_1(x)
        tokens = self.trans_1(tokens)
        for block in self.conv_trans:
            x, tokens = block(x, tokens)
        return self.conv_head(self.pooling(x).flatten(1)), self.trans_head(self.norm(tokens)[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_classes), the mean of the two heads' logits as the library has it."""
        conv, trans = self.forward_branches(x)
        return (conv + trans) / 2


def build(name: str, *, image_size: int | None = None, num_classes: int = 1000) -> Conformer:
    """One of `VARIANTS`; there are no tables, so the image size, a multiple of 32, is unused."""
    return Conformer(**VARIANTS[name], num_classes=num_classes)
