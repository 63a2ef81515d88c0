"""T2T-ViT: Tokens-to-Token ViT, Yuan et al. 2021. https://arxiv.org/abs/2101.11986

As released (github.com/yitu-opensource/T2T-ViT, commit 0f63dc9). Deviations: any image size (the image is padded to
whole patches, the position table resampled), tokens by convolution run (they crash in the release), and the Performer
is computed so that half precision neither overflows nor underflows; all leave the numbers at 224 pixels as they are.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, global_pool_nlc, resample_abs_pos_embed, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from glocal.checkpoints import t2t_vit as names
from glocal.layers import Attend, RandomFeatureAttention, SelfAttention, map_to_tokens, sinusoid, tokens_to_map
from glocal.models._backbone import Backbone, StateDict, build, cfg, drop_path_rates

TOKENS = ("performer", "transformer", "convolution")
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride, padding of the three soft splits (§4.1)
POOLS = ("token", "avg", "")


class TokenTransformer(nn.Module):
    """Re-structurization by a Transformer layer of one narrow head (§3.1, Eq. 1): the skip starts at v, not at x."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.attn = TokenAttention(in_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in_dim) -> (B, N, dim)."""
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenAttention(nn.Module):
    """Attention of one head that narrows its tokens; scaled by the width of its input, as released."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.qkv = nn.Linear(in_dim, 3 * dim, bias=False)
        self.attend = Attend(scale=in_dim**-0.5)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in_dim) -> (B, N, dim)."""
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)  # (B, 1, N, dim) each
        return v[:, 0] + self.proj(self.attend(q, k, v)[:, 0])


class TokenPerformer(nn.Module):
    """The same with attention of linear cost (§4.1, "Performer layer"); the order of the projection is k, q, v.

    Its dropout is 0.1 in training whatever the model's is, as released.
    """

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.kqv = nn.Linear(in_dim, 3 * dim)
        self.attend = RandomFeatureAttention(dim, num_features=dim // 2)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim, drop=(0.0, 0.1))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in_dim) -> (B, N, dim)."""
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)  # (B, N, dim) each
        x = v + self.dropout(self.proj(self.attend(q, k, v)))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """The tokens-to-token module (§3.1, Fig. 3): soft split, re-structurization, twice, and a last soft split."""

    def __init__(self, in_chans: int, token_dim: int, dim: int, *, kind: str, splits: tuple[tuple[int, int, int], ...]):
        super().__init__()
        self.splits = splits
        layer = {"performer": TokenPerformer, "transformer": TokenTransformer}[kind]
        (first, _, _), (second, _, _), (third, _, _) = splits
        self.attention1 = layer(in_chans * first**2, token_dim)
        self.attention2 = layer(token_dim * second**2, token_dim)
        self.project = nn.Linear(token_dim * third**2, dim)

    def soft_split(self, x: Tensor, index: int) -> Tensor:
        """(B, C, H, W) map -> (B, N, C k^2) overlapping patches: channel first, then kernel row and column."""
        kernel, stride, padding = self.splits[index]
        return F.unfold(x, kernel, stride=stride, padding=padding).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, dim, h, w)."""
        (height, width), strides = x.shape[-2:], [stride for _, stride, _ in self.splits]
        height, width = height // strides[0], width // strides[0]
        x = tokens_to_map(self.attention1(self.soft_split(x, 0)), height, width)  # (B, T, H/4, W/4)
        height, width = height // strides[1], width // strides[1]
        x = tokens_to_map(self.attention2(self.soft_split(x, 1)), height, width)  # (B, T, H/8, W/8)
        height, width = height // strides[2], width // strides[2]
        return tokens_to_map(self.project(self.soft_split(x, 2)), height, width)  # (B, dim, H/16, W/16)


class ConvolutionTokens(nn.Sequential):
    """Tokens by three convolutions over the same windows (§4.3, Tab. 6, "T2T-ViT_c")."""

    def __init__(self, in_chans: int, token_dim: int, dim: int, *, splits: tuple[tuple[int, int, int], ...]):
        super().__init__()
        chs = (in_chans, token_dim, token_dim, dim)
        for i, (name, split) in enumerate(zip(("soft_split0", "soft_split1", "project"), splits, strict=True)):
            self.add_module(name, nn.Conv2d(chs[i], chs[i + 1], *split))


class SEAttention(SelfAttention):
    """Self-attention with squeeze-and-excitation of its output over all tokens (§3.2, "T2T-ViT-SE")."""

    def __init__(self, dim: int, num_heads: int, **kwargs: Any):
        super().__init__(dim, num_heads, **kwargs)
        self.se = nn.Sequential(
            nn.Linear(dim, dim // 16, bias=False), nn.ReLU(), nn.Linear(dim // 16, dim, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x * self.se(x.mean(dim=1, keepdim=True))


class GhostAttention(nn.Module):
    """Self-attention whose q, k and v are half computed, half cheap copies, a factor a channel (§3.2, "Ghost")."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool, scale: float | None, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v = (nn.Linear(dim, dim // 2, bias=qkv_bias) for _ in "qkv")
        self.cheap_q, self.cheap_k, self.cheap_v = (Cheap(dim // 2) for _ in "qkv")
        self.attend = Attend(scale=scale, dropout=dropout)
        self.proj = nn.Linear(dim, dim)

    def heads(self, x: Tensor, cheap: nn.Module) -> Tensor:
        """(B, N, dim / 2) -> (B, n, N, d): computed channels, then cheap ones, split into heads together."""
        return torch.cat((x, cheap(x)), dim=2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        q, k, v = (
            self.heads(self.q(x), self.cheap_q),
            self.heads(self.k(x), self.cheap_k),
            self.heads(self.v(x), self.cheap_v),
        )
        return self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))


class Cheap(nn.Module):
    """A factor for each channel: GhostNet's cheap operation with a 1x1 depthwise convolution."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class GhostMlp(nn.Module):
    """MLP of hidden width 3 x dim, of which one third is computed and two are cheap copies of it."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.cheap2, self.cheap3 = Cheap(dim), Cheap(dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(3 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(x))
        x = torch.cat((x, self.act(self.cheap2(x)), self.act(self.cheap3(x))), dim=2)
        return self.fc2(x)


ATTENTIONS = {"plain": SelfAttention, "se": SEAttention, "ghost": GhostAttention}


class Block(nn.Module):
    """Transformer block of the deep-narrow backbone, norm first (§3.2)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        kind: str = "plain",
        drop_path: float = 0.0,
        **attention: Any,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ATTENTIONS[kind](dim, num_heads, **attention)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = GhostMlp(dim) if kind == "ghost" else Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class DenseBlock(Block):
    """A block that appends to its input ``growth`` channels of its output, as DenseNet does (§3.2)."""

    def __init__(self, dim: int, num_heads: int, *, growth: int, **kwargs: Any):
        super().__init__(dim, num_heads, **kwargs)
        self.dense_linear = nn.Linear(dim, growth)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim + growth)."""
        return torch.cat((x, self.dense_linear(super().forward(x))), dim=2)


class Transition(nn.Sequential):
    """Halves the channels between the groups of a dense T2T-ViT."""

    def __init__(self, dim: int):
        super().__init__()
        self.add_module("linear", nn.Linear(dim, dim // 2))
        self.add_module("act", nn.GELU())


class T2TViT(Backbone):
    """Tokens-to-token module, then a deep and narrow Transformer (Fig. 4).

    Args:
        dim: channels of a token.
        depth: blocks; for a dense model the blocks of each group.
        num_heads: heads of each block.
        mlp_ratio: hidden width of the MLP over dim.
        tokens: re-structurization by "performer", "transformer" or "convolution".
        token_dim: channels inside the tokens-to-token module.
        splits: kernel, stride and padding of the three soft splits.
        block: "plain", "se" or "ghost".
        growth: channels that a block of a dense model adds; None for a plain model.
        qk_scale: factor of q k^T in the blocks; None takes head_dim ** -0.5, with which the released checkpoints were
            evaluated. The release's ``pretrained=True`` sets dim ** -0.5.
        qkv_bias: whether q, k and v of the blocks have a bias.
        position: add the fixed sinusoids to the tokens.
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the image.
        global_pool: "token", "avg" over the patches, or "" for all tokens.
        img_size: height and width for which the position table is made; any other size works too.
        drop_rate: dropout before the classifier.
        attn_drop_rate: dropout of the attention weights.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 (by group in a dense model).

    Raises:
        ValueError: if tokens, block or global_pool is unknown.
    """

    default_out_indices: ClassVar[int | tuple[int, ...]] = 3

    def __init__(
        self,
        dim: int = 384,
        depth: int | tuple[int, ...] = 14,
        num_heads: int = 6,
        *,
        mlp_ratio: float = 3.0,
        tokens: str = "performer",
        token_dim: int = 64,
        splits: tuple[tuple[int, int, int], ...] = SPLITS,
        block: str = "plain",
        growth: int | None = None,
        qk_scale: float | None = None,
        qkv_bias: bool = False,
        position: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "token",
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        if tokens not in TOKENS:
            raise ValueError(f"tokens: expected one of {', '.join(TOKENS)}, got {tokens!r}")
        if block not in ATTENTIONS:
            raise ValueError(f"block: expected one of {', '.join(ATTENTIONS)}, got {block!r}")
        self.num_prefix_tokens = 1
        self.patch_size = splits[0][1] * splits[1][1] * splits[2][1]
        self.tokens_to_token = (
            ConvolutionTokens(in_chans, token_dim, dim, splits=splits)
            if tokens == "convolution"
            else TokensToToken(in_chans, token_dim, dim, kind=tokens, splits=splits)
        )
        self.grid_size = self.grid(*to_2tuple(img_size))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        table = sinusoid(1 + self.grid_size[0] * self.grid_size[1], dim)[None] if position else None
        self.pos_embed: Tensor | None
        self.register_buffer("pos_embed", table)
        kwargs: dict[str, Any] = {
            "mlp_ratio": mlp_ratio, "kind": block, "qkv_bias": qkv_bias, "scale": qk_scale, "dropout": attn_drop_rate,
        }  # fmt: skip
        groups = depth if isinstance(depth, tuple) else (depth,)
        if growth is None:
            rates = drop_path_rates(drop_path_rate, groups)[0]
            blocks: list[nn.Module] = [Block(dim, num_heads, drop_path=rate, **kwargs) for rate in rates]
            widths = [dim] * len(blocks)
        else:
            blocks, widths = _dense_blocks(dim, groups, num_heads, growth, drop_path_rate, kwargs)
        self.blocks = nn.ModuleList(blocks)
        self.feature_info = [
            {"num_chs": width, "reduction": self.patch_size, "module": f"blocks.{i}"} for i, width in enumerate(widths)
        ]
        self.num_features = self.head_hidden_size = widths[-1]
        self.norm = nn.LayerNorm(widths[-1])
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self._init_weights()

    def _init_weights(self) -> None:
        trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens for an image of this size in pixels."""
        return -(-height // self.patch_size), -(-width // self.patch_size)

    def embed(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) image -> (B, 1 + tokens, dim) tokens, class token first, with their positions."""
        x = F.pad(x, (0, -x.shape[3] % self.patch_size, 0, -x.shape[2] % self.patch_size))
        x = self.tokens_to_token(x)  # (B, D, h, w)
        grid = [x.shape[2], x.shape[3]]
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), map_to_tokens(x)), dim=1)  # (B, 1 + hw, D)
        if self.pos_embed is not None:
            x = x + resample_abs_pos_embed(self.pos_embed, grid, old_size=list(self.grid_size))
        return x

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """(B, in_chans, H, W) image -> (B, 1 + tokens, dim) tokens after each block."""
        x = self.embed(x)
        for block in self.blocks:
            x = self.step(block, x)
            yield x

    def to_map(self, x: Tensor, index: int, height: int, width: int) -> Tensor:
        return tokens_to_map(x[:, 1:], *self.grid(height, width))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(global_pool_nlc(x, pool_type=self.global_pool, num_prefix_tokens=1))
        return x if pre_logits else self.head(x)

    def keep_stages(self, count: int) -> None:
        self.blocks = self.blocks[:count]

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(f"global_pool: expected one of 'token', 'avg', '', got {global_pool!r}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise learning rates: the tokens-to-token module, then a group a block."""
        return {
            "stem": r"^cls_token|^tokens_to_token",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    @staticmethod
    def adapt_checkpoint(state_dict: StateDict, model: nn.Module) -> StateDict:
        state_dict = names.to_glocal(state_dict)
        if isinstance(model, T2TViT) and model.pos_embed is not None and "pos_embed" in state_dict:
            state_dict["pos_embed"] = resample_abs_pos_embed(state_dict["pos_embed"], list(model.grid_size))
        return state_dict


def _dense_blocks(
    dim: int, groups: tuple[int, ...], num_heads: int, growth: int, drop_path_rate: float, kwargs: dict[str, Any]
) -> tuple[list[nn.Module], list[int]]:
    """Blocks that grow, groups apart by transitions; and the channels after each."""
    blocks: list[nn.Module] = []
    widths = []
    rates = drop_path_rates(drop_path_rate, (len(groups),))[0]
    for group, (depth, rate) in enumerate(zip(groups, rates, strict=True)):
        for _ in range(depth):
            blocks.append(DenseBlock(dim, num_heads, growth=growth, drop_path=rate, **kwargs))
            dim += growth
            widths.append(dim)
        if group < len(groups) - 1:
            blocks.append(Transition(dim))
            dim //= 2
            widths.append(dim)
    return blocks, widths


_CFG = cfg(crop_pct=0.9, interpolation="bicubic", first_conv="tokens_to_token.attention1", classifier="head")
default_cfgs = generate_default_cfgs(
    {
        "t2t_vit_7.untrained": _CFG,
        "t2t_vit_10.untrained": _CFG,
        "t2t_vit_12.untrained": _CFG,
        "t2t_vit_14.untrained": _CFG,
        "t2t_vit_19.untrained": _CFG,
        "t2t_vit_24.untrained": _CFG,
        "t2t_vit_t_14.untrained": _CFG,
        "t2t_vit_t_19.untrained": _CFG,
        "t2t_vit_t_24.untrained": _CFG,
        "t2t_vit_14_resnext.untrained": _CFG,
        "t2t_vit_14_wide.untrained": _CFG,
        "t2t_vit_14_se.untrained": _CFG,
        "t2t_vit_16_ghost.untrained": _CFG,
        "t2t_vit_dense.untrained": _CFG,
    }
)


@register_model
def t2t_vit_7(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-7: 4.3M parameters, 1.1 GMACs at 224 (Tab. 2)."""
    return build(T2TViT, "t2t_vit_7", pretrained, kwargs, dim=256, depth=7, num_heads=4, mlp_ratio=2.0)


@register_model
def t2t_vit_10(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-10: 5.9M parameters, 1.5 GMACs at 224 (Tab. 2)."""
    return build(T2TViT, "t2t_vit_10", pretrained, kwargs, dim=256, depth=10, num_heads=4, mlp_ratio=2.0)


@register_model
def t2t_vit_12(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-12: 6.9M parameters, 1.8 GMACs at 224 (Tab. 2)."""
    return build(T2TViT, "t2t_vit_12", pretrained, kwargs, dim=256, depth=12, num_heads=4, mlp_ratio=2.0)


@register_model
def t2t_vit_14(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-14: 21.5M parameters, 4.8 GMACs at 224 (Tab. 2)."""
    return build(T2TViT, "t2t_vit_14", pretrained, kwargs, dim=384, depth=14, num_heads=6)


@register_model
def t2t_vit_19(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-19: 39.2M parameters, 8.5 GMACs at 224 (Tab. 2)."""
    return build(T2TViT, "t2t_vit_19", pretrained, kwargs, dim=448, depth=19, num_heads=7)


@register_model
def t2t_vit_24(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-24: 64.1M parameters, 13.8 GMACs at 224 (Tab. 2)."""
    return build(T2TViT, "t2t_vit_24", pretrained, kwargs, dim=512, depth=24, num_heads=8)


@register_model
def t2t_vit_t_14(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT_t-14, tokens by a Transformer: 21.5M parameters, 6.1 GMACs at 224 (Tab. 2)."""
    return build(T2TViT, "t2t_vit_t_14", pretrained, kwargs, dim=384, depth=14, num_heads=6, tokens="transformer")


@register_model
def t2t_vit_t_19(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT_t-19, tokens by a Transformer: 39.2M parameters, 9.8 GMACs at 224 (Tab. 2)."""
    return build(T2TViT, "t2t_vit_t_19", pretrained, kwargs, dim=448, depth=19, num_heads=7, tokens="transformer")


@register_model
def t2t_vit_t_24(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT_t-24, tokens by a Transformer: 64.1M parameters, 15.0 GMACs at 224 (Tab. 2)."""
    return build(T2TViT, "t2t_vit_t_24", pretrained, kwargs, dim=512, depth=24, num_heads=8, tokens="transformer")


@register_model
def t2t_vit_14_resnext(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-14 with 32 heads, as ResNeXt's cardinality: 21.5M parameters (Tab. 5)."""
    return build(T2TViT, "t2t_vit_14_resnext", pretrained, kwargs, dim=384, depth=14, num_heads=32)


@register_model
def t2t_vit_14_wide(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """Shallow and wide, 4 blocks of width 768: 25.0M parameters (Tab. 5)."""
    return build(T2TViT, "t2t_vit_14_wide", pretrained, kwargs, dim=768, depth=4, num_heads=12)


@register_model
def t2t_vit_14_se(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-14 with squeeze-and-excitation: 21.7M trained parameters (Tab. 5)."""
    return build(T2TViT, "t2t_vit_14_se", pretrained, kwargs, dim=384, depth=14, num_heads=6, block="se")


@register_model
def t2t_vit_16_ghost(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-16 with Ghost operations: 16.2M trained parameters (Tab. 5)."""
    return build(T2TViT, "t2t_vit_16_ghost", pretrained, kwargs, dim=384, depth=16, num_heads=6, block="ghost")


@register_model
def t2t_vit_dense(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """Dense T2T-ViT, 19 blocks of growth 64: 23.6M trained parameters (Tab. 5)."""
    return build(
        T2TViT, "t2t_vit_dense", pretrained, kwargs, dim=128, depth=(3, 6, 6, 4), num_heads=8, mlp_ratio=2.0, growth=64
    )
