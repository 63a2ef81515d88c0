"""ViT: An Image is Worth 16x16 Words, Dosovitskiy et al. 2021. https://arxiv.org/abs/2010.11929

With the widths and the 1e-6 of the authors' released code and of timm, whose checkpoints load as they are.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import DropPath, global_pool_nlc, resample_abs_pos_embed, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from glocal.checkpoints import vit as names
from glocal.layers import Mlp, PatchEmbed, SelfAttention, map_to_tokens, sincos_position_2d, tokens_to_map
from glocal.models._backbone import Backbone, StateDict, build, cfg, drop_path_rates, init_linears

POSITIONS = ("learned", "sincos", "none")


class Block(nn.Module):
    """Transformer encoder block, norm first (Fig. 1 right; Eq. 2 and 3)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, num_heads, qkv_bias=qkv_bias, dropout=attn_drop)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VisionTransformer(Backbone):
    """Patches to tokens, a class token, position embeddings, a Transformer encoder (§3.1, Fig. 1).

    Args:
        dim: channels of a token.
        depth: blocks.
        num_heads: heads of each block.
        patch_size: side of a patch, in pixels; sizes that it does not divide are padded at the bottom and right.
        mlp_ratio: hidden width of the MLP over dim.
        qkv_bias: whether q, k and v have a bias.
        class_token: prepend a learned token; without one, pool by "avg" or "max".
        position: "learned" for one embedding a patch (bicubic resampling at other sizes), "sincos" for fixed sines and
            cosines of row and column (Chen et al. 2021, "MoCo v3", §4; nothing is added to the class token), or "none".
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the image.
        global_pool: "token", "avg" or "max" over the patches, or "" for all tokens.
        img_size: height and width for which the position embeddings are made; any other size works too.
        drop_rate: dropout before the classifier.
        attn_drop_rate: dropout of the attention weights.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.

    Raises:
        ValueError: if global_pool or position is unknown, or pooling by a token that is not there is asked for.
    """

    pools: ClassVar[tuple[str, ...]] = ("token", "avg", "max", "")
    default_out_indices: ClassVar[int | tuple[int, ...]] = 3

    def __init__(
        self,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        *,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        class_token: bool = True,
        position: str = "learned",
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "token",
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        if position not in POSITIONS:
            raise ValueError(f"position: expected one of {', '.join(POSITIONS)}, got {position!r}")
        if position == "sincos" and dim % 4:
            raise ValueError(f"dim: expected a multiple of 4 for sincos positions, got {dim}")
        self.position = position
        self.num_prefix_tokens = int(class_token)
        self.patch_embed = PatchEmbed(patch_size, in_chans, dim)
        self.grid_size = self.patch_embed.grid(*to_2tuple(img_size))
        num_tokens = self.num_prefix_tokens + self.grid_size[0] * self.grid_size[1]
        self.cls_token = nn.Parameter(torch.zeros(1, self.num_prefix_tokens, dim)) if class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, dim)) if position == "learned" else None
        self.blocks = nn.ModuleList(
            Block(
                dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                attn_drop=attn_drop_rate,
                drop_path=rate,
            )
            for rate in drop_path_rates(drop_path_rate, (depth,))[0]
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.feature_info = [{"num_chs": dim, "reduction": patch_size, "module": f"blocks.{i}"} for i in range(depth)]
        self.num_features = self.head_hidden_size = dim
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self._init_weights()

    def _init_weights(self) -> None:
        init_linears(self)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=0.02)

    def embed(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) image -> (B, prefix + patches, dim) tokens with their positions (Eq. 1)."""
        x = self.patch_embed(x)  # (B, D, h, w)
        height, width = x.shape[-2:]
        if self.position == "sincos":
            x = x + sincos_position_2d(x.shape[1], height, width, x)
        x = map_to_tokens(x)  # (B, hw, D)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if self.pos_embed is not None:
            x = x + resample_abs_pos_embed(
                self.pos_embed, [height, width], old_size=list(self.grid_size), num_prefix_tokens=self.num_prefix_tokens
            )
        return x

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """(B, in_chans, H, W) image -> (B, prefix + patches, dim) tokens after each block."""
        x = self.embed(x)
        for block in self.blocks:
            x = self.maybe_checkpoint(block, x)
            yield x

    def to_map(self, x: Tensor, index: int, height: int, width: int) -> Tensor:
        return tokens_to_map(x[:, self.num_prefix_tokens :], *self.patch_embed.grid(height, width))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = global_pool_nlc(x, pool_type=self.global_pool, num_prefix_tokens=self.num_prefix_tokens)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def prune_stages(self, count: int) -> None:
        self.blocks = self.blocks[:count]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "pos_embed"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise learning rates: embedding, then one group per block."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    @staticmethod
    def adapt_checkpoint(state_dict: StateDict, model: nn.Module) -> StateDict:
        state_dict = names.to_glocal(state_dict)
        if isinstance(model, VisionTransformer) and model.pos_embed is not None and "pos_embed" in state_dict:
            state_dict["pos_embed"] = resample_abs_pos_embed(
                state_dict["pos_embed"], list(model.grid_size), num_prefix_tokens=model.num_prefix_tokens
            )
        return state_dict


# the "augreg" release (Steiner et al. 2022): crop 0.9, bicubic, mean and std 0.5
_AUGREG = cfg(
    crop_pct=0.9,
    interpolation="bicubic",
    mean=IMAGENET_INCEPTION_MEAN,
    std=IMAGENET_INCEPTION_STD,
    first_conv="patch_embed.proj",
    classifier="head",
)
default_cfgs = generate_default_cfgs(
    {
        "glocal_vit_tiny_patch16_224.untrained": _AUGREG,
        "glocal_vit_small_patch16_224.untrained": _AUGREG,
        "glocal_vit_base_patch16_224.untrained": _AUGREG,
        "glocal_vit_large_patch16_224.untrained": _AUGREG,
        "glocal_vit_tiny_patch32_224.untrained": _AUGREG,
        "glocal_vit_small_patch32_224.untrained": _AUGREG,
        "glocal_vit_base_patch32_224.untrained": _AUGREG,
        "glocal_vit_large_patch32_224.untrained": _AUGREG,
    }
)


@register_model
def glocal_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-Ti/16: 5.7M parameters, 1.3 GMACs at 224 (Touvron et al. 2021, Tab. 1; Steiner et al. 2022, Tab. 2)."""
    return build(VisionTransformer, "glocal_vit_tiny_patch16_224", pretrained, kwargs, dim=192, num_heads=3)


@register_model
def glocal_vit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-S/16: 22.1M parameters, 4.6 GMACs at 224 (Touvron et al. 2021, Tab. 1; Steiner et al. 2022, Tab. 2)."""
    return build(VisionTransformer, "glocal_vit_small_patch16_224", pretrained, kwargs, dim=384, num_heads=6)


@register_model
def glocal_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-B/16: 86M parameters (Tab. 1), 17.6 GMACs at 224."""
    return build(VisionTransformer, "glocal_vit_base_patch16_224", pretrained, kwargs, dim=768, num_heads=12)


@register_model
def glocal_vit_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-L/16: 307M parameters (Tab. 1; 304M with a head for 1,000 classes), 61.6 GMACs at 224."""
    return build(
        VisionTransformer, "glocal_vit_large_patch16_224", pretrained, kwargs, dim=1024, depth=24, num_heads=16
    )


@register_model
def glocal_vit_tiny_patch32_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-Ti/32: 6.1M parameters, 0.31 GMACs at 224."""
    return build(
        VisionTransformer, "glocal_vit_tiny_patch32_224", pretrained, kwargs, dim=192, num_heads=3, patch_size=32
    )


@register_model
def glocal_vit_small_patch32_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-S/32: 22.9M parameters, 1.14 GMACs at 224 (Steiner et al. 2022, Tab. 2)."""
    return build(
        VisionTransformer, "glocal_vit_small_patch32_224", pretrained, kwargs, dim=384, num_heads=6, patch_size=32
    )


@register_model
def glocal_vit_base_patch32_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-B/32: 88M parameters, 4.41 GMACs at 224 (Steiner et al. 2022, Tab. 2)."""
    return build(
        VisionTransformer, "glocal_vit_base_patch32_224", pretrained, kwargs, dim=768, num_heads=12, patch_size=32
    )


@register_model
def glocal_vit_large_patch32_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-L/32: 306.5M parameters, 15.4 GMACs at 224."""
    return build(
        VisionTransformer,
        "glocal_vit_large_patch32_224",
        pretrained,
        kwargs,
        dim=1024,
        depth=24,
        num_heads=16,
        patch_size=32,
    )
