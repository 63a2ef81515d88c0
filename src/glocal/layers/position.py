"""Position encodings as an additive bias on the attention logits, and the resampling of their tables.

Relative position in two dimensions: Shaw et al. 2018 (one dimension), Bello et al. 2019 (height and width apart),
in the form of BoTNet (Srinivas et al. 2021, §3, Fig. 4; https://arxiv.org/abs/2101.11605).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resample_table(table: Tensor, length: int) -> Tensor:
    """Resample a (L, d) table of positions to (length, d), linearly, first and last row kept.

    Equal length returns equal values: the interpolation weights are then exactly 0 and 1.
    """
    return F.interpolate(table.T[None], size=length, mode="linear", align_corners=True)[0].T


def resample_map(table: Tensor, height: int, width: int) -> Tensor:
    """Resample a (1, C, h, w) map of position embeddings to (1, C, height, width): bicubic, without antialias.

    Equal size returns equal values: the weights of the interpolation are then exactly 0 and 1.
    """
    return F.interpolate(table, size=(height, width), mode="bicubic", align_corners=False)


def _axis_offsets(length: int, device: torch.device) -> Tensor:
    """(length, length) rows of a relative table: key position - query position + length - 1, query first."""
    position = torch.arange(length, device=device)
    return position[None, :] - position[:, None] + length - 1


def sinusoid(length: int, dim: int) -> Tensor:
    """(length, dim) sines in even channels and cosines in odd ones (Vaswani et al. 2017, §3.5), float32.

    Channels 2i and 2i + 1 have frequency 10000 ** (-2i / dim).
    """
    channel = torch.arange(dim)
    frequency = 10000.0 ** (-2 * (channel // 2).double() / dim)
    angle = torch.arange(length)[:, None] * frequency
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


def sincos_position_2d(dim: int, height: int, width: int, like: Tensor) -> Tensor:
    """Fixed position embedding of a map (Chen et al. 2021, "MoCo v3", §4; Vaswani et al. 2017, §3.5, for each axis).

    Quarters of the channels are sin(column w), cos(column w), sin(row w), cos(row w) with dim / 4 frequencies w,
    geometric from 1 towards 1/10000.

    Args:
        dim: channels, a multiple of 4.
        height: rows.
        width: columns.
        like: tensor with the device and dtype of the result.

    Returns:
        (dim, height, width) values in [-1, 1].
    """
    frequency = 10000.0 ** (-torch.arange(dim // 4, device=like.device, dtype=torch.float64) / (dim // 4))
    rows = frequency[:, None] * torch.arange(height, device=like.device)  # (dim / 4, H)
    columns = frequency[:, None] * torch.arange(width, device=like.device)  # (dim / 4, W)
    across = torch.cat((columns.sin(), columns.cos()))[:, None, :].expand(-1, height, -1)
    down = torch.cat((rows.sin(), rows.cos()))[:, :, None].expand(-1, -1, width)
    return torch.cat((across, down)).to(like.dtype)


class RelativePosition2d(nn.Module):
    """Logits q_i . (r_height[row_j - row_i] + r_width[column_j - column_i]), tables shared by the heads.

    Map sizes other than ``size`` resample the tables. Given the queries of some rows from `first_row` on, only their
    bias is computed.

    Args:
        size: height H and width W of the map for the tables.
        head_dim: channels d of a head.

    Attributes:
        rel_height: (2H - 1, d); row = key row - query row + H - 1.
        rel_width: (2W - 1, d); row = key column - query column + W - 1.
    """

    def __init__(self, size: tuple[int, int], head_dim: int):
        super().__init__()
        height, width = size
        self.rel_height = nn.Parameter(torch.randn(2 * height - 1, head_dim) * head_dim**-0.5)
        self.rel_width = nn.Parameter(torch.randn(2 * width - 1, head_dim) * head_dim**-0.5)

    def forward(self, q: Tensor, height: int, width: int, first_row: int = 0) -> Tensor:
        """(B, n, hW, d) scaled queries of h rows of the map -> (B, n, hW, HW) bias, query first."""
        q = q.unflatten(2, (-1, width))  # (B, n, h, W, d)
        offsets = _axis_offsets(height, q.device)[first_row : first_row + q.shape[2]]
        rel_height = resample_table(self.rel_height, 2 * height - 1)[offsets]  # (h, H, d)
        rel_width = resample_table(self.rel_width, 2 * width - 1)[_axis_offsets(width, q.device)]  # (W, W, d)
        rows = torch.einsum("bnhwd,hkd->bnhwk", q, rel_height)  # (B, n, h, W, H)
        columns = torch.einsum("bnhwd,wkd->bnhwk", q, rel_width)  # (B, n, h, W, W)
        bias = rows.contiguous()[..., :, None] + columns.contiguous()[..., None, :]  # (B, n, h, W, H, W)
        return bias.flatten(4).flatten(2, 3)


class AbsolutePosition2d(nn.Module):
    """Logits q_i . (a_height[row_j] + a_width[column_j]): the position of the key, wherever the query is.

    The ablation of BoTNet (§4.4, Tab. 4), computed by most re-implementations. Tables are shared by the heads;
    map sizes other than ``size`` resample them.

    Attributes:
        abs_height: (H, d), one row a key row.
        abs_width: (W, d), one row a key column.
    """

    def __init__(self, size: tuple[int, int], head_dim: int):
        super().__init__()
        height, width = size
        self.abs_height = nn.Parameter(torch.randn(height, head_dim) * head_dim**-0.5)
        self.abs_width = nn.Parameter(torch.randn(width, head_dim) * head_dim**-0.5)

    def forward(self, q: Tensor, height: int, width: int, first_row: int = 0) -> Tensor:
        """(B, n, hW, d) scaled queries of h rows of the map -> (B, n, hW, HW) bias, query first."""
        rows = resample_table(self.abs_height, height)
        columns = resample_table(self.abs_width, width)
        keys = (rows[:, None] + columns[None, :]).flatten(0, 1)  # (HW, d)
        return q @ keys.T


class NoPosition2d(nn.Module):
    """No position encoding: attention is permutation-equivariant. Same arguments as the others."""

    def __init__(self, size: tuple[int, int], head_dim: int):
        super().__init__()

    def forward(self, q: Tensor, height: int, width: int, first_row: int = 0) -> None:
        """No bias."""
        return
