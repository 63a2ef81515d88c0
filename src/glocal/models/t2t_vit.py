"""T2T-ViT: Tokens-to-Token ViT, Yuan et al. 2021. https://arxiv.org/abs/2101.11986

As released (github.com/yitu-opensource/T2T-ViT, commit 0f63dc9). Deviations: any image size (the image is padded to
whole patches, the position table resampled), tokens by convolution work (they crash in the release), and the Performer
is computed so that half precision neither overflows nor underflows; all leave the numbers at 224 pixels as they are.
"""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import global_pool_nlc, resample_abs_pos_embed, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from glocal.checkpoints import t2t_vit as names
from glocal.layers import ConvolutionTokens, PatchEmbed, TokensToToken, map_to_tokens, sinusoid, tokens_to_map
from glocal.models._backbone import Backbone, StateDict, build, cfg, drop_path_rates, init_linears
from glocal.models._t2t_blocks import ATTENTIONS, Block, dense_blocks

TOKENS = ("performer", "transformer", "convolution", "patch")
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride, padding of the three soft splits (§4.1)


class T2TViT(Backbone):
    """Tokens-to-token module, then a deep and narrow Transformer (Fig. 4).

    Args:
        dim: channels of a token.
        depth: blocks; for a dense model the blocks of each group.
        num_heads: heads of each block.
        mlp_ratio: hidden width of the MLP over dim.
        tokens: re-structurization by "performer", "transformer" or "convolution" (Tab. 6), or none: "patch" cuts the
            image once into non-overlapping patches, as ViT does.
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

    pools: ClassVar[tuple[str, ...]] = ("token", "avg", "")
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
        self.tokens_to_token: nn.Module
        if tokens == "patch":
            self.tokens_to_token = PatchEmbed(self.patch_size, in_chans, dim)
        elif tokens == "convolution":
            self.tokens_to_token = ConvolutionTokens(in_chans, token_dim, dim, splits=splits)
        else:
            self.tokens_to_token = TokensToToken(in_chans, token_dim, dim, kind=tokens, splits=splits)
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
            blocks, widths = dense_blocks(dim, groups, num_heads, growth, drop_path_rate, kwargs)
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
        init_linears(self)

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
            x = self.maybe_checkpoint(block, x)
            yield x

    def to_map(self, x: Tensor, index: int, height: int, width: int) -> Tensor:
        return tokens_to_map(x[:, 1:], *self.grid(height, width))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(global_pool_nlc(x, pool_type=self.global_pool, num_prefix_tokens=1))
        return x if pre_logits else self.head(x)

    def prune_stages(self, count: int) -> None:
        self.blocks = self.blocks[:count]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise learning rates: the tokens-to-token module, then one group per block."""
        return {
            "stem": r"^cls_token|^tokens_to_token",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    @staticmethod
    def adapt_checkpoint(state_dict: StateDict, model: nn.Module) -> StateDict:
        state_dict = names.to_glocal(state_dict)
        if isinstance(model, T2TViT) and model.pos_embed is not None and "pos_embed" in state_dict:
            state_dict["pos_embed"] = resample_abs_pos_embed(state_dict["pos_embed"], list(model.grid_size))
        return _adapt_channels(state_dict, model)


def _adapt_channels(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Fit the first layers to another number of image channels, which timm does for convolutions alone.

    Their input is channels x pixels of a window: channels repeat, linear layers rescaled to the same sum.
    """
    for name, parameter in model.named_parameters():
        if name.startswith("tokens_to_token.attention1.") and name in state_dict:
            old, new = state_dict[name], parameter
            if old.shape != new.shape and old.shape[:-1] == new.shape[:-1]:
                pixels = math.gcd(old.shape[-1], new.shape[-1])
                by_channel = old.unflatten(-1, (-1, pixels))
                taken = torch.arange(new.shape[-1] // pixels) % by_channel.shape[-2]
                factor = old.shape[-1] / new.shape[-1] if old.ndim == 2 else 1.0
                source = by_channel.mean(-2, keepdim=True) if len(taken) == 1 else by_channel[..., taken, :]
                state_dict[name] = (source * factor).flatten(-2)
    return state_dict


_CFG = cfg(crop_pct=0.9, interpolation="bicubic", first_conv=None, classifier="head")
_RELEASE = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main/"
_MMPRETRAIN = "https://download.openmmlab.com/mmclassification/v0/t2t-vit/"
default_cfgs = generate_default_cfgs(
    {
        "t2t_vit_7.yitu_in1k": _CFG | {"url": _RELEASE + "71.7_T2T_ViT_7.pth.tar"},
        "t2t_vit_10.yitu_in1k": _CFG | {"url": _RELEASE + "75.2_T2T_ViT_10.pth.tar"},
        "t2t_vit_12.yitu_in1k": _CFG | {"url": _RELEASE + "76.5_T2T_ViT_12.pth.tar"},
        "t2t_vit_14.yitu_in1k": _CFG | {"url": _RELEASE + "81.5_T2T_ViT_14.pth.tar"},
        "t2t_vit_14.yitu_in1k_384": _CFG | {"url": _RELEASE + "83.3_T2T_ViT_14.pth.tar", "input_size": (3, 384, 384)},
        "t2t_vit_19.yitu_in1k": _CFG | {"url": _RELEASE + "81.9_T2T_ViT_19.pth.tar"},
        "t2t_vit_24.yitu_in1k": _CFG | {"url": _RELEASE + "82.3_T2T_ViT_24.pth.tar"},
        "t2t_vit_t_14.yitu_in1k": _CFG | {"url": _RELEASE + "81.7_T2T_ViTt_14.pth.tar"},
        "t2t_vit_t_14.mm_in1k": _CFG | {"url": _MMPRETRAIN + "t2t-vit-t-14_8xb64_in1k_20211220-f7378dd5.pth"},
        "t2t_vit_t_19.yitu_in1k": _CFG | {"url": _RELEASE + "82.4_T2T_ViTt_19.pth.tar"},
        "t2t_vit_t_19.mm_in1k": _CFG | {"url": _MMPRETRAIN + "t2t-vit-t-19_8xb64_in1k_20211214-7f5e3aaf.pth"},
        "t2t_vit_t_24.yitu_in1k": _CFG | {"url": _RELEASE + "82.6_T2T_ViTt_24.pth.tar"},
        "t2t_vit_t_24.mm_in1k": _CFG | {"url": _MMPRETRAIN + "t2t-vit-t-24_8xb64_in1k_20211214-b2a68ae3.pth"},
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
