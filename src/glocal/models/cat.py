"""CAT: Cross Attention in Vision Transformer, Lin et al. 2021. https://arxiv.org/abs/2106.05786

As released (github.com/linhezheng19/CAT, commit aa572ca): the classifier at 224 and 448 pixels, the backbone for dense
prediction (``output_norm=True``) at every size that it supports. Here both are one path for any image size.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from glocal.checkpoints import cat as names
from glocal.layers import (
    CrossPatchAttention,
    Linear,
    Mlp,
    WindowAttention,
    from_windows,
    full_windows,
    resample_map,
    to_windows,
)
from glocal.models._backbone import Backbone, StateDict, build, cfg, drop_path_rates, init_linears

EMBEDS = ("conv", "slice")
CROSSES = ("patch", "shifted")


def merge_2x2(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 4 C): pixels (0, 0), (1, 0), (0, 1), (1, 1) as (row, column)."""
    x = to_windows(x, 2)  # (B, h, w, row, column, C)
    return x.transpose(3, 4).flatten(3)


class PatchEmbedding(nn.Module):
    """Patches to channels, then LayerNorm (§3.1): by a strided convolution, or by repeated 2x2 slicing.

    The release's slice embedding cannot be constructed; ours slices as its patch projection does and then projects.
    """

    def __init__(self, in_chans: int, dim: int, *, patch_size: int, kind: str):
        super().__init__()
        self.patch_size = patch_size
        self.num_slices = 0 if kind == "conv" else patch_size.bit_length() - 1
        if kind == "slice" and 2**self.num_slices != patch_size:
            raise ValueError(f"patch_size: expected a power of 2 to slice, got {patch_size}")
        side = patch_size if kind == "conv" else 1
        self.proj = nn.Conv2d(in_chans * (patch_size // side) ** 2, dim, side, stride=side)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, ceil(H / patch), ceil(W / patch), dim)."""
        x = F.pad(x, (0, -x.shape[3] % self.patch_size, 0, -x.shape[2] % self.patch_size))
        for _ in range(self.num_slices):
            x = merge_2x2(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PatchProjection(nn.Module):
    """2x2 pixels to one of twice the channels (§3.1): LayerNorm, then a linear layer without bias."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, ceil(H / 2), ceil(W / 2), 2 dim)."""
        return self.reduction(self.norm(merge_2x2(x)))


class AttentionBlock(nn.Module):
    """Attention and MLP, norm first: IPSAB or CPSAB by its attention (Fig. 2b)."""

    def __init__(self, dim: int, attn: nn.Module, *, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) map, or its (B, h, w, side, side, dim) windows -> the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CATBlock(nn.Sequential):
    """Inner-patch, cross-patch, inner-patch attention (Fig. 2b): `ipsa1`, `cpsa`, `ipsa2`, with one drop-path rate."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        side: int,
        cross: str,
        cross_heads: int,
        mlp_ratio: float,
        drop_path: float,
        **attention: Any,
    ):
        super().__init__()
        between: nn.Module = (
            CrossPatchAttention(side, cross_heads, **attention)
            if cross == "patch"
            else WindowAttention(dim, num_heads, side, shift=side // 2, **attention)
        )
        for name, attn in (
            ("ipsa1", WindowAttention(dim, num_heads, side, **attention)),
            ("cpsa", between),
            ("ipsa2", WindowAttention(dim, num_heads, side, **attention)),
        ):
            self.add_module(name, AttentionBlock(dim, attn, mlp_ratio=mlp_ratio, drop_path=drop_path))


class Stage(nn.Module):
    """Patch projection, where it is not the first, and blocks at one resolution."""

    def __init__(self, downsample: nn.Module, blocks: list[CATBlock], *, side: int):
        super().__init__()
        self.side = side
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)


class CAT(Backbone):
    """Four stages of attention inside and between windows (Fig. 2a, Tab. 1).

    Args:
        dim: channels of the first stage; each later one has twice those before it.
        depths: blocks of each stage, each of three attentions.
        num_heads: heads of the attention inside windows, for each stage.
        window_size: pixels along a window, for all stages or each.
        patch_size: pixels of the image along a patch.
        mlp_ratio: hidden width of the MLP over dim.
        embed: "conv" or "slice" (§3.1).
        cross: between windows, "patch" for cross-patch attention, or "shifted" for Swin's shifted windows.
        cross_heads: heads of the cross-patch attention (Tab. 8).
        position: learned absolute position embeddings (Tab. 9); on in all published configurations.
        output_norm: a LayerNorm on the output of each stage, as in the release for dense prediction.
        qkv_bias: whether q, k and v have a bias.
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the image.
        global_pool: "avg", or "" for the map.
        img_size: height and width for which position embeddings are made; any other size works too.
        drop_rate: dropout before the classifier.
        attn_drop_rate: dropout of the attention weights.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.

    Raises:
        ValueError: if embed, cross or global_pool is unknown.
    """

    stages: list[Stage]  # as a ModuleList

    def __init__(
        self,
        dim: int = 96,
        depths: tuple[int, ...] = (1, 1, 3, 1),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        *,
        window_size: int | tuple[int, ...] = 7,
        patch_size: int = 4,
        mlp_ratio: float = 4.0,
        embed: str = "conv",
        cross: str = "patch",
        cross_heads: int = 1,
        position: bool = True,
        output_norm: bool = False,
        qkv_bias: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        if embed not in EMBEDS:
            raise ValueError(f"embed: expected one of {', '.join(EMBEDS)}, got {embed!r}")
        if cross not in CROSSES:
            raise ValueError(f"cross: expected one of {', '.join(CROSSES)}, got {cross!r}")
        dims = [dim * 2**i for i in range(len(depths))]
        sides = window_size if isinstance(window_size, tuple) else (window_size,) * len(depths)
        self.output_norm = output_norm
        self.patch_embed = PatchEmbedding(in_chans, dim, patch_size=patch_size, kind=embed)
        grid = [-(-length // patch_size) for length in to_2tuple(img_size)]
        self.pos_embed = nn.Parameter(torch.empty(1, dim, *grid)) if position else None
        rates = drop_path_rates(drop_path_rate, depths)
        stages, self.feature_info = [], []
        for i, width in enumerate(dims):
            blocks = [
                CATBlock(
                    width,
                    num_heads[i],
                    side=sides[i],
                    cross=cross,
                    cross_heads=cross_heads,
                    mlp_ratio=mlp_ratio,
                    drop_path=rate,
                    qkv_bias=qkv_bias,
                    dropout=attn_drop_rate,
                )
                for rate in rates[i]
            ]
            stages.append(Stage(PatchProjection(width // 2) if i else nn.Identity(), blocks, side=sides[i]))
            self.feature_info.append({"num_chs": width, "reduction": patch_size * 2**i, "module": f"stages.{i}"})
        self.stages = nn.ModuleList(stages)  # type: ignore[assignment]
        self.output_norms = nn.ModuleList(nn.LayerNorm(width) for width in dims[:-1] if output_norm)
        self.num_features = self.head_hidden_size = dims[-1]
        self.norm = nn.LayerNorm(dims[-1])
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self._init_weights()

    def _init_weights(self) -> None:
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=0.02)
        init_linears(self)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """(B, in_chans, H, W) image -> (B, h, w, C) output of each stage."""
        x = self.patch_embed(x)  # (B, h, w, dim)
        if self.pos_embed is not None:
            x = x + resample_map(self.pos_embed, x.shape[1], x.shape[2]).permute(0, 2, 3, 1)
        for stage in self.stages:
            x = stage.downsample(x)
            height, width = x.shape[1:3]
            x = full_windows(x, stage.side)  # (B, h / s, w / s, s, s, C), or as it is
            for block in stage.blocks:
                x = self.maybe_checkpoint(block, x)
            x = from_windows(x, height, width) if x.ndim == 6 else x  # (B, h, w, C)
            yield x

    def to_map(self, x: Tensor, index: int, height: int, width: int) -> Tensor:
        return x.permute(0, 3, 1, 2)

    def norm_stage(self, x: Tensor, index: int) -> Tensor:
        if index < len(self.output_norms):
            return self.output_norms[index](x)
        return self.norm(x) if index == len(self.stages) - 1 else x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(x.mean((1, 2)) if self.global_pool else x)
        return x if pre_logits else self.head(x)

    def prune_stages(self, count: int) -> None:
        self.stages = self.stages[:count]
        self.output_norms = self.output_norms[:count]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(("pos_embed", "position.table"))}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise learning rates: the embedding, then one group per block (or stage)."""
        return {
            "stem": r"^pos_embed|^patch_embed",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^norm|^output_norms", (99999,)),
            ],
        }

    @staticmethod
    def keywords_of(state_dict: StateDict) -> dict[str, Any]:
        return {"output_norm": True} if any(name.startswith("output_norms.") for name in state_dict) else {}

    @staticmethod
    def adapt_checkpoint(state_dict: StateDict, model: nn.Module) -> StateDict:
        state_dict = names.to_glocal(state_dict)
        if isinstance(model, CAT) and model.pos_embed is not None and "pos_embed" in state_dict:
            state_dict["pos_embed"] = resample_map(state_dict["pos_embed"], *model.pos_embed.shape[2:])
        return state_dict


_CFG = cfg(crop_pct=0.9, interpolation="bicubic", first_conv="patch_embed.proj", classifier="head")
default_cfgs = generate_default_cfgs(
    {"cat_tiny.untrained": _CFG, "cat_small.untrained": _CFG, "cat_base.untrained": _CFG}
)


@register_model
def cat_tiny(pretrained: bool = False, **kwargs: Any) -> CAT:
    """CAT-T: 16.9M parameters, 2.8 GMACs at 224 (Tab. 1, 2)."""
    return build(CAT, "cat_tiny", pretrained, kwargs, dim=64, depths=(1, 1, 3, 1), num_heads=(2, 4, 8, 16))


@register_model
def cat_small(pretrained: bool = False, **kwargs: Any) -> CAT:
    """CAT-S: 37.3M parameters, 5.9 GMACs at 224 as published, 6.1 by the release's own counter (Tab. 1, 2)."""
    return build(CAT, "cat_small", pretrained, kwargs, dim=96, depths=(1, 1, 3, 1), num_heads=(3, 6, 12, 24))


@register_model
def cat_base(pretrained: bool = False, **kwargs: Any) -> CAT:
    """CAT-B: 51.5M parameters, 8.9 GMACs at 224 (Tab. 1, 2)."""
    return build(CAT, "cat_base", pretrained, kwargs, dim=96, depths=(1, 1, 6, 1), num_heads=(3, 6, 12, 24))
