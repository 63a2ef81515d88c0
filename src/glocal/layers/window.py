"""Attention within square windows of a map, and between windows. Maps are channels-last here: (B, H, W, C).

The map is zero-padded at the bottom and right to whole windows; the padding takes part in attention unmasked, as in
CAT's release for dense prediction, and is cropped afterwards.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glocal.layers.attention import Attend
from glocal.layers.linear import Linear


def to_windows(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) -> (B, h, w, side, side, C) windows, zero-padded."""
    batch, height, width, chs = x.shape
    rows, columns = (height + side - 1) // side, (width + side - 1) // side
    x = F.pad(x, (0, 0, 0, columns * side - width, 0, rows * side - height))
    return x.view(batch, rows, side, columns, side, chs).transpose(2, 3).contiguous()


def from_windows(x: Tensor, height: int, width: int) -> Tensor:
    """(B, h, w, side, side, C) windows -> (B, height, width, C), without the padding."""
    batch, rows, columns, side, _, chs = x.shape
    x = x.transpose(2, 3).contiguous().view(batch, rows * side, columns * side, chs)
    return x[:, :height, :width]


def by_windows(attend: Callable[[Tensor], Tensor], x: Tensor, side: int) -> Tensor:
    """Apply a function of windows to a map, (B, H, W, C) -> the same shape, or to windows directly."""
    if x.ndim == 6:
        return attend(x)
    return from_windows(attend(to_windows(x, side)), x.shape[1], x.shape[2])


def full_windows(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) -> (B, h, w, side, side, C) windows if no padding is needed, else the map unchanged.

    Consecutive layers then partition once. A map that needs padding stays a map, so that pixelwise layers skip the
    padding; so does one of dynamic size in an exported graph.
    """
    if torch.compiler.is_exporting() or x.shape[1] % side or x.shape[2] % side:
        return x
    return to_windows(x, side)


class RelativeBias(nn.Module):
    """A learned bias per head for each offset between two pixels of a window (Liu et al. 2021, "Swin", §3.2, Eq. 4).

    Attributes:
        table: ((2 side - 1)^2, heads); row = (row offset) (2 side - 1) + column offset, of query minus key, each
            counted from -(side - 1).
    """

    index: Tensor

    def __init__(self, side: int, num_heads: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn((2 * side - 1) ** 2, num_heads) * 0.02)
        row, column = (axis.flatten() for axis in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
        rows = row[:, None] - row[None, :] + side - 1
        columns = column[:, None] - column[None, :] + side - 1
        self.register_buffer("index", rows * (2 * side - 1) + columns, persistent=False)

    def forward(self) -> Tensor:
        """(heads, side^2, side^2) bias, query first."""
        return self.table.T[:, self.index]


class WindowAttention(nn.Module):
    """Self-attention inside each window, with a relative bias: CAT's inner-patch self-attention (IPSA).

    Lin et al. 2021, "CAT", §3.2, Fig. 3a; with ``shift`` the shifted windows of Swin (Liu et al. 2021, §3.2, Fig. 4).

    Args:
        dim: channels.
        num_heads: heads, each dim / num_heads wide.
        side: pixels along a window.
        shift: pixels by which the windows are shifted down and right; pixels joined by the roll are masked.
        qkv_bias: whether q, k and v have a bias.
        dropout: dropout of the attention weights.

    Raises:
        ValueError: if num_heads does not divide dim.
    """

    def __init__(
        self, dim: int, num_heads: int, side: int, *, shift: int = 0, qkv_bias: bool = True, dropout: float = 0.0
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of dim {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.side = side
        self.shift = shift
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.position = RelativeBias(side, num_heads)
        self.attend = Attend(dropout=dropout)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) map, or its (B, h, w, side, side, dim) windows -> the same shape."""
        return by_windows(self.inside_shifted if self.shift else self.inside, x, self.side)

    def inside(self, x: Tensor, mask: Tensor | float = 0.0) -> Tensor:
        """(B, h, w, s, s, dim) -> the same shape: attention inside each window."""
        qkv = self.qkv(x.flatten(3, 4).flatten(0, 2))  # (Bhw, ss, 3 dim)
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (Bhw, n, ss, d) each
        bias = self.position()[None] + mask  # (1 or Bhw, n, ss, ss)
        y = self.attend(q, k, v, bias).transpose(1, 2).clone(memory_format=torch.contiguous_format)  # for ONNX
        return self.proj(y.flatten(2)).view(x.shape)

    def inside_shifted(self, x: Tensor) -> Tensor:
        """The same in windows shifted ``shift`` pixels down and right."""
        rows, columns = x.shape[1] * self.side, x.shape[2] * self.side
        x = from_windows(x, rows, columns).roll((-self.shift, -self.shift), dims=(1, 2))
        x = to_windows(x, self.side)
        x = self.inside(x, self.shift_mask(rows, columns, x).repeat(x.shape[0], 1, 1, 1))
        x = from_windows(x, rows, columns).roll((self.shift, self.shift), dims=(1, 2))
        return to_windows(x, self.side)

    def shift_mask(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """(hw, 1, ss, ss) bias of -inf between pixels that are neighbours only by the roll."""
        row, column = (
            (torch.arange(n, device=like.device) >= n - self.side).long()
            + (torch.arange(n, device=like.device) >= n - self.shift).long()
            for n in (rows, columns)
        )
        region = to_windows((3 * row[:, None] + column)[None, :, :, None], self.side).flatten(3).flatten(0, 2)
        differs = region[:, :, None] != region[:, None, :]  # (hw, ss, ss)
        return torch.zeros_like(differs, dtype=like.dtype).masked_fill(differs, float("-inf"))[:, None]


class CrossPatchAttention(nn.Module):
    """Self-attention between windows, one channel at a time: CAT's cross-patch self-attention (CPSA).

    Lin et al. 2021, "CAT", §3.2, Fig. 3b: tokens are the windows, their features the side^2 pixels of one channel; all
    channels share the weights; there is no position encoding.

    Args:
        side: pixels along a window.
        num_heads: heads, each side^2 / num_heads wide; one as published.
        qkv_bias: whether q, k and v have a bias.
        dropout: dropout of the attention weights.

    Raises:
        ValueError: if num_heads does not divide side^2.
    """

    def __init__(self, side: int, num_heads: int = 1, *, qkv_bias: bool = True, dropout: float = 0.0):
        super().__init__()
        if side**2 % num_heads:
            raise ValueError(f"num_heads: expected a divisor of {side}^2, got {num_heads}")
        self.side = side
        self.num_heads = num_heads
        self.qkv = Linear(side**2, 3 * side**2, bias=qkv_bias)
        self.attend = Attend(dropout=dropout)
        self.proj = Linear(side**2, side**2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) map, or its (B, h, w, side, side, C) windows -> the same shape."""
        return by_windows(self.between, x, self.side)

    def between(self, x: Tensor) -> Tensor:
        """(B, h, w, s, s, C) -> the same shape: attention between the windows, channel by channel."""
        batch, chs = x.shape[0], x.shape[-1]
        tokens = x.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2).contiguous().flatten(0, 1)  # (BC, hw, ss)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (BC, n, hw, d) each
        y = self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))  # (BC, hw, ss)
        return y.unflatten(0, (batch, chs)).permute(0, 2, 3, 1).reshape(x.shape)
