"""CvT: Introducing Convolutions to Vision Transformers, Wu et al. 2021. https://arxiv.org/abs/2103.15808

As released (github.com/microsoft/CvT, commit f851e68): any image size, a batch of one keeps its batch axis. Hugging
Face's port computes another function (its GELU is exact, the authors' is x * sigmoid(1.702 x)): docs/cvt.md.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import DropPath, global_pool_nlc, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from glocal.checkpoints import cvt as names
from glocal.layers import ConvAttention, Mlp, QuickGELU, map_to_tokens, resample_map, tokens_to_map
from glocal.models._backbone import Backbone, StateDict, build, cfg, channels_last_on_cpu, drop_path_rates, init_linears

EMBEDS = ("conv", "patch")


class ConvEmbed(nn.Module):
    """Convolutional token embedding: an overlapping strided convolution, then LayerNorm (§3.1, Fig. 2b).

    Args:
        in_chs: channels of the map.
        dim: channels of a token.
        kernel: side of the window.
        stride: its step.
        padding: zeros around the map; a kernel as large as its stride ("patch", Tab. 6) is padded to whole patches.
    """

    def __init__(self, in_chs: int, dim: int, *, kernel: int, stride: int, padding: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chs, dim, kernel, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(dim)

    def pads(self, length: int) -> int:
        """Zeros after a row or column of this length, for non-overlapping patches."""
        kernel, stride = self.proj.kernel_size[0], self.proj.stride[0]
        return -length % stride if kernel == stride else 0

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens for a map of this size."""
        kernel, stride, padding = self.proj.kernel_size[0], self.proj.stride[0], int(self.proj.padding[0])
        rows, columns = (
            (length + self.pads(length) + 2 * padding - kernel) // stride + 1 for length in (height, width)
        )
        return rows, columns

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chs, H, W) -> (B, dim, h, w)."""
        x = self.proj(F.pad(x, (0, self.pads(x.shape[3]), 0, self.pads(x.shape[2]))))
        height, width = x.shape[-2:]
        return tokens_to_map(self.norm(map_to_tokens(x)), height, width)


class Block(nn.Module):
    """Convolutional Transformer block: attention by convolutional projection, then an MLP, norm first (Fig. 2b)."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, drop_path: float, **attention: Any):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ConvAttention(dim, num_heads, **attention)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=QuickGELU)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(B, prefix + HW, dim) -> the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x), height, width))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Embedding and blocks of one resolution; the last stage has the class token (Fig. 2a)."""

    def __init__(
        self, embed: ConvEmbed, blocks: list[Block], *, dim: int, class_token: bool, position: tuple[int, int] | None
    ):
        super().__init__()
        self.patch_embed = embed
        self.num_prefix_tokens = int(class_token)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, dim, *position)) if position else None
        self.blocks = nn.ModuleList(blocks)

    def embed(self, x: Tensor) -> Tensor:
        """(B, in_chs, H, W) -> (B, dim, h, w), with position embeddings where the stage has them."""
        x = self.patch_embed(x)
        return x if self.pos_embed is None else x + resample_map(self.pos_embed, x.shape[2], x.shape[3])

    def tokens(self, x: Tensor) -> Tensor:
        """(B, dim, h, w) -> (B, prefix + hw, dim)."""
        x = map_to_tokens(x)
        return x if self.cls_token is None else torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)


class CvT(Backbone):
    """Three stages of convolutional embedding and convolutional Transformer blocks (Fig. 2, Tab. 1).

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        mlp_ratio: hidden width of the MLP over dim.
        kernels, strides, paddings: of the convolutional embedding of each stage.
        embed: "conv", or "patch" for non-overlapping patches (Tab. 6).
        projection: of q, k and v: "conv", "pool" or "linear" (Tab. 7).
        kv_stride: stride of k and v in the projection (§3.2, "efficiency considerations").
        position: learned position embeddings in every stage (True), none (False, as published), or one choice for each
            stage (Tab. 5).
        class_token: a token in the last stage, on which the head acts; without one, pool by "avg".
        qkv_bias: whether the linear layers of q, k and v have a bias.
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the image.
        global_pool: "token", "avg" over the map, or "" for all tokens.
        img_size: height and width for which position embeddings are made; any other size works too.
        drop_rate: dropout before the classifier.
        attn_drop_rate: dropout of the attention weights.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 within the last stage; the others
            have none.

    Raises:
        ValueError: if embed, projection or global_pool is unknown, or pooling by a token that is not there is asked.
    """

    stages: list[Stage]  # as a ModuleList
    pools: ClassVar[tuple[str, ...]] = ("token", "avg", "")
    default_out_indices: ClassVar[int | tuple[int, ...]] = (0, 1, 2)

    def __init__(
        self,
        dims: tuple[int, ...] = (64, 192, 384),
        depths: tuple[int, ...] = (1, 2, 10),
        num_heads: tuple[int, ...] = (1, 3, 6),
        *,
        mlp_ratio: float = 4.0,
        kernels: tuple[int, ...] = (7, 3, 3),
        strides: tuple[int, ...] = (4, 2, 2),
        paddings: tuple[int, ...] = (2, 1, 1),
        embed: str = "conv",
        projection: str = "conv",
        kv_stride: int = 2,
        position: bool | tuple[bool, ...] = False,
        class_token: bool = True,
        qkv_bias: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "token",
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        if embed not in EMBEDS:
            raise ValueError(f"embed: expected one of {', '.join(EMBEDS)}, got {embed!r}")
        positions = position if isinstance(position, tuple) else (position,) * len(dims)
        last = len(dims) - 1
        self.num_prefix_tokens = int(class_token)
        chs, grid, reduction = in_chans, to_2tuple(img_size), 1
        stages, self.feature_info = [], []
        for i, dim in enumerate(dims):
            kernel, padding = (kernels[i], paddings[i]) if embed == "conv" else (strides[i], 0)
            patch_embed = ConvEmbed(chs, dim, kernel=kernel, stride=strides[i], padding=padding)
            blocks = [
                Block(
                    dim,
                    num_heads[i],
                    mlp_ratio=mlp_ratio,
                    drop_path=rate,
                    projection=projection,
                    kv_stride=kv_stride,
                    num_prefix_tokens=self.num_prefix_tokens if i == last else 0,
                    qkv_bias=qkv_bias,
                    dropout=attn_drop_rate,
                )
                for rate in drop_path_rates(drop_path_rate if i == last else 0.0, (depths[i],))[0]
            ]
            chs, grid, reduction = dim, patch_embed.grid(*grid), reduction * strides[i]
            stages.append(
                Stage(
                    patch_embed,
                    blocks,
                    dim=dim,
                    class_token=class_token and i == last,
                    position=grid if positions[i] else None,
                )
            )
            self.feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.ModuleList(stages)  # type: ignore[assignment]
        self.num_features = self.head_hidden_size = dims[-1]
        self.norm = nn.LayerNorm(dims[-1])
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self._init_weights()

    def _init_weights(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith(("cls_token", "pos_embed")):
                trunc_normal_(parameter, std=0.02)
        init_linears(self)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """(B, in_chans, H, W) image -> (B, hw, dim) tokens of each stage; in the last the class token stands first."""
        x = channels_last_on_cpu(x)
        for stage in self.stages:
            x = stage.embed(x)  # (B, dim, h, w)
            height, width = x.shape[-2:]
            x = stage.tokens(x)  # (B, prefix + hw, dim)
            for block in stage.blocks:
                x = self.maybe_checkpoint(block, x, height, width)
            yield x
            x = tokens_to_map(x[:, stage.num_prefix_tokens :], height, width)

    def to_map(self, x: Tensor, index: int, height: int, width: int) -> Tensor:
        for stage in self.stages[: index + 1]:
            height, width = stage.patch_embed.grid(height, width)
        return tokens_to_map(x[:, self.stages[index].num_prefix_tokens :], height, width)

    def norm_stage(self, x: Tensor, index: int) -> Tensor:
        return self.norm(x) if index == len(self.stages) - 1 else x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = global_pool_nlc(x, pool_type=self.global_pool, num_prefix_tokens=self.num_prefix_tokens)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def prune_stages(self, count: int) -> None:
        self.stages = self.stages[:count]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(("cls_token", "pos_embed"))}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise learning rates: the first embedding, then one group per block (or stage)."""
        blocks: Any = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.blocks\.(\d+)"
        later = (r"^stages\.(\d+)\.(?:patch_embed|cls_token|pos_embed)", (0,))
        return {
            "stem": r"^stages\.0\.(?:patch_embed|cls_token|pos_embed)",
            "blocks": blocks if coarse else [(blocks, None), later, (r"^norm", (99999,))],
        }

    @staticmethod
    def adapt_checkpoint(state_dict: StateDict, model: nn.Module) -> StateDict:
        state_dict = names.to_glocal(state_dict)
        for name, parameter in model.named_parameters():
            if name.endswith("pos_embed") and name in state_dict:
                state_dict[name] = resample_map(state_dict[name], parameter.shape[2], parameter.shape[3])
        return state_dict


_CFG = cfg(interpolation="bicubic", first_conv="stages.0.patch_embed.proj", classifier="head")
_384 = _CFG | {"input_size": (3, 384, 384), "crop_pct": 1.0, "crop_mode": "squash"}  # CENTER_CROP is off there
default_cfgs = generate_default_cfgs(
    {
        "cvt_13.ms_in1k": _CFG | {"hf_hub_id": "microsoft/cvt-13"},
        "cvt_13.ms_in1k_384": _384 | {"hf_hub_id": "microsoft/cvt-13-384"},
        "cvt_13.ms_in22k_ft_in1k_384": _384 | {"hf_hub_id": "microsoft/cvt-13-384-22k"},
        "cvt_21.ms_in1k": _CFG | {"hf_hub_id": "microsoft/cvt-21"},
        "cvt_21.ms_in1k_384": _384 | {"hf_hub_id": "microsoft/cvt-21-384"},
        "cvt_21.ms_in22k_ft_in1k_384": _384 | {"hf_hub_id": "microsoft/cvt-21-384-22k"},
        "cvt_w24.ms_in22k_ft_in1k_384": _384 | {"hf_hub_id": "microsoft/cvt-w24-384-22k"},
    }
)


@register_model
def cvt_13(pretrained: bool = False, **kwargs: Any) -> CvT:
    """CvT-13: 20.0M parameters, 4.5 GMACs at 224 (Tab. 3)."""
    return build(CvT, "cvt_13", pretrained, kwargs, dims=(64, 192, 384), depths=(1, 2, 10), num_heads=(1, 3, 6))


@register_model
def cvt_21(pretrained: bool = False, **kwargs: Any) -> CvT:
    """CvT-21: 31.6M parameters, 7.1 GMACs at 224 (Tab. 3)."""
    return build(CvT, "cvt_21", pretrained, kwargs, dims=(64, 192, 384), depths=(1, 4, 16), num_heads=(1, 3, 6))


@register_model
def cvt_w24(pretrained: bool = False, **kwargs: Any) -> CvT:
    """CvT-W24: 277M parameters, 193.2 GMACs at 384 (Tab. 4)."""
    return build(CvT, "cvt_w24", pretrained, kwargs, dims=(192, 768, 1024), depths=(2, 2, 20), num_heads=(3, 12, 16))
