"""Blocks of Conformer: its two branches, and their coupling (Peng et al. 2021, §3.1, Fig. 2b)."""

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import DropPath
from torch import Tensor, nn

from glocal.layers import Mlp, SelfAttention

Pair = tuple[Tensor, Tensor]


class ConvBlock(nn.Module):
    """Bottleneck of the convolution branch (§3.1, Fig. 2b); the tokens can be added before its 3x3 convolution."""

    def __init__(self, in_chs: int, out_chs: int, *, stride: int = 1, project: bool = False):
        super().__init__()
        width = out_chs // 4
        self.conv1 = nn.Conv2d(in_chs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=1e-6)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps=1e-6)
        self.conv3 = nn.Conv2d(width, out_chs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_chs, eps=1e-6)
        self.act = nn.ReLU(inplace=True)
        self.residual: nn.Module = nn.Identity()
        if project:
            self.residual = nn.Sequential(
                nn.Conv2d(in_chs, out_chs, 1, stride=stride, bias=False), nn.BatchNorm2d(out_chs, eps=1e-6)
            )

    def forward(self, x: Tensor, couple: Callable[[Tensor], Tensor] | None = None) -> Pair:
        """(B, in_chs, H, W) and the coupling from the tokens -> output, and the output of the 3x3 convolution."""
        y = self.act(self.bn1(self.conv1(x)))
        y = couple(y) if couple else y
        y = self.act(self.bn2(self.conv2(y)))  # (B, out_chs / 4, H / s, W / s)
        out = self.bn3(self.conv3(y))
        out += self.residual(x)
        return self.act(out), y


class TransBlock(nn.Module):
    """Block of the transformer branch, norm first (§3.1)."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, drop_path: float, **attention: Any):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, num_heads, **attention)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + hw, dim) -> the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Absent(nn.Module):
    """Placeholder for a disabled branch: returns its input as both outputs."""

    def forward(self, x: Tensor, *others: Any) -> Pair:
        return x, x


class Off(nn.Module):
    """Placeholder for a disabled `FCUDown` or `FCUUp`: returns its second input unchanged."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return other


class ConvTransBlock(nn.Module):
    """Both branches side by side, coupled by a `FCUDown` and a `FCUUp` (Fig. 2b)."""

    def __init__(
        self,
        cnn_block: nn.Module,
        squeeze_block: nn.Module,
        trans_block: nn.Module,
        expand_block: nn.Module,
        med_block: list[ConvBlock],
        fusion_block: nn.Module,
    ):
        super().__init__()
        self.cnn_block = cnn_block
        self.squeeze_block = squeeze_block
        self.trans_block = trans_block
        self.expand_block = expand_block
        self.med_block = nn.ModuleList(med_block)
        self.fusion_block = fusion_block

    def forward(self, x: Tensor, tokens: Tensor) -> Pair:
        """(B, C, H, W) map and (B, 1 + hw, dim) tokens -> both after this block."""
        x, inner = self.cnn_block(x)
        tokens = self.trans_block(self.squeeze_block(inner, tokens))
        del inner  # frees memory at high resolution
        for block in self.med_block:
            x, _ = block(x)
        x, _ = self.fusion_block(x, partial(self.expand_block, tokens))
        return x, tokens
