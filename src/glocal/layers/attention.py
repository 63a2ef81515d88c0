"""Self-attention. `Attend` is the only softmax over scores; mechanisms differ in how they make q, k, v and bias."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glocal.layers.linear import Linear
from glocal.layers.position import AbsolutePosition2d, NoPosition2d, RelativePosition2d
from glocal.layers.tokens import map_to_tokens, tokens_to_map

POSITIONS: dict[str, type[nn.Module]] = {
    "relative": RelativePosition2d,
    "absolute": AbsolutePosition2d,
    "none": NoPosition2d,
}

BIAS_OF_A_BAND = 32**4  # entries for each image and head: 16 MB with four heads in float32


class Attend(nn.Module):
    """softmax(scale q k^T + bias) v (Vaswani et al. 2017, §3.2.1). No parameters; a module so that hooks find it.

    Args:
        scale: factor of q k^T; None takes head_dim ** -0.5.
        dropout: of the attention weights in training.
    """

    def __init__(self, *, scale: float | None = None, dropout: float = 0.0):
        super().__init__()
        self.scale = scale
        self.dropout = dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, n, N, d), (B, n, M, d), (B, n, M, e) and a bias that broadcasts to (B, n, N, M) -> (B, n, N, e)."""
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=self.scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, dropout={self.dropout}"


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens (Vaswani et al. 2017, §3.2.2).

    Args:
        dim: channels of a token.
        num_heads: heads, each dim / num_heads wide.
        qkv_bias: whether q, k and v have a bias.
        scale: factor of q k^T; None takes head_dim ** -0.5.
        dropout: dropout of the attention weights.

    Raises:
        ValueError: if num_heads does not divide dim.
    """

    def __init__(
        self, dim: int, num_heads: int, *, qkv_bias: bool = True, scale: float | None = None, dropout: float = 0.0
    ):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = _head_dim(dim, num_heads)
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.attend = Attend(scale=scale, dropout=dropout)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))  # (B, N, 3, n, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, n, N, d) each
        x = self.attend(q, k, v).transpose(1, 2).flatten(2)  # (B, N, dim)
        return self.proj(x)


class ConvAttention(nn.Module):
    """Self-attention whose q, k and v come from convolutions over the map (Wu et al. 2021, "CvT", §3.2, Fig. 3c).

    As in the authors' release: the scale is dim ** -0.5, not that of a head; prefix tokens (the class token) are not in
    the map and skip the convolutions.

    Args:
        dim: channels of a token.
        num_heads: heads, each dim / num_heads wide.
        projection: of q, k and v before their linear layers: "conv", a depthwise 3x3 convolution and BatchNorm;
            "pool", average pooling of k and v only; "linear", none (§4.4, Tab. 7).
        kv_stride: stride of that convolution or pooling for k and v.
        num_prefix_tokens: tokens before those of the map.
        qkv_bias: whether the linear layers of q, k and v have a bias.
        dropout: dropout of the attention weights.

    Raises:
        ValueError: if num_heads does not divide dim, or projection is unknown.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        projection: str = "conv",
        kv_stride: int = 2,
        num_prefix_tokens: int = 0,
        qkv_bias: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        if projection not in PROJECTIONS:
            raise ValueError(f"projection: expected one of {', '.join(PROJECTIONS)}, got {projection!r}")
        self.num_prefix_tokens = num_prefix_tokens
        self.head_dim = _head_dim(dim, num_heads)
        self.conv_proj_q = PROJECTIONS[projection](dim, 1)
        self.conv_proj_k = PROJECTIONS[projection](dim, kv_stride)
        self.conv_proj_v = PROJECTIONS[projection](dim, kv_stride)
        self.proj_q = Linear(dim, dim, bias=qkv_bias)
        self.proj_k = Linear(dim, dim, bias=qkv_bias)
        self.proj_v = Linear(dim, dim, bias=qkv_bias)
        self.attend = Attend(scale=dim**-0.5, dropout=dropout)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(B, prefix + HW, dim) -> the same shape, for tokens of a map of this height and width."""
        prefix, x = self.split(x, height, width)
        q = self.heads(prefix, x, self.conv_proj_q, self.proj_q)  # (B, n, N, d)
        return self.attended(q, prefix, x)

    def of_prefix(self, x: Tensor, height: int, width: int) -> Tensor:
        """(B, prefix + HW, dim) -> (B, prefix, dim), the output for the prefix tokens only."""
        prefix, x = self.split(x, height, width)
        q = self.proj_q(prefix).unflatten(2, (-1, self.head_dim)).transpose(1, 2)  # (B, n, prefix, d)
        return self.attended(q, prefix, x)

    def split(self, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """(B, prefix + HW, dim) -> (B, prefix, dim) tokens, and the others as a (B, dim, H, W) view, channels last."""
        prefix, x = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        return prefix, tokens_to_map(x.contiguous(), height, width)

    def attended(self, q: Tensor, prefix: Tensor, x: Tensor) -> Tensor:
        """(B, n, N, d) queries, prefix tokens and map -> (B, N, dim)."""
        k = self.heads(prefix, x, self.conv_proj_k, self.proj_k)  # (B, n, M, d)
        v = self.heads(prefix, x, self.conv_proj_v, self.proj_v)  # (B, n, M, d)
        return self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))

    def heads(self, prefix: Tensor, x: Tensor, conv: nn.Module, linear: nn.Module) -> Tensor:
        """(B, P, dim) and (B, dim, H, W) -> (B, n, P + M, d): the map through its convolution, both through linear."""
        return linear(prepend(prefix, map_to_tokens(conv(x)))).unflatten(2, (-1, self.head_dim)).transpose(1, 2)


def prepend(prefix: Tensor, x: Tensor) -> Tensor:
    """(B, P, C) tokens before (B, N, C) tokens; without prefix tokens no copy is made."""
    return torch.cat((prefix, x), dim=1) if prefix.shape[1] else x


class DepthwiseProjection(nn.Sequential):
    """Depthwise 3x3 convolution and BatchNorm: the convolutional projection of CvT before its linear layer."""

    def __init__(self, dim: int, stride: int):
        super().__init__()
        self.add_module("conv", nn.Conv2d(dim, dim, 3, stride=stride, padding=1, groups=dim, bias=False))
        self.add_module("bn", nn.BatchNorm2d(dim))


def _pooling(dim: int, stride: int) -> nn.Module:
    """The release pools only k and v; odd sizes give one more window (ceil_mode)."""
    return nn.AvgPool2d(3, stride, padding=1, ceil_mode=True) if stride > 1 else nn.Identity()


def _identity(dim: int, stride: int) -> nn.Module:
    return nn.Identity()


PROJECTIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "conv": DepthwiseProjection,
    "pool": _pooling,
    "linear": _identity,
}


class MHSA2d(nn.Module):
    """Multi-head self-attention over the pixels of a map, as in BoTNet (Srinivas et al. 2021, §3, Fig. 4).

    As in the authors' reference code: queries are scaled before both the content and the position logits; q, k and v
    have no bias; there is no output projection (the block's next 1x1 convolution is one); if the stride is 2,
    average pooling follows. Public re-implementations differ from it and from one another: docs/botnet.md.

    Args:
        dim: channels of the map, in and out.
        num_heads: heads, each dim / num_heads wide.
        size: height and width of the map for the position tables, which are resampled at other sizes.
        position: "relative", "absolute" or "none".
        stride: 1, or 2 for an average pooling of 2x2 after the attention (odd sizes round up).

    Attributes:
        qkv: 1x1 convolution, weight (3 dim, dim, 1, 1): q, k, v, each by head.
        position: the tables, see `RelativePosition2d` and `AbsolutePosition2d`.

    Raises:
        ValueError: if num_heads does not divide dim, or position or stride is unknown.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        size: tuple[int, int] = (14, 14),
        position: str = "relative",
        stride: int = 1,
    ):
        super().__init__()
        if position not in POSITIONS:
            raise ValueError(f"position: expected one of {', '.join(POSITIONS)}, got {position!r}")
        if stride not in (1, 2):
            raise ValueError(f"stride: expected 1 or 2, got {stride!r}")
        self.num_heads = num_heads
        self.head_dim = _head_dim(dim, num_heads)
        self.qkv = nn.Conv2d(dim, 3 * dim, kernel_size=1, bias=False)
        self.position = POSITIONS[position](size, self.head_dim)
        self.attend = Attend(scale=1.0)
        # ceil_mode averages the last row and column of an odd map over the existing pixels, as TensorFlow's SAME does
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, dim, ceil(H / stride), ceil(W / stride))."""
        height, width = x.shape[-2:]
        qkv = map_to_tokens(self.qkv(x)).unflatten(2, (3, self.num_heads, self.head_dim))  # (B, HW, 3, n, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, n, HW, d) each
        q = q * self.head_dim**-0.5
        bands = [
            self.attend(band, k, v, self.position(band, height, width, first_row)).transpose(1, 2)  # (B, hW, n, d)
            for first_row, band in bands_of(q, height, width)
        ]
        return self.pool(tokens_to_map(torch.cat(bands, dim=1).flatten(2), height, width))


def bands_of(q: Tensor, height: int, width: int) -> list[tuple[int, Tensor]]:
    """(B, n, HW, d) queries in bands of whole rows, with the first row of each: one band on maps of up to 32x32.

    The bias of all queries against all keys takes more memory than the rest of a network at detection sizes; a band's
    stays below `BIAS_OF_A_BAND`. An exported graph has one band, as their number could not follow the size.
    """
    if torch.compiler.is_exporting() or (height * width) ** 2 <= BIAS_OF_A_BAND:
        return [(0, q)]
    rows = max(BIAS_OF_A_BAND // (height * width * width), 1)
    return [(first, q[:, :, first * width : (first + rows) * width]) for first in range(0, height, rows)]


class NonLocal2d(nn.Module):
    """Non-local block, embedded Gaussian (Wang et al. 2018, §3.3, Fig. 2): x + BN(W_z attention(x)).

    What BoTNet compares itself with (Srinivas et al. 2021, §3, Fig. 3): one head, unscaled logits, no position. The
    BatchNorm starts at zero, so that a block put into a trained network leaves its function as it was (§4.1 there).

    Args:
        dim: channels of the map.
        reduction: the inner width is dim / reduction.
    """

    def __init__(self, dim: int, reduction: int = 2):
        super().__init__()
        inner = max(dim // reduction, 1)
        self.theta = nn.Conv2d(dim, inner, kernel_size=1)
        self.phi = nn.Conv2d(dim, inner, kernel_size=1)
        self.g = nn.Conv2d(dim, inner, kernel_size=1)
        self.attend = Attend(scale=1.0)
        self.out = nn.Conv2d(inner, dim, kernel_size=1)
        self.norm = nn.BatchNorm2d(dim)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, dim, H, W)."""
        q, k, v = (conv(x).flatten(2).transpose(1, 2)[:, None] for conv in (self.theta, self.phi, self.g))
        y = self.attend(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[-2:])  # (B, inner, H, W)
        return x + self.norm(self.out(y))


def _head_dim(dim: int, num_heads: int) -> int:
    if dim % num_heads:
        raise ValueError(f"num_heads: expected a divisor of dim {dim}, got {num_heads}")
    return dim // num_heads
